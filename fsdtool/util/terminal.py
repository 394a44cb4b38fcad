"""Text for a terminal: in one line that it takes for no command, and in colour where it is wanted."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from fsdtool.errors import CONTROL


def printable(text: str) -> str:
    """`text` in one line that no terminal takes for a command: each run of control characters is a space."""
    return CONTROL.sub(" ", text)


def one_line(identifier: Any) -> str:
    """An id as text in one line: control characters are escaped as in Python, all else is as it is."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(identifier))


def in_colour(stream: TextIO) -> bool:
    """NO_COLOR is stronger than FORCE_COLOR, which is about the talk: data in a pipe stay plain."""
    if os.environ.get("NO_COLOR"):
        return False
    if stream is sys.stderr and os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
