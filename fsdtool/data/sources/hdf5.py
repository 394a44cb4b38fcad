"""Arrays in one HDF5 file of the user's."""

from __future__ import annotations

from fsdtool.data.registry import Source, opened_by

SOURCE = Source(
    spec="file.h5",
    place=30,
    opens=opened_by("fsdtool.data.formats.array_keys", "open_array_file"),
    rows=(("`train.h5`", "the same, at any depth, read slice by slice"),),
    suffixes=(".h5", ".hdf5"),
)
