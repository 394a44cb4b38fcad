"""CSV files: tables of numbers, or lists of image files."""

from __future__ import annotations

from fsdtool.data.registry import Source, opened_by

_TABLE = (
    "numeric features, a target column `y`, `target` or `label` (or `--y-key`), an id column `id`; commas, semicolons, "
    "tabs or bars"
)
_LIST = "image files, relative to the folder of the list, with labels or regression targets"
SOURCE = Source(
    spec="file.csv",
    place=40,
    opens=opened_by("fsdtool.data.formats.csv_tables", "open_csv"),
    rows=(
        ("`train.csv`, `.tsv`", _TABLE),
        ("`list.csv` with a column `path` (`file`, `image`, or `--x-key`)", _LIST),
    ),
    suffixes=(".csv", ".tsv"),
    holds_images=True,
)
