"""Text from files and users as HTML: it stays text, wherever on a page it stands."""

from __future__ import annotations

import html
import re
from typing import Any

from fsdtool.util.terminal import printable

# Embeddings, overrides and isolates: a name could show as another.
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def escape(value: Any) -> str:
    """`value` as text of an element or of a quoted attribute.

    Control characters become spaces; those that turn the direction of what follows become a visible mark.
    """
    return html.escape(_TURNS.sub("\N{REPLACEMENT CHARACTER}", printable(str(value))))


def isolated(value: Any) -> str:
    """`value` as an element of its own, so that right-to-left text does not reorder what stands beside it.

    Long paths and names may be broken after a separator.
    """
    pieces = re.split(r"(?<=[/_])(?=[^/_])", str(value))
    return f"<bdi>{'<wbr>'.join(map(escape, pieces))}</bdi>"


def shorten(text: str, length: int) -> str:
    """At most `length` characters of `text`, with an ellipsis in the middle where some are left out."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"


def count(value: float) -> str:
    """An estimated number for people: whole from ten on, thousands separated, otherwise with one decimal."""
    return f"{value:,.0f}" if abs(value) >= 9.95 else f"{value:.1f}"
