"""Names and numbers as a reader of the page sees them.  Escaping is left to the templates (fsdtool.report.html)."""

from __future__ import annotations

import re
from typing import Any

from fsdtool.util.terminal import printable

# Embeddings, overrides and isolates: a name could show as another.
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def visible(value: Any) -> str:
    """`value` as text in which nothing hides.

    Control characters become spaces; those that turn the direction of what follows become a visible mark.
    """
    return _TURNS.sub("\N{REPLACEMENT CHARACTER}", printable(str(value)))


def pieces(value: Any) -> list[str]:
    """A path or a name cut after its separators: there the page may break the line."""
    return re.split(r"(?<=[/_])(?=[^/_])", str(value))


def shorten(text: str, length: int) -> str:
    """At most `length` characters of `text`, with an ellipsis in the middle where some are left out."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"


def count(value: float) -> str:
    """An estimated number for people: whole from ten on, thousands separated, otherwise with one decimal."""
    return f"{value:,.0f}" if abs(value) >= 9.95 else f"{value:.1f}"


def share(value: float) -> str:
    """A number between 0 and 1 with three digits, of which the last is never rounded up to certainty."""
    return f"{min(value, 0.999):.3f}" if value < 1 else "1.000"
