"""What can go wrong, and what the shell is told.

Only `FsdtoolError` is the user's fault; its subclasses say what is at fault. Its message is one line that says what was
wrong, the value found and what to do. Any other exception that reaches the command line is a fault of the tool.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable

# Everything a terminal could take for a line break or an escape sequence.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class ExitStatus(enum.IntEnum):
    """Exit codes of every command."""

    OK = 0
    FINDINGS = 1
    USER_ERROR = 2
    INTERNAL_ERROR = 3
    INTERRUPTED = 130


class FsdtoolError(Exception):
    """The user's input is at fault.

    Control characters in the message become spaces: it quotes names from files, and stays one harmless line.
    """

    def __init__(self, message: str):
        super().__init__(CONTROL.sub(" ", message))


class DataError(FsdtoolError):
    """Data that cannot be opened, read or used.

    example: the id, as text, of the example that is at fault; None where it is no single one.
    """

    def __init__(self, message: str, *, example: object = None):
        super().__init__(message)
        self.example = None if example is None else str(example)


class ModelError(FsdtoolError):
    """A model's code or checkpoint that cannot be loaded or do not fit together; so for other code that a spec names.

    path: the checkpoint's file or the spec of the code, as text; None where the message alone says it.
    """

    def __init__(self, message: str, *, path: object = None):
        super().__init__(message)
        self.path = None if path is None else str(path)


class SummaryError(FsdtoolError):
    """A summary file that is missing, damaged, of another kind or schema, or lacks what is asked for.

    path: the file, as text.
    """

    def __init__(self, message: str, *, path: object = None):
        super().__init__(message)
        self.path = None if path is None else str(path)


def describe(error: BaseException) -> str:
    """The type of a foreign exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def some(items: list[str], limit: int = 4) -> str:
    """The first few items, and how many more there are: `a, b and 3 more`."""
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def perhaps(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The known name closest to a wrong one, as the end of a clause: ` (perhaps 'model.py')`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (perhaps '{near[0]}')" if near else ""
