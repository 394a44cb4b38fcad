"""`fsdtool fsd`: rows of distances, and the limit for CI."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fsdtool.cli.answers import TalkOptions, write
from fsdtool.cli.arguments import warn_of_fit
from fsdtool.cli.command import Command
from fsdtool.cli.groups import ComputeOptions, DataOptions, WeightOptions
from fsdtool.cli.networks import check_model_arguments, read_checkpoint, rebuild
from fsdtool.cli.options import (
    DATA_HELP,
    DEFAULT_FORM,
    MODEL_HELP,
    Form,
    Gates,
    Metric,
    ModelArguments,
    OutputFormat,
    Seed,
    SummaryFile,
)
from fsdtool.errors import ExitStatus, FsdtoolError
from fsdtool.report.formats.row_format import Checks

log = logging.getLogger("fsdtool")

FSD_COLUMNS = ("checkpoint", "distance", "standard_error", "model_error", "metric", "form")
FSD_COMPONENT_COLUMNS = ("checkpoint", "component", "weight", "distance", "contribution", "metric", "form")


def fsd_command(
    context: typer.Context,
    summary: SummaryFile,
    *,
    checkpoint: Annotated[
        list[Path], typer.Option(metavar="FILE", help="A checkpoint of the same network; may be repeated.")
    ],
    metric: Annotated[
        Metric | None,
        typer.Option(
            help="kl: Kullback-Leibler divergence in nats; kl2: its second-order form; squared_error: half "
            "the squared distance of the outputs; probability: of the class probabilities. "
            "[default: by the task]"
        ),
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            help="The examples that the summary keeps (auto, where it does), simulated ones, or the closed form of "
            "dense networks (auto: for independent gates)."
        ),
    ] = DEFAULT_FORM,
    gates: Annotated[
        Gates | None,
        typer.Option(
            help="Simulate examples, with gates moving with the weights (the default for those), held, or drawn "
            "independently."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="At most so many examples, kept or simulated. [default: 4096-65536, by network size]",
        ),
    ] = None,
    seed: Seed = 0,
    max_distance: Annotated[
        float | None, typer.Option(metavar="D", help="Exit with 1 if a distance (with --data the exact one) is over D.")
    ] = None,
    by_component: Annotated[
        bool, typer.Option("--by-component", help="One row per checkpoint and component (class, by default).")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The checkpoint summarized, for a summary without weights."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help=f"Also give the exact distance on this data: {DATA_HELP}"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="The network's code, for --data with a summary in last layer mode and for weights computed in a way "
            f"of its own: {MODEL_HELP}",
        ),
    ] = None,
    model_arg: ModelArguments = None,
    reading: DataOptions,
    computing: ComputeOptions,
    weights: WeightOptions,
    format: OutputFormat = None,
    talking: TalkOptions,
) -> None:
    """Estimate how far other checkpoints have moved from the summarized one, over the training data.

    \b
    Example:
      fsdtool fsd summary.h5 --checkpoint sample_data/mlp.pt --max-distance 0.1
    """
    talk = talking.talk(context)
    if max_distance is not None and not max_distance >= 0:
        raise FsdtoolError(f"--max-distance {max_distance:g} is no distance; give a number that is not negative")

    from fsdtool.fsd.drift import distances
    from fsdtool.summary.reader import load

    check_model_arguments(model, model_arg)
    chosen = computing.choose_device()
    opened = load(summary)
    warn_of_fit(opened)
    identity = opened.identity
    summarized = replace(weights, ema=identity.checkpoint_averaged, checkpoint_key=identity.checkpoint_key or None)
    result = distances(
        opened,
        [read_checkpoint(path, weights, model) for path in checkpoint],
        metric=metric and metric.value,
        form=form.value,
        gates=gates and gates.value,
        samples=samples,
        seed=seed,
        reference=None if reference is None else read_checkpoint(reference, summarized, model),
        data=None if data is None else reading.load(opened, data),
        model=None if model is None else partial(rebuild, opened, model, model_arg),
        device=chosen,
        batch_size=computing.batch_size,
        track=talk.track,
    )
    if by_component and None in [d.distance for d in result.found]:
        raise FsdtoolError("exact distances are of the whole data and not by component; leave --by-component out")
    if by_component:
        write(result.component_rows(), FSD_COMPONENT_COLUMNS, format)
    else:
        columns = FSD_COLUMNS if data is None else (*FSD_COLUMNS, "exact")
        write(result.rows(), columns, format, checks=_distance_checks(max_distance))
    # Written so that a distance that is not a number counts as over the threshold.
    over = [d for d in result.distances if max_distance is not None and not d <= max_distance]
    if over:
        log.warning(f"{len(over)} of {len(checkpoint)} distances are over --max-distance {max_distance:g}")
        raise typer.Exit(ExitStatus.FINDINGS)


def _told(row: Mapping[str, Any]) -> float:
    """The exact distance where data were given, else the estimated one."""
    return row["distance"] if row.get("exact") is None else row["exact"]


def _distance_checks(limit: float | None) -> Checks:
    """A distance over the limit is an error; written so that one that is not a number counts as over it."""
    return Checks(
        suite="fsdtool fsd",
        file=lambda row: row["checkpoint"],
        message=lambda row: f"distance {_told(row):g} of {row['checkpoint']} ({row['metric']}, {row['form']})",
        level=lambda row: "notice" if limit is None or _told(row) <= limit else "error",
    )


COMMAND = Command(
    "fsd",
    fsd_command,
    "Measure how far checkpoints have moved.",
    place=40,
    findings="a distance is over --max-distance",
    columns={"": FSD_COLUMNS, "--by-component": FSD_COMPONENT_COLUMNS},
)
