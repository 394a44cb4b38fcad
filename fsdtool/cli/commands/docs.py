"""`fsdtool docs`: the documents that lie beside the code as Markdown, listed or printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

import fsdtool
from fsdtool.cli.answers import TalkOptions, write
from fsdtool.cli.command import Command
from fsdtool.cli.options import OutputFormat
from fsdtool.errors import FsdtoolError
from fsdtool.report import console

FOLDER = Path(fsdtool.__file__).parent / "docs"
DOCS_COLUMNS = ("name", "about")


def document_names() -> list[str]:
    """The names of the documents, sorted. Raises FsdtoolError where there are none."""
    names = sorted(path.stem for path in FOLDER.glob("*.md"))
    if not names:
        raise FsdtoolError(f"the documents are missing in {FOLDER}; install fsdtool again")
    return names


def _read(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def _rows() -> Iterator[dict[str, str]]:
    """Each document's name and what it is about, which is its first line."""
    for name in document_names():
        yield {"name": name, "about": _read(name).split("\n", 1)[0].removeprefix("# ")}


def _complete(incomplete: str) -> list[str]:
    return [name for name in document_names() if name.startswith(incomplete)]


def docs_command(
    context: typer.Context,
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The document to print.", autocompletion=_complete)
    ] = None,
    format: OutputFormat = None,
    talking: TalkOptions,
) -> None:
    """Print a document of the reference, or without NAME list the documents.

    A document is formatted for reading on a terminal, and Markdown in a pipe.

    \b
    Example:
      fsdtool docs
      fsdtool docs data
      fsdtool docs summary-file > summary-file.md
    """
    talking.talk(context)
    if name is None:
        write(_rows(), DOCS_COLUMNS, format)
        return
    if name not in document_names():
        raise FsdtoolError(f"no document is called '{name}'; give one of {', '.join(document_names())}")
    if format is not None:
        raise FsdtoolError(f"--format {format.value} is for the list of documents; leave it or '{name}' out")
    console.write_markdown(_read(name), sys.stdout)


COMMAND = Command(
    "docs",
    docs_command,
    "Print the reference: data, models, columns, the method.",
    place=60,
    columns={"": DOCS_COLUMNS},
)
