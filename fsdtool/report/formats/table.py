"""A table for people: columns in line, fitted to the terminal when there is one."""

from __future__ import annotations

from typing import TextIO

from fsdtool.report.formats.row_format import RowFormat, RowsToWrite, in_text
from fsdtool.util.terminal import in_colour, printable

DIGITS = 6


def write_table(rows: RowsToWrite, stream: TextIO) -> None:
    """All rows at once, since a column is as wide as its widest value."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    values = list(rows.values)
    table = Table(box=None, pad_edge=False)
    for position, column in enumerate(rows.columns):
        present = [row[position] for row in values if row[position] is not None]
        if present and not any(isinstance(value, str) for value in present):
            table.add_column(Text(printable(column)), justify="right", no_wrap=True)
        else:
            table.add_column(Text(printable(column)), overflow="fold")
    for row in values:
        table.add_row(*(Text(printable(in_text(value, DIGITS))) for value in row))
    if rows.title:
        stream.write(f"{printable(rows.title)}\n")
    console = Console(
        file=stream,
        color_system="auto" if in_colour(stream) else None,
        # Through a pager or into a file there is no width to keep to.
        width=None if stream.isatty() else 10_000,
    )
    console.print(table)


FORMATS = (RowFormat("table", write_table, 10),)
