"""Cells of CSV: text that a spreadsheet would run as a formula is written with an apostrophe in front, and read back.

Text of apostrophes before such a formula gets one more, so that what was written is found by taking one away.
"""

from __future__ import annotations

import re
from collections.abc import Container

# A spreadsheet takes a cell that begins like this for a formula, and runs it; a plain number it only reads.
_FORMULA = re.compile(r"'*(?![+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\Z)[=+\-@＝＋－＠\t\r\n]", re.ASCII | re.IGNORECASE)


def escaped(text: str) -> str:
    """The cell to write for a text."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescaped(cell: str) -> str:
    """The text of which `escaped` makes the cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def known_text(text: str, known: Container[str]) -> str:
    """The text, or the one among the known texts that differs from it by an apostrophe in front."""
    return next((option for option in (text, text.removeprefix("'"), f"'{text}") if option in known), text)
