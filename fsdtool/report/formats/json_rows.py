"""json (one array) and jsonl (an object per line): rows as they come; what is not a finite number is null."""

from __future__ import annotations

import json
import math
from typing import TextIO

from fsdtool.report.formats.row_format import Row, RowFormat, RowsToWrite


def write_json(rows: RowsToWrite, stream: TextIO) -> None:
    """One array."""
    separator = "[\n"
    for row in rows.mappings():
        stream.write(separator + _object(row, stream))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def write_jsonl(rows: RowsToWrite, stream: TextIO) -> None:
    """One object a line."""
    stream.writelines(f"{_object(row, stream)}\n" for row in rows.mappings())


def _object(row: Row, stream: TextIO) -> str:
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
    # What another encoding lacks must be escaped in JSON's own way.
    unicode = (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
    return json.dumps(finite, ensure_ascii=not unicode)


FORMATS = (RowFormat("json", write_json, 30), RowFormat("jsonl", write_jsonl, 40))
