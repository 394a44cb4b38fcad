"""Arrays in files of their own: a pair of inputs and targets, or a folder of .npy files."""

from __future__ import annotations

from pathlib import Path

from fsdtool.data.registry import Source, opened_by
from fsdtool.data.sources.saved_dataset import is_saved_dataset

PAIRED = (".npy", ".npz", ".h5", ".hdf5")


def npy_files(folder: Path) -> dict[str, Path]:
    """The .npy files of a folder by name; none where it is no folder."""
    files = sorted(folder.glob("*.npy")) if folder.is_dir() else []
    return {file.stem: file for file in files if not file.name.startswith(".")}


def pair_of_files(spec: str) -> list[Path]:
    """The two files of `x.npy,y.npy` (or .npz, .h5), the inputs first, there or not; none for any other spec."""
    parts = [Path(part) for part in spec.split(",")]
    paired = len(parts) == 2 and not Path(spec).exists() and all(part.suffix in PAIRED for part in parts)
    return parts if paired else []


def _takes(spec: str) -> bool:
    path = Path(spec)
    return bool(pair_of_files(spec) or npy_files(path)) and not is_saved_dataset(path)


SOURCE = Source(
    spec="x.npy,y.npy",
    place=20,
    opens=opened_by("fsdtool.data.formats.array_keys", "open_npy_files"),
    rows=(
        (
            "`x.npy,y.npy` or `folder/` of .npy files",
            "the same in files of their own, mapped; `x.h5,y.h5` and `.npz` pairs too",
        ),
    ),
    takes=_takes,
    hint="x.npy,y.npy (or .h5)",
)
