"""The commands: each parses its options, calls one estimator and hands its rows to `report`.

The estimators are imported inside the commands, so that help and usage errors do not wait for torch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsdtool import __version__, report
from fsdtool.checks import Checks
from fsdtool.errors import ExitStatus, FsdtoolError
from fsdtool.inputs import (
    build_model,
    check_output,
    key_values,
    load_like,
    model_of,
    numbers,
    read_checkpoint,
    read_ids,
    rows_named,
)
from fsdtool.options import (
    DATA_HELP,
    MODEL_HELP,
    AllowPickle,
    BatchSize,
    Curvature,
    Debug,
    Device,
    DeviceChoice,
    Ema,
    Form,
    Gates,
    IdKey,
    Ids,
    IdsOnly,
    Labels,
    LastLayerCheckpoint,
    LastLayerModel,
    Layout,
    Metric,
    ModelArguments,
    OutputFormat,
    Quiet,
    Seed,
    SkipBad,
    Solver,
    Split,
    SummaryFile,
    Task,
    Transform,
    Workers,
    XKey,
    YKey,
)

if TYPE_CHECKING:
    from torch import nn

    from fsdtool.catalogue import Catalogue
    from fsdtool.mislabel import Mislabeled
    from fsdtool.misvalue import Misvalued
    from fsdtool.sources import DataSource
    from fsdtool.summary import Summary

log = logging.getLogger("fsdtool")

MISLABELED_COLUMNS = ("id", "given_label", "suggested_label", "score", "confidence", "rank")
MISVALUED_COLUMNS = ("id", "given_target", "suggested_target", "standard_error", "score", "rank")
INFLUENCE_COLUMNS = (
    *("query_id", "kind", "rank", "id", "label", "loss_change_if_removed"),
    *("query_label", "query_prediction"),
)
SELF_INFLUENCE_COLUMNS = ("id", "label", "self_influence")
FSD_COLUMNS = ("checkpoint", "distance", "standard_error", "metric", "form")
FSD_COMPONENT_COLUMNS = ("checkpoint", "component", "weight", "distance", "contribution", "metric", "form")
INSPECT_COLUMNS = ("part", "bytes", "bytes_per_example", "description")
MEGABYTE = 10**6


def _exit_codes(findings: str | None = None) -> str:
    """The last paragraph of a command's help."""
    lines = ["0    done" + (", nothing over the threshold" if findings else "")]
    lines += [f"1    {findings}"] if findings else []
    lines += [
        "2    the input is at fault; one line on stderr says what to change",
        "3    a fault of the tool or of the machine",
        "130  interrupted (Ctrl-C)",
    ]
    return "\b\nExit codes:\n  " + "\n  ".join(lines)


# Commands

