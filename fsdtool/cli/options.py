"""Options that several commands share, as typer's annotated types, and the choices they offer."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fsdtool.curvature.sources import SOURCES
from fsdtool.data.registry import data_help
from fsdtool.influence.solvers import KRONECKER, SOLVERS
from fsdtool.laftr.form_choice import AUTO, FORMS
from fsdtool.laftr.gates.policy import policy_names
from fsdtool.laftr.metrics import metrics
from fsdtool.report import console
from fsdtool.tasks.task import task_names

Task = Enum("Task", {name: name for name in task_names()}, type=str)  # type: ignore[misc]  # mypy knows literals only


class Layout(str, Enum):
    as_is = "as-is"
    channels_first = "channels-first"
    one_channel = "one-channel"
    flat = "flat"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


# What the library defines is offered as it is there; none of these modules imports torch.
Metric = Enum("Metric", {name: name for name in metrics()}, type=str)  # type: ignore[misc]
Form = Enum("Form", {name: name for name in FORMS}, type=str)  # type: ignore[misc]
Gates = Enum("Gates", {name: name for name in policy_names()}, type=str)  # type: ignore[misc]
Curvature = Enum("Curvature", {name: name for name in SOURCES}, type=str)  # type: ignore[misc]
Solver = Enum("Solver", {name: name for name in SOLVERS}, type=str)  # type: ignore[misc]
DEFAULT_FORM, DEFAULT_SOLVER = Form(AUTO), Solver(KRONECKER)

SummaryFile = Annotated[Path, typer.Argument(metavar="SUMMARY", help="The file written by 'fsdtool summarize'.")]
OutputFormat = Annotated[
    console.Format | None,
    typer.Option("--format", help="How to write the rows. [default: table on a terminal, csv in a pipe]"),
]
Ids = Annotated[
    str | None,
    typer.Option(
        "--ids", metavar="FILE", help="Only the training examples whose ids the file lists, one a line (-: stdin)."
    ),
]
IdsOnly = Annotated[bool, typer.Option("--ids-only", help="Write only the ids of training examples, one a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress; warnings stay.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="KEY=VALUE", help="An argument of the factory; may be repeated."),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Run the code in a pickled checkpoint. Only if you trust it.")
]
Ema = Annotated[
    bool, typer.Option("--ema", help="Take the moving average of the weights that the checkpoint holds beside them.")
]
CheckpointKey = Annotated[
    str | None,
    typer.Option(
        "--checkpoint-key",
        metavar="KEY",
        help="Where in the checkpoint the weights stand, of several: a key, nested with dots, or a prefix of names.",
    ),
]
XKey = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Array or columns that hold the inputs; several as ids,mask or ARGUMENT=KEY,..."),
]
YKey = Annotated[str | None, typer.Option(metavar="NAME", help="Array or column that holds the targets.")]
IdKey = Annotated[
    str | None, typer.Option(metavar="NAME", help="Array or column that holds the ids; 'row' for row numbers.")
]
Split = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which split of the data. [default: train, or the only]")
]
Labels = Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Labels by id that replace those of the data.")]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Leave out, count and list examples that cannot be read (reads the data once more)."
    ),
]
Missing = Annotated[
    str | None,
    typer.Option(
        metavar="WORD,...",
        help="Labels in text that mean a missing one; '' for none. [default: NA, N/A, #N/A, NaN, NaT, null, none, ?]",
    ),
]
Transform = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="The whole preprocessing: torchvision:WEIGHTS or path/file.py:function."),
]
Workers = Annotated[int, typer.Option(min=0, metavar="N", help="Processes that read images or a Python data set.")]
DeviceChoice = Annotated[Device, typer.Option("--device", help="Where to compute; auto takes CUDA if there.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Examples computed at once.")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of everything drawn at random.")]

DATA_HELP = data_help()
MODEL_HELP = (
    "path/file.py:factory, package.module:factory, torchvision:NAME, timm:NAME, transformers:CLASS or mlp:ACTIVATION."
)

LastLayerModel = Annotated[
    str | None, typer.Option("--model", metavar="SPEC", help=f"Only for a summary in last layer mode: {MODEL_HELP}")
]
LastLayerCheckpoint = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="FILE", help="The weights that belong to --model.")
]
