"""Talk: what a command line says on stderr beside its rows.

A `Talk` belongs to one command line and knows how much that says. The library makes its remarks through the logger
"fsdtool", to which importing the package attaches nothing. Within `Talk.remarks` they reach stderr as `note: ...` or
`warning: ...`; after it the logger is as it was before.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from fsdtool.report.console import while_read
from fsdtool.util.terminal import in_colour, printable

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("fsdtool")

_BOLD, _RED, _YELLOW = "1", "31", "33"
_COLOUR = {"error": _RED, "internal error": _RED, "warning": _YELLOW}


def say(kind: str, message: str) -> None:
    """Write `kind: message` as one line on stderr, the kind in colour on a terminal that wants it."""
    prefix = f"{kind}:"
    if in_colour(sys.stderr):
        prefix = f"\x1b[{_COLOUR.get(kind, _BOLD)}m{prefix}\x1b[0m"
    with while_read(sys.stderr):
        print(prefix, printable(message), file=sys.stderr)


def print_pairs(title: str, pairs: Iterable[tuple[str, str]], stream: TextIO) -> None:
    """One `key: value` per line under `title`."""
    pairs = [(printable(key), printable(str(value))) for key, value in pairs]
    width = max((len(key) for key, _ in pairs), default=0) + 1
    with while_read(stream):
        print(printable(title), file=stream)
        for key, value in pairs:
            print(f"  {f'{key}:':<{width}} {value}".rstrip(), file=stream)


class Talk:
    """How one command line talks.

    quiet: no notes, no progress, no table of what was done; warnings stay.  debug: debugging remarks too.  words: what
    becomes of the text of a remark.
    """

    def __init__(self, *, quiet: bool = False, debug: bool = False, words: Callable[[str], str] = str) -> None:
        self.quiet, self.debug, self.words = quiet, debug, words

    @contextmanager
    def remarks(self) -> Iterator[None]:
        """Within it the library's remarks are said on stderr, by this talk alone.

        A command line may run inside another: the outer one's talk waits until the inner one has ended.
        """
        mine, level = _Remarks(self), log.level
        log.addHandler(mine)
        log.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            log.removeHandler(mine)
            log.setLevel(level)

    def print_summary(self, title: str, pairs: Iterable[tuple[str, str]]) -> None:
        """One `key: value` per line under `title`, on stderr; nothing when quiet."""
        if not self.quiet:
            print_pairs(title, pairs, sys.stderr)

    @contextmanager
    def track(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A progress bar on stderr: yields `advance(n)`, to be called when n more of `total` examples are done.

        Shows the rate and the time left, or without a total only that something goes on. There is a bar on a
        terminal only; elsewhere, and when quiet, `advance` does nothing.
        """
        if self.quiet or not sys.stderr.isatty():
            yield lambda count: None
            return
        with _progress(counting=total is not None) as progress:
            task = progress.add_task(label, total=total)
            yield lambda count: progress.advance(task, count)


class _Remarks(logging.Handler):
    """Writes log records to whatever stderr is at that moment, so that a progress bar can stay below them."""

    def __init__(self, talk: Talk) -> None:
        super().__init__()
        self.talk = talk

    def filter(self, record: logging.LogRecord) -> bool:
        if self is not [handler for handler in log.handlers if isinstance(handler, _Remarks)][-1]:
            return False
        if record.levelno < logging.INFO:
            return self.talk.debug and not self.talk.quiet
        return record.levelno >= logging.WARNING or not self.talk.quiet

    def emit(self, record: logging.LogRecord) -> None:
        kinds = {logging.INFO: "note", logging.DEBUG: "debug"}
        say(kinds.get(record.levelno, "warning"), self.talk.words(record.getMessage()))


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
