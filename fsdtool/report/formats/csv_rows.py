"""csv (RFC 4180, but lines end in "\\n"): one row after the other as they come, never wrapped, never coloured.

Text that a spreadsheet would run as a formula (it begins with = + - @, a tab or a line break, and is no number) gets an
apostrophe in front (fsdtool.util.csv_cells); numbers, also those in text such as a class "-1", stay as they are.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import TextIO

from fsdtool.report.formats.row_format import RowFormat, Value, in_text
from fsdtool.util.csv_cells import escaped

DIGITS = 7


class _UnixLines:
    """What csv.writer writes to: a row ends in "\\n", yet a carriage return inside a cell is still quoted.

    With "\\n" as the writer's own line end, Python before 3.13 leaves "\\r" bare in the middle of a cell.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, row: str) -> None:
        self.stream.write(row.removesuffix("\r\n") + "\n")


def write_csv(values: Iterable[Sequence[Value]], columns: Sequence[str], stream: TextIO) -> None:
    """Rows of plain Python scalars under the header `columns`."""
    writer = csv.writer(_UnixLines(stream), lineterminator="\r\n")
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(value) for value in row] for row in values)


def _cell(value: Value) -> str:
    text = in_text(value, DIGITS)
    return escaped(text) if isinstance(value, str) else text


FORMATS = (RowFormat("csv", lambda rows, stream: write_csv(rows.values, rows.columns, stream), 20),)
