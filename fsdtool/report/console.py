"""The one place that writes: rows to stdout, everything else to stderr.

An estimator returns rows (mappings from a column name to a number, a string or None) and never prints:
`render` turns rows into one of six formats:

- `table`, for people: aligned columns, fitted to the terminal when there is one;
- `csv` (RFC 4180, but lines end in "\\n"), `json` (one array) and `jsonl` (an object per line), for programs:
  one row after the other as they come, never wrapped, never coloured;
- `github` and `junit`, for CI: rows as checks (fsdtool.report.ci_checks).

In csv, text that a spreadsheet would run as a formula (it begins with = + - @, a tab or a line break, and is no
number) gets an apostrophe in front (fsdtool.util.csv_cells); numbers, also those in text such as a class "-1", stay as
they are.

Floats have seven significant digits in the machine formats, about what float32 holds. What is not a finite
number is `nan`, `inf` or `-inf` in csv and null in json.

Remarks go through the logger "fsdtool" and reach stderr as `note: ...` or `warning: ...` after `configure`.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

from fsdtool.errors import FsdtoolError
from fsdtool.report.ci_checks import Checks, write_github, write_junit
from fsdtool.util.csv_cells import escaped

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("fsdtool")

# What a terminal could take for a line break or an escape sequence.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_BOLD, _RED, _YELLOW = "1", "31", "33"
_COLOUR = {"error": _RED, "internal error": _RED, "warning": _YELLOW}


class Format(str, Enum):
    """How rows are written."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    github = "github"
    junit = "junit"


@dataclass
class Talk:
    """How much the process says on stderr; one per process, set by `configure`."""

    quiet: bool = False
    debug: bool = False


talk = Talk()


# Rows


def resolve_format(format: Format | None, stream: TextIO) -> Format:
    """The format asked for, or else a table on a terminal and csv in a pipe or a file."""
    return format or (Format.table if stream.isatty() else Format.csv)


def render(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    format: Format,
    stream: TextIO,
    title: str | None = None,
    checks: Checks | None = None,
) -> None:
    """Write `columns` of every row to `stream`; a column that a row lacks is None.

    NumPy and torch scalars count as the numbers they hold. `title` stands above a table and nowhere else; `checks`
    says how rows read in the formats for CI.
    A reader who has seen enough (`| head`) ends the rows without an error; the exit code stays the caller's.
    """
    values = ([_plain(row.get(column)) for column in columns] for row in rows)
    with _while_read(stream):
        if format is Format.table:
            _write_table(list(values), columns, stream, title)
        elif format is Format.csv:
            write_csv(values, columns, stream)
        elif format is Format.json:
            _write_json(values, columns, stream)
        elif format is Format.jsonl:
            stream.writelines(f"{_json_object(columns, row, stream)}\n" for row in values)
        else:
            write = write_github if format is Format.github else write_junit
            write((dict(zip(columns, row, strict=True)) for row in values), checks or Checks("fsdtool"), stream)


def _plain(value: Any) -> str | int | float | bool | None:
    """The value as a Python scalar, floats rounded to seven digits and without a negative zero."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(format(value, ".7g")) + 0.0
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _text(value: str | int | float | bool | None, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(value, f".{digits}g") if isinstance(value, float) else str(value)


class _UnixLines:
    """What csv.writer writes to: a row ends in "\\n", yet a carriage return inside a cell is still quoted.

    With "\\n" as the writer's own line end, Python before 3.13 leaves "\\r" bare in the middle of a cell.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, row: str) -> None:
        self.stream.write(row.removesuffix("\r\n") + "\n")


def write_csv(values: Iterable[Sequence[Any]], columns: Sequence[str], stream: TextIO) -> None:
    """Rows of plain Python scalars under the header `columns`, as in the format csv."""
    writer = csv.writer(_UnixLines(stream), lineterminator="\r\n")
    writer.writerow([_csv_cell(column) for column in columns])
    writer.writerows([_csv_cell(value) for value in row] for row in values)


def _csv_cell(value: str | int | float | bool | None) -> str:
    text = _text(value, 7)
    return escaped(text) if isinstance(value, str) else text


