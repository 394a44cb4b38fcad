"""`fsdtool inspect`: what a summary holds, as rows of sizes under a head that says where it comes from."""

from __future__ import annotations

import sys

import typer

from fsdtool.cli.answers import TalkOptions
from fsdtool.cli.command import Command
from fsdtool.cli.options import OutputFormat, SummaryFile
from fsdtool.report import console
from fsdtool.report.talk import print_pairs

INSPECT_COLUMNS = ("part", "bytes", "bytes_per_example", "description")


def inspect_command(
    context: typer.Context,
    *,
    summary: SummaryFile,
    format: OutputFormat = None,
    talking: TalkOptions,
) -> None:
    """Show what a summary holds: where it comes from, and the size of each part.

    In csv and json the sizes alone are on stdout, and where it comes from on stderr.

    \b
    Example:
      fsdtool inspect summary.h5
    """
    talk = talking.talk(context)

    from fsdtool.summary.inspection import inspect_rows

    header, rows = inspect_rows(summary)
    chosen = console.resolve_format(format, sys.stdout)
    if chosen is console.Format["table"]:
        print_pairs(str(summary), header, sys.stdout)
    else:
        talk.print_summary(str(summary), header)
    console.render(rows, INSPECT_COLUMNS, chosen, sys.stdout)


COMMAND = Command(
    "inspect",
    inspect_command,
    "Show what a summary holds, and its size.",
    place=50,
    columns={"": INSPECT_COLUMNS},
)
