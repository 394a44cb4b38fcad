"""Reading an HDF5 file that nobody vouches for: plain datasets of numbers or text, no way out of the file.

Links, virtual and external datasets are refused, so a file can show nothing but its own bytes; object types,
which could name code, are refused as well.  A small file may claim to hold a lot (compressed zeros, chunks that
were never written): what it claims is weighed against its size before anything is read.  Whatever is not as
expected is one FsdtoolError that names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fsdtool.errors import FsdtoolError

WRITE_AGAIN = "write the summary again with 'fsdtool summarize'"
NUMBERS, TEXT = "iuf", "S"
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
# A file may claim this many bytes, or so many times its size: far more than compression saves on real summaries.
SMALL, LARGEST_RATIO = 2**28, 64
# What h5py, numpy, torch (which reads on) and json raise on content that is not as it should be.
DAMAGE = (OSError, LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, AttributeError, MemoryError)


def open_file(path: Path) -> h5py.File:
    """The file opened for reading.  Raises FsdtoolError when it is missing or not whole."""
    if not path.exists():
        raise FsdtoolError(f"no summary at '{path}'; write one with 'fsdtool summarize ... -o {path}'")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FsdtoolError(
            f"'{path}' is truncated or not a summary (HDF5: {first_line(error)}); {WRITE_AGAIN}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def unusable(group: h5py.Group, what: str) -> FsdtoolError:
    """The error for a part of a file that is not as it should be."""
    return FsdtoolError(f"'{group.file.filename}': {what}; {WRITE_AGAIN}")


def group(parent: h5py.Group, name: str) -> h5py.Group:
    """The group `name` (a path) below `parent`."""
    found = _member(parent, name)
    if not isinstance(found, h5py.Group):
        raise unusable(parent, f"'{_path(parent, name)}' is not a group")
    return found


def dataset(
    parent: h5py.Group, name: str, shape: Sequence[int | None] | None = None, kinds: str = NUMBERS + TEXT
) -> h5py.Dataset:
    """The plain dataset `name` (a path) below `parent`, of the given shape (None: any length) and kinds of dtype."""
    found = _member(parent, name)
    if not isinstance(found, h5py.Dataset) or not _plain(found):
        raise unusable(parent, f"'{_path(parent, name)}' is not a plain dataset of numbers or text")
    if found.dtype.kind not in kinds:
        expected = "text" if kinds == TEXT else "numbers" if found.dtype.kind == TEXT else "other numbers"
        raise unusable(parent, f"'{_path(parent, name)}' holds {_held(found)}, expected {expected}")
    if shape is not None and not _fits(found.shape, shape):
        expected = f"({', '.join('any' if n is None else str(n) for n in shape)})"
        raise unusable(parent, f"'{_path(parent, name)}' has shape {found.shape}, expected {expected}")
    return found


def read(source: h5py.Dataset, rows: slice | tuple[()] = ()) -> np.ndarray:
    """The values of a dataset, or some rows.  Raises FsdtoolError when they are damaged or not finite."""
    try:
        values = source[rows]
    except DAMAGE as error:
        raise unusable(source.parent, f"'{source.name}' is damaged ({first_line(error)})") from error
    if source.dtype.kind == "f" and not np.isfinite(values).all():
        raise unusable(source.parent, f"'{source.name}' holds values that are not finite")
    return values


def strings(source: h5py.Dataset) -> np.ndarray:
    """The texts of a dataset of UTF-8 bytes."""
    return np.array([value.decode() for value in read(source).tolist()])


class Attributes(Mapping[str, Any]):
    """The attributes of a group or dataset: numbers, and text of fixed length as str.

    Text of variable length is refused unread: it lies in a heap of the file, and HDF5 may never end on a damaged one.
    A text too long for an attribute is a dataset of UTF-8 bytes with its name.
    """

    def __init__(self, holder: h5py.Group | h5py.Dataset):
        self._holder = holder

    def __getitem__(self, key: str) -> Any:
        attributes = self._holder.attrs
        if key not in attributes:
            if isinstance(self._holder, h5py.Group) and key in self._holder:
                return bytes(read(dataset(self._holder, key, (None,), "u"))).decode()
            raise KeyError(f"'{self._holder.name}' has no attribute '{key}'")
        dtype = attributes.get_id(key).dtype
        if dtype.kind not in NUMBERS + TEXT + "b" or not dtype.isnative:
            raise ValueError(f"the attribute '{key}' of '{self._holder.name}' is not plain")
        value = attributes[key]
        if dtype.kind == TEXT:
            value = np.char.decode(value, "utf-8")
        return value.item() if np.ndim(value) == 0 else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._holder.attrs)

    def __len__(self) -> int:
        return len(self._holder.attrs)


@contextmanager
def damage_named(path: Path | str) -> Iterator[None]:
    """Turns whatever damaged content raises into one FsdtoolError for the file."""
    try:
        yield
    except DAMAGE as error:
        raise FsdtoolError(f"'{path}' is damaged ({first_line(error)}); {WRITE_AGAIN}") from error


def walk(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Path and dataset of everything in the file that is no link, in the order of the names.

    Raises FsdtoolError where an object is found a second time: the tool writes trees.
    """
    seen = {h5py.h5o.get_info(file.id).addr}
    left: list[tuple[str, h5py.Group, str]] = [("", file, name) for name in reversed(list(file))]
    while left:
        path, parent, child = left.pop()
        if not isinstance(parent.get(child, getlink=True), h5py.HardLink):
            continue
        found, path = parent[child], f"{path}/{child}"
        if not isinstance(found, (h5py.Group, h5py.Dataset)):
            continue
        address = h5py.h5o.get_info(found.id).addr
        if address in seen:
            raise unusable(file, f"'{path}' is in the file under another name too")
        seen.add(address)
        if isinstance(found, h5py.Group):
            left += [(path, found, name) for name in reversed(list(found))]
        else:
            yield path, found


def check_size(file: h5py.File) -> None:
    """Raise FsdtoolError for a file that claims to hold far more than its bytes can."""
    size = Path(file.filename).stat().st_size
    most = max(SMALL, LARGEST_RATIO * size)
    claimed = 0
    for path, found in walk(file):
        claimed += math.prod(found.shape or ()) * found.dtype.itemsize
        if claimed > most:
            raise unusable(file, f"'{path}' brings it to {claimed:,} bytes, too many for a file of {size:,}")


def _plain(found: h5py.Dataset) -> bool:
    """Numbers of at most 8 bytes or text, in this machine's byte order, in the file itself, simply compressed."""
    dtype = found.dtype
    if found.shape is None or found.is_virtual or found.external:
        return False
    if not dtype.isnative or not (dtype.kind == TEXT or (dtype.kind in NUMBERS and dtype.itemsize <= 8)):
        return False
    creation = found.id.get_create_plist()
    used = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
    return len(set(used)) == len(used) and set(used) <= set(FILTERS)


def _held(found: h5py.Dataset) -> str:
    return "text" if found.dtype.kind == TEXT else str(found.dtype)


def _member(parent: h5py.Group, name: str) -> Any:
    found: Any = parent
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or found.get(part, getlink=True) is None:
            raise unusable(parent, f"'{_path(parent, name)}' is missing")
        if not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise unusable(parent, f"'{_path(parent, name)}' is a link, which is never followed")
        found = found[part]
    return found


def _path(parent: h5py.Group, name: str) -> str:
    return f"{parent.name.rstrip('/')}/{name}"


def _fits(found: tuple[int, ...], expected: Sequence[int | None]) -> bool:
    return len(found) == len(expected) and all(e in (None, n) for n, e in zip(found, expected, strict=True))
