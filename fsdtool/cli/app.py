"""The commands by name: each parses its options, calls one estimator and hands its rows to `report`.

The estimators are imported inside the commands, so that help and usage errors do not wait for torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fsdtool import __version__
from fsdtool.cli.answers import TalkOptions
from fsdtool.cli.command import find_commands
from fsdtool.cli.groups import flat
from fsdtool.errors import ExitStatus


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


def every_command(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    talking: TalkOptions,
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
    talking.talk(context)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitStatus.USER_ERROR)


app.callback(
    invoke_without_command=True,
    epilog=_exit_codes("findings over the threshold that --max-flagged, --max-rate or --max-distance sets"),
)(flat(every_command))
for command in find_commands():
    app.command(command.name, short_help=command.line, epilog=_exit_codes(command.findings))(command.callback)