app = typer.Typer(
    # Plain help: boxes would break the examples when they are copied.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fsdtool {__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=_exit_codes("findings over the threshold that --max-flagged, --max-rate or --max-distance sets"),
)
def every_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find wrong labels, trace predictions to training examples and measure drift, without the training data.

    'summarize' goes over the training data once and writes one file; the other commands need only that file.

    \b
    Example:
      fsdtool summarize --model sample_data/model.py:mlp --checkpoint sample_data/mlp.pt \\
          --data sample_data/train.npz -o summary.h5
      fsdtool find-mislabeled summary.h5 --top 20
      fsdtool influence summary.h5 --queries sample_data/test.npz --misclassified --top 5
      fsdtool fsd summary.h5 --checkpoint sample_data/mlp.pt
    """
    _talk(quiet, debug)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitStatus.USER_ERROR)


@app.command("summarize", short_help="Go over the training data and write the summary.", epilog=_exit_codes())
def summarize_command(
    context: typer.Context,
    *,
    model: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help=f"{MODEL_HELP} May be left out where the checkpoint tells it."),
    ] = None,
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="The trained weights. Repeated: earlier checkpoints of the training first; the last is summarized, "
            "the others add evidence on labels.",
        ),
    ],
    data: Annotated[str, typer.Option(metavar="SPEC", help=f"The training data: {DATA_HELP}")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The summary to write.")],
    model_arg: ModelArguments = None,
    task: Annotated[Task, typer.Option(help="What the network was trained for.")] = Task.classification,
    components: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Groups of examples with statistics of their own. "
            "[default: one per class for classification, one for regression]",
        ),
    ] = None,
    records: Annotated[
        bool, typer.Option("--records/--no-records", help="Keep a record of every training example.")
    ] = True,
    record_bytes: Annotated[int, typer.Option(min=1, metavar="N", help="Bytes of gradient factors per record.")] = 1024,
    statistics_budget: Annotated[
        float, typer.Option(metavar="MB", min=0, help="Largest size of the statistics, in megabytes.")
    ] = 32,
    curvature: Annotated[
        Curvature,
        typer.Option(
            help="For influence: simulated from the statistics, or measured on the data in the pass (slower)."
        ),
    ] = Curvature.simulated,
    input_rank: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rank kept of the covariance of large inputs.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Keep the weights in the summary; fsd needs them.")
    ] = True,
    mean: Annotated[
        str | None,
        typer.Option(metavar="M,...", help="Subtracted from the inputs: one number, or one per channel."),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(metavar="S,...", help="The inputs are divided by it: one number, or one per channel."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Resize the shorter side of images to this and crop the centre."),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, max=4, metavar="N", help="What image files become: 1 grey, 3 RGB, 4 RGBA. [default: 3]"),
    ] = None,
    transform: Transform = None,
    layout: Annotated[
        Layout | None,
        typer.Option(help="Order of the input's dimensions. [default: the first that the model takes]"),
    ] = None,
    x_key: XKey = None,
    y_key: YKey = None,
    id_key: IdKey = None,
    split: Split = None,
    labels: Labels = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Only the examples whose ids this file lists, one a line or a csv column id."
        ),
    ] = None,
    skip_bad: SkipBad = False,
    device: DeviceChoice = Device.auto,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Examples computed at once. [default: what half a gigabyte holds]"),
    ] = None,
    workers: Workers = 0,
    seed: Seed = 0,
    ema: Ema = False,
    allow_pickle: AllowPickle = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go over the training data once and write the summary file that every other command reads.

    \b
    Example:
      fsdtool summarize --model sample_data/model.py:mlp --checkpoint sample_data/mlp.pt \\
          --data sample_data/train.npz -o summary.h5
      fsdtool summarize --model net.py:net --checkpoint epoch5.pt --checkpoint epoch15.pt \\
          --checkpoint final.pt --data train.npz -o summary.h5
    """
    _talk(quiet, debug)
    check_output(output, "--output", inputs=(*checkpoint, data))
    model_arguments = key_values(model_arg)
    scaling = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std")}

    from fsdtool.datasets import load_dataset
    from fsdtool.device import choose_device
    from fsdtool.preprocessing import Preprocessing
    from fsdtool.summarize import summarize

    chosen = choose_device(device.value)
    *earlier, weights_given = [read_checkpoint(path, allow_pickle, ema) for path in checkpoint]
    preprocessing = Preprocessing(
        **scaling,
        image_size=image_size,
        layout=layout and layout.value.replace("-", " "),
        channels=channels,
        transform=transform,
    )
    result = summarize(
        model=build_model(model, model_arguments, weights_given),
        checkpoint=weights_given,
        earlier=earlier,
        data=load_dataset(
            data,
            task=task.value,
            preprocessing=preprocessing,
            x_key=x_key,
            y_key=y_key,
            id_key=id_key,
            split=split,
            labels=labels,
            ids=None if ids is None else read_ids(ids),
            skip_bad=skip_bad,
            workers=workers,
        ),
        output=output,
        model_spec=model or "",
        model_arguments=model_arguments,
        components=components,
        device=chosen,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        records=records,
        record_bytes=record_bytes,
        statistics_budget=int(statistics_budget * MEGABYTE),
        curvature=curvature.value,
        input_rank=input_rank,
        keep_weights=weights,
        command_line=context.obj,
        track=report.track,
    )
    report.print_summary(f"wrote {output}", result.rows())


