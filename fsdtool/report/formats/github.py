"""Rows as GitHub's workflow commands.  Names come from the data: what the format takes for its own is escaped."""

from __future__ import annotations

import re
from typing import TextIO

from fsdtool.report.formats.row_format import RowFormat, RowsToWrite

_CONTROL = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]+")


def write_github(rows: RowsToWrite, stream: TextIO) -> None:
    """One workflow command for each row: `::warning file=PATH,title=SUITE::MESSAGE`."""
    checks = rows.checks
    for row in rows.mappings():
        file = checks.file(row)
        properties = ([f"file={_property(file)}"] if file else []) + [f"title={_property(checks.suite)}"]
        stream.write(f"::{checks.level(row)} {','.join(properties)}::{_data(checks.message(row))}\n")


def _data(text: str) -> str:
    text = _CONTROL.sub(" ", text)
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


FORMATS = (RowFormat("github", write_github, 50),)
