"""Text for a terminal: in one line that it takes for no command, and in colour where it is wanted."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TextIO

# What a terminal could take for a line break or an escape sequence.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def printable(text: str) -> str:
    """`text` in one line that no terminal takes for a command: each run of control characters is a space."""
    return _CONTROL.sub(" ", text)


def one_line(identifier: Any) -> str:
    """An id as text in one line: control characters are escaped as in Python, all else is as it is."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(identifier))


def in_colour(stream: TextIO) -> bool:
    """NO_COLOR is stronger than FORCE_COLOR, which is about the talk: data in a pipe stay plain."""
    if os.environ.get("NO_COLOR"):
        return False
    if stream is sys.stderr and os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
