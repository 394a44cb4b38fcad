"""`fsdtool find-mislabeled`: rows, page and noise matrix of labels or targets, and the limits for CI."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fsdtool.cli.answers import ExampleRowOptions, TalkOptions
from fsdtool.cli.arguments import check_output, refuse_options, rows_named, warn_of_fit
from fsdtool.cli.command import Command
from fsdtool.cli.groups import ComputeOptions, DataOptions, NetworkOptions, WeightOptions
from fsdtool.cli.networks import check_network_options, summarized_network
from fsdtool.cli.options import DATA_HELP, SummaryFile
from fsdtool.cli.wording import as_options
from fsdtool.errors import ExitStatus, FsdtoolError
from fsdtool.report.formats.row_format import Checks

if TYPE_CHECKING:
    from fsdtool.data.source import DataSource
    from fsdtool.mislabel.find import Mislabeled
    from fsdtool.mislabel.multilabel.label_errors import LabelErrors
    from fsdtool.mislabel.regression.target_errors import TargetErrors
    from fsdtool.mislabel.suspects import Suspects
    from fsdtool.report.talk import Talk
    from fsdtool.summary.catalogue import Catalogue
    from fsdtool.summary.reader import Summary

log = logging.getLogger("fsdtool")

MISLABELED_COLUMNS = ("id", "given_label", "suggested_label", "score", "confidence", "rank")
SEVERAL_COLUMNS = ("id", "label", "given_label", "suggested_label", "score", "confidence", "rank")
MISVALUED_COLUMNS = ("id", "given_target", "suggested_target", "standard_error", "score", "rank")


def find_mislabeled_command(
    context: typer.Context,
    summary: SummaryFile,
    *,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="The K most suspicious labels, flagged or not.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every training label.")] = False,
    max_flagged: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Exit with 1 if more than N labels are flagged.")
    ] = None,
    max_rate: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="R", help="Exit with 1 if a larger share of the labels is flagged."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, metavar="T", help="Flag the labels with a score above T.")
    ] = 0.5,
    by_layer: Annotated[
        bool,
        typer.Option(
            "--by-layer",
            help="One more column per layer: its evidence for the strongest other class minus that for the given "
            "label, in nats.",
        ),
    ] = False,
    noise: Annotated[
        Path | None,
        typer.Option(
            "--noise-matrix",
            metavar="FILE",
            help="Also write the estimated labels by given label (rows) and true class (columns) to this .csv or "
            ".json.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help=f"Judge these newly labelled examples, which were not summarized, instead: {DATA_HELP}",
        ),
    ] = None,
    network: NetworkOptions,
    page: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Also write a page to read in a browser, with pictures."),
    ] = None,
    page_data: Annotated[
        str | None,
        typer.Option(
            "--report-data",
            metavar="SPEC",
            help="The summarized data, for the pictures. [default: where it was, if it is still the same]",
        ),
    ] = None,
    reading: DataOptions,
    computing: ComputeOptions,
    weights: WeightOptions,
    answer: ExampleRowOptions,
    talking: TalkOptions,
) -> None:
    """List the training labels that are probably wrong, and what they should be, most suspicious first.

    Without --top and --all, the flagged labels are listed. A higher score is more suspicious. With --ids only the
    examples named are ranked and counted; the scores are the same. With --data new labels are judged by the
    summary of the old ones. Of several labels each is judged by itself; of a regression it judges the target values,
    the most suspicious one of each example.

    \b
    Example:
      fsdtool find-mislabeled summary.h5 --top 20
      fsdtool find-mislabeled summary.h5 --max-flagged 50 --format csv > suspects.csv
      fsdtool find-mislabeled summary.h5 --report suspects.html
      fsdtool find-mislabeled summary.h5 --ids-only > suspects.txt
      fsdtool find-mislabeled summary.h5 --data sample_data/test.npz --by-layer
    """
    talk = talking.talk(context)
    answer.check()
    if answer.ids_only and by_layer:
        raise FsdtoolError("--ids-only and --by-layer exclude each other; give one of them")
    if top is not None and everything:
        raise FsdtoolError(f"--top {top} and --all exclude each other; give one of them")
    _check_data_options(data, page_data, network, weights, reading)
    inputs = [given for given in (summary, data, page_data, answer.ids) if given is not None]
    _check_outputs(inputs, page, page_data, noise)

    opened = _open(summary, whole=data is not None or page is not None)
    whole = cast("Summary", opened)  # where --data or --report asks for more than the records
    warn_of_fit(opened)
    kind = opened.task.noun
    if not opened.task.has_classes and (by_layer or noise is not None):
        wanted = "--by-layer" if by_layer else "--noise-matrix"
        raise FsdtoolError(f"'{summary}' is of a {opened.task}, and {wanted} is of class labels; leave it out")
    asked: dict[str, Any] = {"top": top, "everything": everything, "threshold": threshold}
    source = None
    found: Mislabeled | LabelErrors | TargetErrors
    if data is None:
        found = _judge_summarized(opened, mask=rows_named(opened, answer.ids), **asked)
    else:
        from fsdtool.mislabel.new_labels import score_new_labels

        asked["device"], source = computing.choose_device(), reading.load(whole, data)
        asked["mask"] = rows_named(whole, answer.ids, source)
        model = summarized_network(whole, network, weights)
        found = score_new_labels(whole, source, model=model, batch_size=computing.batch_size, track=talk.track, **asked)
    labels = cast("Mislabeled", found)  # where --noise-matrix or --by-layer asks for it
    if noise is not None:
        from fsdtool.report.noise_matrix import write_noise

        write_noise(labels, noise)
    if page is not None:
        _write_page(found, whole, page, source, page_data, reading, talk)
    columns = (*_mislabeled_columns(opened), *(labels.layer_columns if by_layer else ()))
    answer.write(found.rows(), columns, _mislabeled_checks(threshold, columns, kind))
    _say_counts(found, kind, threshold, by_layer)
    _hold_to_limits(found, kind, max_flagged, max_rate)


def _check_data_options(
    data: str | None, page_data: str | None, network: NetworkOptions, weights: WeightOptions, reading: DataOptions
) -> None:
    """Refuse what is for new labels without --data, and what is for the summarized ones with it."""
    if data is None:
        given = asdict(network) | {"checkpoint_key": weights.checkpoint_key} | asdict(reading)
        del given["x_key"], given["y_key"]  # also of the summarized data, for the page
        refuse_options("without --data", "--data", **given)
    elif page_data is not None:
        raise FsdtoolError(
            f"--report-data {page_data} has no meaning with --data, which has the pictures; leave it out"
        )
    else:
        check_network_options(network, weights)


def _check_outputs(inputs: Sequence[Path | str], page: Path | None, page_data: str | None, noise: Path | None) -> None:
    """Refuse files that cannot be written."""
    if page is not None:
        check_output(page, "--report", inputs=inputs, suffix=".html")
    elif page_data is not None:
        raise FsdtoolError(f"--report-data {page_data} is given without --report; give both or neither")
    if noise is not None:
        check_output(noise, "--noise-matrix", inputs=inputs, suffix=(".csv", ".json"))


def _open(path: Path, whole: bool) -> Catalogue:
    """The summary, or of it what is read without torch, whose import takes longer than all the rest."""
    if whole:
        from fsdtool.summary.reader import load

        return load(path)
    from fsdtool.summary.catalogue import open_catalogue

    return open_catalogue(path)


def _judge_summarized(summary: Catalogue, **asked: Any) -> Mislabeled | LabelErrors | TargetErrors:
    """The labels that were summarized, or of a regression the targets."""
    if summary.task.has_classes:
        from fsdtool.mislabel.find import find_mislabeled

        return find_mislabeled(summary, **asked)
    if summary.task.has_labels:
        from fsdtool.mislabel.multilabel.label_errors import find_label_errors

        return find_label_errors(summary, **asked)
    from fsdtool.mislabel.regression.target_errors import find_target_errors

    return find_target_errors(summary, **asked)


def _write_page(
    found: Mislabeled | LabelErrors | TargetErrors,
    summary: Summary,
    path: Path,
    judged: DataSource | None,
    page_data: str | None,
    reading: DataOptions,
    talk: Talk,
) -> None:
    from fsdtool.report.html import write_page
    from fsdtool.report.mislabel_page import pictures_of, review

    keys = (reading.x_key, reading.y_key)
    pictures, remarks = pictures_of(summary, found.examples.tolist(), judged, page_data, *keys, track=talk.track)
    remarks = [as_options(remark) for remark in remarks]
    size = write_page(review(found, pictures, remarks), path)
    log.info(" ".join([f"wrote {path} ({size:,} bytes).", *remarks]))


def _say_counts(found: Suspects, kind: str, threshold: float, by_layer: bool) -> None:
    """How many are flagged, how many are estimated to be wrong and, by layer, what each layer weighs."""
    log.info(f"{found.flagged} of {found.judged} {kind}s are flagged (score above {threshold:g})")
    if found.noise_rate is not None:
        low, high = found.between or (None, None)
        between = "" if low is None else f" ({low:.1%} to {high:.1%} {found.between_by})"
        log.info(f"estimated share of wrong {kind}s: {found.noise_rate:.1%}{between}")
    if by_layer:
        weights = zip(found.layers, found.weights.tolist(), strict=True)
        log.info("weights of the layers: " + ", ".join(f"{layer} {weight:.3f}" for layer, weight in weights))


def _hold_to_limits(found: Suspects, kind: str, max_flagged: int | None, max_rate: float | None) -> None:
    """End with the exit code of findings where more are flagged than --max-flagged or --max-rate allows."""
    if max_flagged is not None and found.flagged > max_flagged:
        log.warning(f"{found.flagged} {kind}s are flagged, more than --max-flagged {max_flagged}")
        raise typer.Exit(ExitStatus.FINDINGS)
    share = found.flagged / max(found.judged, 1)
    if max_rate is not None and share > max_rate:
        log.warning(f"{share:.2%} of the {kind}s are flagged, more than --max-rate {max_rate:g}")
        raise typer.Exit(ExitStatus.FINDINGS)


def _mislabeled_columns(summary: Catalogue) -> tuple[str, ...]:
    if summary.task.has_classes:
        return MISLABELED_COLUMNS
    if summary.task.has_labels:
        return SEVERAL_COLUMNS
    return (MISVALUED_COLUMNS[0], *(("output",) if summary.outputs > 1 else ()), *MISVALUED_COLUMNS[1:])


def _mislabeled_checks(threshold: float, columns: Sequence[str], kind: str) -> Checks:
    """A flagged label is a warning about its example, which is a file where ids are file names."""
    layers = [column for column in columns if column.startswith("margin:")]
    several = "label" in columns
    sureness = "confidence" if kind == "label" else "standard_error"

    def message(row: Mapping[str, Any]) -> str:
        margins = ", ".join(f"{column.removeprefix('margin:')} {row[column]:.3g}" for column in layers)
        if several:
            return (
                f"the label '{row['label']}' of {row['id']} is probably {row['suggested_label']}, not "
                f"{row['given_label']} (score {row['score']:.3g}, confidence {row['confidence']:.3g})"
            )
        return (
            f"the {kind} {row[f'given_{kind}']} of {row['id']} is probably {row[f'suggested_{kind}']} "
            f"(score {row['score']:.3g}, {sureness.replace('_', ' ')} {row[sureness]:.3g})"
        ) + (f"; margins in nats: {margins}" if margins else "")

    return Checks(
        suite="fsdtool find-mislabeled",
        name=lambda row: f"{row['id']} {row['label']}" if several else str(row["id"]),
        file=lambda row: row["id"] if isinstance(row["id"], str) else None,
        message=message,
        level=lambda row: "warning" if row["score"] > threshold else "notice",
    )


COMMAND = Command(
    "find-mislabeled",
    find_mislabeled_command,
    "List the labels that are probably wrong.",
    place=20,
    findings="more labels are flagged than --max-flagged or --max-rate allows",
    columns={"": MISLABELED_COLUMNS, "of several labels": SEVERAL_COLUMNS, "of a regression": MISVALUED_COLUMNS},
)
