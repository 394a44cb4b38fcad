"""`fsdtool influence`: rows of queries or of examples on themselves."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from fsdtool.cli.answers import check_ids_only, talk, write
from fsdtool.cli.arguments import (
    check_model_options,
    check_output,
    network_of,
    refuse_options,
    rows_named,
    warn_of_fit,
)
from fsdtool.cli.command import Command
from fsdtool.cli.options import (
    DATA_HELP,
    AllowPickle,
    BatchSize,
    CheckpointKey,
    Debug,
    Device,
    DeviceChoice,
    Ema,
    IdKey,
    Ids,
    IdsOnly,
    LastLayerCheckpoint,
    LastLayerModel,
    ModelArguments,
    OutputFormat,
    Quiet,
    SkipBad,
    Solver,
    Split,
    SummaryFile,
    Transform,
    XKey,
    YKey,
)
from fsdtool.errors import FsdtoolError
from fsdtool.report import console
from fsdtool.summary.data_like import load_like

INFLUENCE_COLUMNS = (
    *("query_id", "kind", "rank", "id", "label", "loss_change_if_removed"),
    *("query_label", "query_prediction"),
)
SELF_INFLUENCE_COLUMNS = ("id", "label", "self_influence")


def influence_command(
    summary: SummaryFile,
    queries: Annotated[
        str | None, typer.Option(metavar="SPEC", help=f"The predictions to explain: {DATA_HELP}")
    ] = None,
    of_itself: Annotated[
        bool, typer.Option("--self", help="The influence of every training example on its own loss instead.")
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="The K strongest of each kind for each query [default: 10], or with --self the K largest "
            "[default: every example].",
        ),
    ] = None,
    mean: Annotated[bool, typer.Option("--mean", help="One answer, for the mean loss of all queries.")] = False,
    misclassified: Annotated[
        bool, typer.Option("--misclassified", help="Only the queries whose prediction is not their label.")
    ] = False,
    matrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write all values, float32 (queries, training examples), to this .npy or .h5."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help=f"Score these training examples by their exact gradients, instead of the records: {DATA_HELP}",
        ),
    ] = None,
    solver: Annotated[
        Solver,
        typer.Option(
            help="kronecker: layer by layer; cg: with the layers' cross terms, by conjugate gradients; pbo: the listed "
            "examples measured again by the proximal Bregman response (slow, needs --data)."
        ),
    ] = Solver.kronecker,
    model: LastLayerModel = None,
    model_arg: ModelArguments = None,
    checkpoint: LastLayerCheckpoint = None,
    x_key: XKey = None,
    y_key: YKey = None,
    id_key: IdKey = None,
    split: Split = None,
    skip_bad: SkipBad = False,
    transform: Transform = None,
    device: DeviceChoice = Device.auto,
    batch_size: BatchSize = 256,
    ema: Ema = False,
    checkpoint_key: CheckpointKey = None,
    allow_pickle: AllowPickle = False,
    ids: Ids = None,
    ids_only: IdsOnly = False,
    format: OutputFormat = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Name the training examples that pushed the model towards a prediction, and those that pushed against.

    The column loss_change_if_removed is a first-order estimate, in nats for cross-entropy, of how much the
    loss on the query would rise if the training example were removed; positive: the example helps
    (proponent), negative: it harms (opponent). With --ids only the training examples named are ranked; the values
    are the same.

    \b
    Example:
      fsdtool influence summary.h5 --queries sample_data/test.npz --misclassified --top 5
      fsdtool influence summary.h5 --self --top 20
      fsdtool influence summary.h5 --queries sample_data/test.npz --mean --data sample_data/train.npz
      fsdtool influence summary.h5 --self --ids suspects.txt
    """
    talk(quiet, debug)
    check_ids_only(ids_only, format)
    if (queries is None) is not of_itself:
        found = "both are given" if of_itself else "neither is given"
        raise FsdtoolError(f"either --queries or --self is needed and {found}; give one of them")
    check_model_options(model, model_arg, checkpoint, allow_pickle, checkpoint_key)
    if of_itself:
        needless: dict[str, object] = {} if data is not None else {"model": model, "checkpoint": checkpoint}
        other = solver is not Solver.kronecker
        needless |= {"mean": mean, "misclassified": misclassified, "matrix": matrix, "solver": other}
        refuse_options("with --self", "--queries", **needless)
    if matrix is not None:
        inputs = [given for given in (summary, queries, data) if given is not None]
        check_output(matrix, "--matrix", inputs=inputs, suffix=(".npy", ".h5"))

    if of_itself and data is None:
        _write_recorded_self_influence(summary, device, ids, top, format, ids_only)
        return

    from fsdtool.influence.scores import influence, self_influence
    from fsdtool.summary.reader import load
    from fsdtool.util.device import choose_device

    chosen = choose_device(device.value)
    opened = load(summary)
    warn_of_fit(opened)
    reading = {"x_key": x_key, "y_key": y_key, "id_key": id_key, "split": split, "skip_bad": skip_bad}
    network = network_of(opened, model, model_arg, checkpoint, allow_pickle, ema, checkpoint_key)
    candidates = None if data is None else load_like(opened, data, transform, **reading)
    among = rows_named(opened, ids, candidates)
    if queries is None:
        of_examples = self_influence(
            opened,
            data=candidates,
            among=among,
            model=network,
            device=chosen,
            batch_size=batch_size,
            track=console.track,
        )
        write(islice(of_examples.rows(), top), SELF_INFLUENCE_COLUMNS, format, ids_only)
        return
    result = influence(
        opened,
        load_like(opened, queries, transform, **reading),
        top=top or 10,
        mean=mean,
        misclassified=misclassified,
        matrix=matrix,
        solver=solver.value,
        data=candidates,
        among=among,
        model=network,
        device=chosen,
        batch_size=batch_size,
        track=console.track,
    )
    write(result.rows(), INFLUENCE_COLUMNS, format, ids_only)


def _write_recorded_self_influence(
    summary: Path, device: Device, ids: str | None, top: int | None, format: console.Format | None, ids_only: bool
) -> None:
    """Without torch, whose import takes longer than all the rest; but a device that is asked for must be there."""
    from fsdtool.influence.self_scores import recorded_self_influence
    from fsdtool.summary.catalogue import open_catalogue

    if device is Device.cuda:
        from fsdtool.util.device import choose_device

        choose_device(device.value)
    opened = open_catalogue(summary)
    warn_of_fit(opened)
    result = recorded_self_influence(opened, among=rows_named(opened, ids))
    write(islice(result.rows(), top), SELF_INFLUENCE_COLUMNS, format, ids_only)


COMMAND = Command(
    "influence",
    influence_command,
    "Explain predictions by training examples.",
    place=30,
    columns={"--queries": INFLUENCE_COLUMNS, "--self": SELF_INFLUENCE_COLUMNS},
)
