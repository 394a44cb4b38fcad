"""Arrays in one .npz file."""

from __future__ import annotations

from fsdtool.data.registry import Source, opened_by

_HOLDS = (
    "arrays for inputs (N, ...) and targets, by the usual names (`x`/`images`/..., `y`/`labels`/...) or by `--x-key`, "
    "`--y-key`; `id`, `class_names` where present"
)
SOURCE = Source(
    spec="file.npz",
    place=10,
    opens=opened_by("fsdtool.data.formats.array_keys", "open_array_file"),
    rows=(("`train.npz`", _HOLDS),),
    suffixes=(".npz",),
)
