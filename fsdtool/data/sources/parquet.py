"""Parquet tables."""

from __future__ import annotations

from fsdtool.data.registry import Source, opened_by

_HOLDS = (
    "columns as in a CSV table, or one column of lists of numbers, read by row group; needs "
    "`pip install 'fsdtool[parquet]'`"
)
SOURCE = Source(
    spec="file.parquet",
    place=50,
    opens=opened_by("fsdtool.data.formats.parquet", "open_parquet"),
    rows=(("`train.parquet`", _HOLDS),),
    suffixes=(".parquet",),
)
