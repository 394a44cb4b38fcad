"""`fsdtool influence`: rows of queries or of examples on themselves."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsdtool.cli.answers import ExampleRowOptions, TalkOptions
from fsdtool.cli.arguments import check_output, refuse_options, rows_named, warn_of_fit
from fsdtool.cli.command import Command
from fsdtool.cli.groups import ComputeOptions, DataOptions, NetworkOptions, WeightOptions
from fsdtool.cli.networks import check_network_options, summarized_network
from fsdtool.cli.options import (
    DATA_HELP,
    DEFAULT_SOLVER,
    Device,
    Solver,
    SummaryFile,
)
from fsdtool.errors import FsdtoolError
from fsdtool.influence.matrix_formats.matrix_format import suffixes

if TYPE_CHECKING:
    from fsdtool.influence.self_scores import SelfInfluence

MATRIX_SUFFIXES = suffixes()
INFLUENCE_COLUMNS = (
    *("query_id", "kind", "rank", "id", "label", "loss_change_if_removed"),
    *("query_label", "query_prediction"),
)
SELF_INFLUENCE_COLUMNS = ("id", "label", "self_influence")


def influence_command(
    context: typer.Context,
    summary: SummaryFile,
    *,
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
            metavar="FILE",
            help="Also write all values, float32 (queries, training examples), to this "
            f"{' or '.join(MATRIX_SUFFIXES)}.",
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
    ] = DEFAULT_SOLVER,
    network: NetworkOptions,
    reading: DataOptions,
    computing: ComputeOptions,
    weights: WeightOptions,
    answer: ExampleRowOptions,
    talking: TalkOptions,
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
    talk = talking.talk(context)
    answer.check()
    if (queries is None) is not of_itself:
        found = "both are given" if of_itself else "neither is given"
        raise FsdtoolError(f"either --queries or --self is needed and {found}; give one of them")
    check_network_options(network, weights)
    if of_itself:
        needless: dict[str, object] = {"model": network.model, "checkpoint": network.checkpoint} if data is None else {}
        other = solver is not DEFAULT_SOLVER
        needless |= {"mean": mean, "misclassified": misclassified, "matrix": matrix, "solver": other}
        refuse_options("with --self", "--queries", **needless)
    if matrix is not None:
        inputs = [given for given in (summary, queries, data) if given is not None]
        check_output(matrix, "--matrix", inputs=inputs, suffix=MATRIX_SUFFIXES)

    if of_itself and data is None:
        answer.write(islice(_recorded(summary, computing, answer.ids).rows(), top), SELF_INFLUENCE_COLUMNS)
        return

    from fsdtool.influence.scores import influence, self_influence
    from fsdtool.summary.reader import load

    chosen = computing.choose_device()
    opened = load(summary)
    warn_of_fit(opened)
    model = summarized_network(opened, network, weights)
    candidates = None if data is None else reading.load(opened, data)
    common: dict[str, Any] = {"data": candidates, "among": rows_named(opened, answer.ids, candidates), "model": model}
    common |= {"device": chosen, "batch_size": computing.batch_size, "track": talk.track}
    if queries is None:
        of_examples = self_influence(opened, **common)
        answer.write(islice(of_examples.rows(), top), SELF_INFLUENCE_COLUMNS)
    else:
        asked: dict[str, Any] = {"top": top or 10, "mean": mean, "misclassified": misclassified, "matrix": matrix}
        explained = influence(opened, reading.load(opened, queries), solver=solver.value, **asked, **common)
        answer.write(explained.rows(), INFLUENCE_COLUMNS)


def _recorded(summary: Path, computing: ComputeOptions, ids: str | None) -> SelfInfluence:
    """Without torch, whose import takes longer than all the rest; but a device that is asked for must be there."""
    from fsdtool.influence.self_scores import recorded_self_influence
    from fsdtool.summary.catalogue import open_catalogue

    if computing.device is Device.cuda:
        computing.choose_device()
    opened = open_catalogue(summary)
    warn_of_fit(opened)
    return recorded_self_influence(opened, among=rows_named(opened, ids))


COMMAND = Command(
    "influence",
    influence_command,
    "Explain predictions by training examples.",
    place=30,
    columns={"--queries": INFLUENCE_COLUMNS, "--self": SELF_INFLUENCE_COLUMNS},
)