@app.command(
    "find-mislabeled",
    short_help="List the labels that are probably wrong.",
    epilog=_exit_codes("more labels are flagged than --max-flagged or --max-rate allows"),
)
def find_mislabeled_command(
    summary: SummaryFile,
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
    model: LastLayerModel = None,
    model_arg: ModelArguments = None,
    checkpoint: LastLayerCheckpoint = None,
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
    x_key: XKey = None,
    y_key: YKey = None,
    id_key: IdKey = None,
    split: Split = None,
    skip_bad: SkipBad = False,
    transform: Transform = None,
    device: DeviceChoice = Device.auto,
    batch_size: BatchSize = 256,
    ema: Ema = False,
    allow_pickle: AllowPickle = False,
    ids: Ids = None,
    ids_only: IdsOnly = False,
    format: OutputFormat = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the training labels that are probably wrong, and what they should be, most suspicious first.

    Without --top and --all, the flagged labels are listed. A higher score is more suspicious. With --ids only the
    examples named are ranked and counted; the scores are the same. With --data new labels are judged by the
    summary of the old ones. Of a regression it judges the target values, the most suspicious one of each example.

    \b
    Example:
      fsdtool find-mislabeled summary.h5 --top 20
      fsdtool find-mislabeled summary.h5 --max-flagged 50 --format csv > suspects.csv
      fsdtool find-mislabeled summary.h5 --report suspects.html
      fsdtool find-mislabeled summary.h5 --ids-only > suspects.txt
      fsdtool find-mislabeled summary.h5 --data sample_data/test.npz --by-layer
    """
    _talk(quiet, debug)
    _check_ids_only(ids_only, format)
    if ids_only and by_layer:
        raise FsdtoolError("--ids-only and --by-layer exclude each other; give one of them")
    if top is not None and everything:
        raise FsdtoolError(f"--top {top} and --all exclude each other; give one of them")
    if data is None:
        _refuse_without_data(model=model, model_arg=model_arg, checkpoint=checkpoint)
        _refuse_without_data(id_key=id_key, split=split, skip_bad=skip_bad, transform=transform)
    elif page_data is not None:
        raise FsdtoolError(
            f"--report-data {page_data} has no meaning with --data, which has the pictures; leave it out"
        )
    elif not (model is None and checkpoint is not None and allow_pickle):  # a pickled network needs no --model
        _check_model_options(model, model_arg, checkpoint)
    inputs = [given for given in (summary, data, page_data, ids) if given is not None]
    if page is not None:
        check_output(page, "--report", inputs=inputs, suffix=".html")
    elif page_data is not None:
        raise FsdtoolError(f"--report-data {page_data} is given without --report; give both or neither")
    if noise is not None:
        check_output(noise, "--noise-matrix", inputs=inputs, suffix=(".csv", ".json"))

    if data is None and page is None:
        from fsdtool.catalogue import open_catalogue as load
    else:
        from fsdtool.summary import load

    opened = load(summary)
    kind = "target" if opened.task == "regression" else "label"
    if kind == "target" and (by_layer or noise is not None):
        wanted = "--by-layer" if by_layer else "--noise-matrix"
        raise FsdtoolError(f"'{summary}' is of a regression, and {wanted} is of class labels; leave it out")
    choice = {"top": top, "everything": everything, "threshold": threshold}
    source = None
    if data is not None:
        from fsdtool.device import choose_device
        from fsdtool.judge import judge

        chosen = choose_device(device.value)
        reading = {"x_key": x_key, "y_key": y_key, "id_key": id_key, "split": split, "skip_bad": skip_bad}
        source = load_like(opened, data, transform, **reading)
        found = judge(
            opened,
            source,
            **choice,
            among=rows_named(opened, ids, source),
            model=_model_of(opened, model, model_arg, checkpoint, allow_pickle, ema),
            device=chosen,
            batch_size=batch_size,
            track=report.track,
        )
    elif kind == "target":
        from fsdtool.misvalue import find_misvalued

        found = find_misvalued(opened, **choice, among=rows_named(opened, ids))
    else:
        from fsdtool.mislabel import find_mislabeled

        found = find_mislabeled(opened, **choice, among=rows_named(opened, ids))
    if noise is not None:
        from fsdtool.noisefile import write_noise

        write_noise(found, noise)
    if page is not None:
        _write_page(found, page, page_data if source is None else source, x_key, y_key)
    columns = (*_mislabeled_columns(opened), *(found.layer_columns if by_layer else ()))
    _write(found.rows(), columns, format, ids_only, _mislabeled_checks(threshold, columns, kind))
    log.info(f"{found.flagged} of {found.judged} {kind}s are flagged (score above {threshold:g})")
    if found.noise_rate is not None:
        log.info(f"estimated share of wrong {kind}s: {found.noise_rate:.1%}")
    if by_layer:
        weights = zip(found.layers, found.weights.tolist(), strict=True)
        log.info("weights of the layers: " + ", ".join(f"{layer} {weight:.3f}" for layer, weight in weights))
    if max_flagged is not None and found.flagged > max_flagged:
        log.warning(f"{found.flagged} {kind}s are flagged, more than --max-flagged {max_flagged}")
        raise typer.Exit(ExitStatus.FINDINGS)
    share = found.flagged / max(found.judged, 1)
    if max_rate is not None and share > max_rate:
        log.warning(f"{share:.2%} of the {kind}s are flagged, more than --max-rate {max_rate:g}")
        raise typer.Exit(ExitStatus.FINDINGS)


def _model_of(
    summary: Summary,
    model: str | None,
    arguments: list[str] | None,
    checkpoint: Path | None,
    allow_pickle: bool,
    ema: bool,
) -> nn.Module | None:
    """The network that --model and --checkpoint give, for a summary in last layer mode."""
    if checkpoint is None:
        return None
    return model_of(summary, model, key_values(arguments), read_checkpoint(checkpoint, allow_pickle, ema))


def _refuse_without_data(**options: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise FsdtoolError(f"{', '.join(given)} has no meaning without --data; leave it out or give --data")


def _write_page(
    found: Mislabeled | Misvalued, path: Path, data: DataSource | str | None, x_key: str | None, y_key: str | None
) -> None:
    from fsdtool.page import write_page
    from fsdtool.review import pictures_of, review

    pictures, remarks = pictures_of(found.summary, found.order.tolist(), data, x_key, y_key, track=report.track)
    size = write_page(review(found, pictures, remarks), path)
    log.info(" ".join([f"wrote {path} ({size:,} bytes).", *remarks]))


@app.command("influence", short_help="Explain predictions by training examples.", epilog=_exit_codes())
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
    _talk(quiet, debug)
    _check_ids_only(ids_only, format)
    if (queries is None) is not of_itself:
        found = "both are given" if of_itself else "neither is given"
        raise FsdtoolError(f"either --queries or --self is needed and {found}; give one of them")
    if not (model is None and checkpoint is not None and allow_pickle):  # a pickled network needs no --model
        _check_model_options(model, model_arg, checkpoint)
    if of_itself:
        needless = {} if data is not None else {"model": model, "checkpoint": checkpoint}
        other = solver is not Solver.kronecker
        _refuse_with_self(mean=mean, misclassified=misclassified, matrix=matrix, solver=other, **needless)
    if matrix is not None:
        inputs = [given for given in (summary, queries, data) if given is not None]
        check_output(matrix, "--matrix", inputs=inputs, suffix=(".npy", ".h5"))

    if of_itself and data is None:
        _write_recorded_self_influence(summary, device, ids, top, format, ids_only)
        return

    from fsdtool.device import choose_device
    from fsdtool.influence import influence, self_influence
    from fsdtool.summary import load

    chosen = choose_device(device.value)
    opened = load(summary)
    reading = {"x_key": x_key, "y_key": y_key, "id_key": id_key, "split": split, "skip_bad": skip_bad}
    network = _model_of(opened, model, model_arg, checkpoint, allow_pickle, ema)
    candidates = None if data is None else load_like(opened, data, transform, **reading)
    options = {
        "data": candidates,
        "among": rows_named(opened, ids, candidates),
        "model": network,
        "device": chosen,
        "batch_size": batch_size,
        "track": report.track,
    }
    if of_itself:
        result = self_influence(opened, **options)
        _write(islice(result.rows(), top), SELF_INFLUENCE_COLUMNS, format, ids_only)
        return
    result = influence(
        opened,
        load_like(opened, queries, transform, **reading),
        top=top or 10,
        mean=mean,
        misclassified=misclassified,
        matrix=matrix,
        solver=solver.value,
        **options,
    )
    _write(result.rows(), INFLUENCE_COLUMNS, format, ids_only)


def _write_recorded_self_influence(
    summary: Path, device: Device, ids: str | None, top: int | None, format: report.Format | None, ids_only: bool
) -> None:
    """Without torch, whose import takes longer than all the rest; but a device that is asked for must be there."""
    from fsdtool.catalogue import open_catalogue
    from fsdtool.selfinfluence import recorded_self_influence

    if device is Device.cuda:
        from fsdtool.device import choose_device

        choose_device(device.value)
    opened = open_catalogue(summary)
    result = recorded_self_influence(opened, among=rows_named(opened, ids))
    _write(islice(result.rows(), top), SELF_INFLUENCE_COLUMNS, format, ids_only)


def _check_model_options(model: str | None, arguments: list[str] | None, checkpoint: Path | None) -> None:
    if (model is None) is not (checkpoint is None):
        given, missing = ("--checkpoint", "--model") if model is None else ("--model", "--checkpoint")
        raise FsdtoolError(f"{given} is given without {missing}; give both or neither")
    if model is None and arguments:
        raise FsdtoolError(f"--model-arg {arguments[0]} is given without --model; give both or neither")


def _refuse_with_self(**options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        raise FsdtoolError(f"{', '.join(given)} has no meaning with --self; leave it out or give --queries")


@app.command(
    "fsd",
    short_help="Measure how far checkpoints have moved.",
    epilog=_exit_codes("a distance is over --max-distance"),
)
def fsd_command(
    summary: SummaryFile,
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
        typer.Option(help="Simulated examples, or the closed form of dense networks (auto: for independent gates)."),
    ] = Form.auto,
    gates: Annotated[
        Gates,
        typer.Option(help="The simulated examples' gates: moving with the weights, or held; or drawn independently."),
    ] = Gates.moving,
    samples: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Number of simulated examples. [default: 4096-65536, by network size]"),
    ] = None,
    seed: Seed = 0,
    max_distance: Annotated[
        float | None, typer.Option(metavar="D", help="Exit with 1 if a distance is over D.")
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
    x_key: XKey = None,
    y_key: YKey = None,
    id_key: IdKey = None,
    split: Split = None,
    skip_bad: SkipBad = False,
    transform: Transform = None,
    device: DeviceChoice = Device.auto,
    batch_size: BatchSize = 256,
    ema: Ema = False,
    allow_pickle: AllowPickle = False,
    format: OutputFormat = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Estimate how far other checkpoints have moved from the summarized one, over the training data.

    \b
    Example:
      fsdtool fsd summary.h5 --checkpoint sample_data/mlp.pt --max-distance 0.1
    """
    _talk(quiet, debug)
    if max_distance is not None and not max_distance >= 0:
        raise FsdtoolError(f"--max-distance {max_distance:g} is no distance; give a number that is not negative")

    from fsdtool.device import choose_device
    from fsdtool.fsd import distances
    from fsdtool.summary import load

    chosen = choose_device(device.value)
    opened = load(summary)
    reading = {"x_key": x_key, "y_key": y_key, "id_key": id_key, "split": split, "skip_bad": skip_bad}
    result = distances(
        opened,
        [read_checkpoint(path, allow_pickle, ema) for path in checkpoint],
        metric=metric and metric.value,
        form=form.value,
        gates=gates.value,
        samples=samples,
        seed=seed,
        reference=None
        if reference is None
        else read_checkpoint(reference, allow_pickle, opened.identity.checkpoint_averaged),
        data=None if data is None else load_like(opened, data, transform, **reading),
        device=chosen,
        batch_size=batch_size,
        track=report.track,
    )
    if by_component:
        _write(result.component_rows(), FSD_COMPONENT_COLUMNS, format)
    else:
        columns = FSD_COLUMNS if data is None else (*FSD_COLUMNS, "exact")
        _write(result.rows(), columns, format, checks=_distance_checks(max_distance))
    # Written so that a distance that is not a number counts as over the threshold.
    over = [d for d in result.distances if max_distance is not None and not d <= max_distance]
    if over:
        log.warning(f"{len(over)} of {len(checkpoint)} distances are over --max-distance {max_distance:g}")
        raise typer.Exit(ExitStatus.FINDINGS)


@app.command("inspect", short_help="Show what a summary holds, and its size.", epilog=_exit_codes())
def inspect_command(
    summary: SummaryFile, format: OutputFormat = None, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Show what a summary holds: where it comes from, and the size of each part.

    In csv and json the sizes alone are on stdout, and where it comes from on stderr.

    \b
    Example:
      fsdtool inspect summary.h5
    """
    _talk(quiet, debug)

    from fsdtool.inspection import inspect_rows

    header, rows = inspect_rows(summary)
    chosen = report.resolve_format(format, sys.stdout)
    report.print_summary(str(summary), header, sys.stdout if chosen is report.Format.table else None)
    report.render(rows, INSPECT_COLUMNS, chosen, sys.stdout)


@app.command("demo", short_help="Try it all on the sample data.", epilog=_exit_codes())
def demo_command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="[FOLDER]", help="Where to put the files. [default: fsdtool-demo]"),
    ] = Path("fsdtool-demo"),
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the commands on the sample data, handwritten digits with wrong labels, and compare with the truth.

    \b
    Example:
      fsdtool demo
    """
    _talk(quiet, debug)

    from fsdtool.demo import run

    run(folder)


def _talk(quiet: bool, debug: bool) -> None:
    """--quiet and --debug hold whether they stand before the command or after it."""
    report.configure(quiet=quiet or report.talk.quiet, debug=debug or report.talk.debug)


def _check_ids_only(ids_only: bool, format: report.Format | None) -> None:
    if ids_only and format is not None:
        raise FsdtoolError(f"--ids-only and --format {format.value} exclude each other; give one of them")


def _write(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    format: report.Format | None,
    ids_only: bool = False,
    checks: Checks | None = None,
) -> None:
    if ids_only:
        report.write_ids(rows, sys.stdout)
    else:
        report.render(rows, columns, report.resolve_format(format, sys.stdout), sys.stdout, checks=checks)


def _mislabeled_columns(summary: Catalogue) -> tuple[str, ...]:
    if summary.task != "regression":
        return MISLABELED_COLUMNS
    return (MISVALUED_COLUMNS[0], *(("output",) if summary.outputs > 1 else ()), *MISVALUED_COLUMNS[1:])


def _mislabeled_checks(threshold: float, columns: Sequence[str], kind: str) -> Checks:
    """A flagged label is a warning about its example, which is a file where ids are file names."""
    layers = [column for column in columns if column.startswith("margin:")]
    sureness = "confidence" if kind == "label" else "standard_error"

    def message(row: Mapping[str, Any]) -> str:
        margins = ", ".join(f"{column.removeprefix('margin:')} {row[column]:.3g}" for column in layers)
        return (
            f"the {kind} {row[f'given_{kind}']} of {row['id']} is probably {row[f'suggested_{kind}']} "
            f"(score {row['score']:.3g}, {sureness.replace('_', ' ')} {row[sureness]:.3g})"
        ) + (f"; margins in nats: {margins}" if margins else "")

    return Checks(
        suite="fsdtool find-mislabeled",
        name=lambda row: str(row["id"]),
        file=lambda row: row["id"] if isinstance(row["id"], str) else None,
        message=message,
        level=lambda row: "warning" if row["score"] > threshold else "notice",
    )


def _distance_checks(limit: float | None) -> Checks:
    """A distance over the limit is an error; written so that one that is not a number counts as over it."""
    return Checks(
        suite="fsdtool fsd",
        file=lambda row: row["checkpoint"],
        message=lambda row: f"distance {row['distance']:g} of {row['checkpoint']} ({row['metric']}, {row['form']})",
        level=lambda row: "notice" if limit is None or row["distance"] <= limit else "error",
    )