def _write_json(values: Iterable[list], columns: Sequence[str], stream: TextIO) -> None:
    separator = "[\n"
    for row in values:
        stream.write(separator + _json_object(columns, row, stream))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def _json_object(columns: Sequence[str], row: list, stream: TextIO) -> str:
    finite = [None if isinstance(v, float) and not math.isfinite(v) else v for v in row]
    # What another encoding lacks must be escaped in JSON's own way.
    unicode = (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
    return json.dumps(dict(zip(columns, finite, strict=True)), ensure_ascii=not unicode)


def write_ids(rows: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """The `id` of every row, each once, one a line as `one_line` gives it."""
    seen: set[str] = set()
    with _while_read(stream):
        for row in rows:
            text = one_line(row["id"])
            if text not in seen:
                seen.add(text)
                stream.write(f"{text}\n")


def _write_table(values: list[list], columns: Sequence[str], stream: TextIO, title: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for position, column in enumerate(columns):
        present = [row[position] for row in values if row[position] is not None]
        if present and not any(isinstance(value, str) for value in present):
            table.add_column(Text(printable(column)), justify="right", no_wrap=True)
        else:
            table.add_column(Text(printable(column)), overflow="fold")
    for row in values:
        table.add_row(*(Text(printable(_text(value, 6))) for value in row))
    if title:
        stream.write(f"{printable(title)}\n")
    console = Console(
        file=stream,
        color_system="auto" if _in_colour(stream) else None,
        # Through a pager or into a file there is no width to keep to.
        width=None if stream.isatty() else 10_000,
    )
    console.print(table)


def write_markdown(text: str, stream: TextIO) -> None:
    """Markdown as it is, or formatted where `stream` is a terminal."""
    with _while_read(stream):
        if not stream.isatty():
            stream.write(text)
            return
        from rich.console import Console
        from rich.markdown import Markdown

        Console(file=stream, color_system="auto" if _in_colour(stream) else None).print(Markdown(text))


# Remarks


class _Remarks(logging.Handler):
    """Writes log records to whatever stderr is at that moment, so that a progress bar can stay below them."""

    def emit(self, record: logging.LogRecord) -> None:
        kinds = {logging.INFO: "note", logging.DEBUG: "debug"}
        say(kinds.get(record.levelno, "warning"), record.getMessage())


_remarks = _Remarks()


def configure(*, quiet: bool, debug: bool) -> None:
    """Send remarks to stderr: notes unless `quiet`, warnings always, debugging records only with `debug`."""
    talk.quiet, talk.debug = quiet, debug
    _remarks.setLevel(logging.WARNING if quiet else logging.DEBUG)
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.addHandler(_remarks)


def say(kind: str, message: str) -> None:
    """Write `kind: message` as one line on stderr, the kind in colour on a terminal that wants it."""
    prefix = f"{kind}:"
    if _in_colour(sys.stderr):
        prefix = f"\x1b[{_COLOUR.get(kind, _BOLD)}m{prefix}\x1b[0m"
    with _while_read(sys.stderr):
        print(prefix, printable(message), file=sys.stderr)


def print_summary(title: str, pairs: Iterable[tuple[str, str]], stream: TextIO | None = None) -> None:
    """One `key: value` per line under `title`: on stderr, and then not when quiet, or on `stream` as data."""
    if stream is None and talk.quiet:
        return
    stream = stream or sys.stderr
    pairs = [(printable(key), printable(str(value))) for key, value in pairs]
    width = max((len(key) for key, _ in pairs), default=0) + 1
    with _while_read(stream):
        print(printable(title), file=stream)
        for key, value in pairs:
            print(f"  {f'{key}:':<{width}} {value}".rstrip(), file=stream)


@contextmanager
def track(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr: yields `advance(n)`, to be called when n more of `total` examples are done.

    Shows the rate and the time left, or without a total only that something goes on. There is a bar on a
    terminal only; elsewhere, and when quiet, `advance` does nothing.
    """
    if talk.quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    with _progress(counting=total is not None) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def _progress(counting: bool) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} examples/s" if speed else "")

    counts = (MofNCompleteColumn(), Rate(), TimeRemainingColumn()) if counting else ()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counts,
        console=Console(file=sys.stderr, color_system="auto" if _in_colour(sys.stderr) else None),
        # Rows may be written to stdout meanwhile and must not end up on stderr.
        redirect_stdout=False,
    )


# Text and streams


def printable(text: str) -> str:
    """`text` in one line that no terminal takes for a command: each run of control characters is a space."""
    return _CONTROL.sub(" ", text)


def one_line(identifier: Any) -> str:
    """An id as text in one line: control characters are escaped as in Python, all else is as it is."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(identifier))


def abandon(stream: TextIO) -> None:
    """Send what is still written to `stream` nowhere: whoever read it has gone.

    Without this, Python's own flush at exit would fail again and turn the exit code into 120.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def _while_read(stream: TextIO) -> Iterator[None]:
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        abandon(stream)
    except OSError as error:
        if stream not in (sys.stdout, sys.stderr):  # the rows' own source failed, or a file did
            raise
        abandon(stream)
        if stream is sys.stdout:  # of stderr nobody can be told
            raise FsdtoolError(
                f"the output cannot be written ({error.strerror or error}); free some space or send it elsewhere"
            ) from error


def _in_colour(stream: TextIO) -> bool:
    """NO_COLOR is stronger than FORCE_COLOR, which is about the talk: data in a pipe stay plain."""
    if os.environ.get("NO_COLOR"):
        return False
    if stream is sys.stderr and os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
