"""The commands by name: each parses its options, calls one estimator and hands its rows to `report`.

The estimators are imported inside the commands, so that help and usage errors do not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fsdtool import __version__, exits, report
from fsdtool.answers import talk
from fsdtool.command_fsd import fsd_command
from fsdtool.command_influence import influence_command
from fsdtool.command_mislabeled import find_mislabeled_command
from fsdtool.command_summarize import summarize_command
from fsdtool.errors import ExitStatus
from fsdtool.options import Debug, OutputFormat, Quiet, SummaryFile

INSPECT_COLUMNS = ("part", "bytes", "bytes_per_example", "description")


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
    talk(quiet, debug)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitStatus.USER_ERROR)


def inspect_command(
    summary: SummaryFile, format: OutputFormat = None, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Show what a summary holds: where it comes from, and the size of each part.

    In csv and json the sizes alone are on stdout, and where it comes from on stderr.

    \b
    Example:
      fsdtool inspect summary.h5
    """
    talk(quiet, debug)

    from fsdtool.inspection import inspect_rows

    header, rows = inspect_rows(summary)
    chosen = report.resolve_format(format, sys.stdout)
    report.print_summary(str(summary), header, sys.stdout if chosen is report.Format.table else None)
    report.render(rows, INSPECT_COLUMNS, chosen, sys.stdout)


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
    talk(quiet, debug)

    from fsdtool.demo import run

    run(folder, partial(exits.run, app))


def _register(name: str, function: Callable[..., None], short_help: str, findings: str | None = None) -> None:
    app.command(name, short_help=short_help, epilog=_exit_codes(findings))(function)


_register("summarize", summarize_command, "Go over the training data and write the summary.")
_register(
    "find-mislabeled",
    find_mislabeled_command,
    "List the labels that are probably wrong.",
    "more labels are flagged than --max-flagged or --max-rate allows",
)
_register("influence", influence_command, "Explain predictions by training examples.")
_register("fsd", fsd_command, "Measure how far checkpoints have moved.", "a distance is over --max-distance")
_register("inspect", inspect_command, "Show what a summary holds, and its size.")
_register("demo", demo_command, "Try it all on the sample data.")
