"""The one place that writes: rows to stdout, everything else to stderr.

An estimator returns rows (mappings from a column name to a number, a string or None) and never prints:
`render` turns them into one of the formats of fsdtool.report.formats.  Floats have seven significant digits in the
machine formats, about what float32 holds.  What is not a finite number is `nan`, `inf` or `-inf` in csv and null in
json.

Remarks go through the logger "fsdtool" and reach stderr as `note: ...` or `warning: ...` after `configure`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

from fsdtool.errors import FsdtoolError
from fsdtool.report.formats.row_format import Checks, RowsToWrite, row_formats
from fsdtool.util.terminal import in_colour, one_line, printable

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("fsdtool")

_BOLD, _RED, _YELLOW = "1", "31", "33"
_COLOUR = {"error": _RED, "internal error": _RED, "warning": _YELLOW}


# How rows are written.
Format = Enum("Format", {name: name for name in row_formats()}, type=str)  # type: ignore[misc]  # no literal: modules


@dataclass
class Talk:
    """How much the process says on stderr, and how the library's remarks read there; set by `configure`."""

    quiet: bool = False
    debug: bool = False
    words: Callable[[str], str] = str


talk = Talk()


# Rows


def resolve_format(format: Format | None, stream: TextIO) -> Format:
    """The format asked for, or else a table on a terminal and csv in a pipe or a file."""
    return format or (Format("table") if stream.isatty() else Format("csv"))


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
        row_formats()[format.value].write(RowsToWrite(values, columns, title, checks or Checks("fsdtool")), stream)


def _plain(value: Any) -> str | int | float | bool | None:
    """The value as a Python scalar, floats rounded to seven digits and without a negative zero."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(format(value, ".7g")) + 0.0
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write_ids(rows: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """The `id` of every row, each once, one a line as `one_line` gives it."""
    seen: set[str] = set()
    with _while_read(stream):
        for row in rows:
            text = one_line(row["id"])
            if text not in seen:
                seen.add(text)
                stream.write(f"{text}\n")


def write_markdown(text: str, stream: TextIO) -> None:
    """Markdown as it is, or formatted where `stream` is a terminal."""
    with _while_read(stream):
        if not stream.isatty():
            stream.write(text)
            return
        from rich.console import Console
        from rich.markdown import Markdown

        Console(file=stream, color_system="auto" if in_colour(stream) else None).print(Markdown(text))


# Remarks


class _Remarks(logging.Handler):
    """Writes log records to whatever stderr is at that moment, so that a progress bar can stay below them."""

    def emit(self, record: logging.LogRecord) -> None:
        kinds = {logging.INFO: "note", logging.DEBUG: "debug"}
        say(kinds.get(record.levelno, "warning"), talk.words(record.getMessage()))


_remarks = _Remarks()


def configure(*, quiet: bool, debug: bool, words: Callable[[str], str] = str) -> None:
    """Send remarks to stderr: notes unless `quiet`, warnings always, debugging records only with `debug`.

    words: what becomes of a remark's text.
    """
    talk.quiet, talk.debug, talk.words = quiet, debug, words
    _remarks.setLevel(logging.WARNING if quiet else logging.DEBUG)
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.addHandler(_remarks)


def say(kind: str, message: str) -> None:
    """Write `kind: message` as one line on stderr, the kind in colour on a terminal that wants it."""
    prefix = f"{kind}:"
    if in_colour(sys.stderr):
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
        console=Console(file=sys.stderr, color_system="auto" if in_colour(sys.stderr) else None),
        # Rows may be written to stdout meanwhile and must not end up on stderr.
        redirect_stdout=False,
    )


# Streams


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
