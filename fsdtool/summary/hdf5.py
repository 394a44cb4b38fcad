"""Reading an HDF5 file that nobody vouches for: plain datasets of numbers or text, no way out of the file.

Links, virtual and external datasets are refused, so a file can show nothing but its own bytes; object types,
which could name code, are refused as well.  A small file may claim to hold a lot (compressed zeros, chunks that
were never written): what it claims is weighed against its size before anything is read.  Whatever is not as
expected is one SummaryError that names it.

Damage makes h5py and json raise exceptions of many types.  They are caught around the calls of these two alone: an
exception from anywhere else is a fault of the tool, and is left to show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fsdtool.errors import SummaryError
from fsdtool.util.fields import Fields

WRITE_AGAIN = "write the summary again with 'fsdtool summarize'"
NUMBERS, TEXT = "iuf", "S"
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
# A file may claim this many bytes, or so many times its size: far more than compression saves on real summaries.
SMALL, LARGEST_RATIO = 2**28, 64
# What h5py, numpy (which h5py calls) and json raise on content that is not as it should be.
DAMAGE = (OSError, LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, AttributeError, MemoryError)


def open_file(path: Path) -> h5py.File:
    """The file opened for reading.  Raises SummaryError when it is missing or not whole."""
    if not path.exists():
        raise SummaryError(f"no summary at '{path}'; write one with 'fsdtool summarize ... -o {path}'", path=path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise SummaryError(
            f"'{path}' is truncated or not a summary (HDF5: {first_line(error)}); {WRITE_AGAIN}", path=path
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def unusable(part: h5py.Group | h5py.Dataset, what: str) -> SummaryError:
    """The error for a part of a file that is not as it should be."""
    return SummaryError(f"'{part.file.filename}': {what}; {WRITE_AGAIN}", path=part.file.filename)


@contextmanager
def damaged(holder: h5py.Group | h5py.Dataset, what: str) -> Iterator[None]:
    """Around calls of h5py or json: whatever damaged content makes them raise is one SummaryError, for `what`."""
    try:
        yield
    except DAMAGE as error:
        raise unusable(holder, f"{what} is damaged ({first_line(error)})") from error


def group(parent: h5py.Group, name: str) -> h5py.Group:
    """The group `name` (a path) below `parent`."""
    found = _member(parent, name)
    if not isinstance(found, h5py.Group):
        raise unusable(parent, f"'{_path(parent, name)}' is not a group")
    return found


def names(parent: h5py.Group) -> list[str]:
    """The names of what a group holds, links included."""
    with damaged(parent, f"'{parent.name}'"):
        return list(parent)


def has(parent: h5py.Group, name: str) -> bool:
    """Whether a group holds something of this name, if only a link."""
    with damaged(parent, f"'{parent.name}'"):
        return parent.get(name, getlink=True) is not None


def dataset(
    parent: h5py.Group, name: str, shape: Sequence[int | None] | None = None, kinds: str = NUMBERS + TEXT
) -> h5py.Dataset:
    """The plain dataset `name` (a path) below `parent`, of the given shape (None: any length) and kinds of dtype."""
    found = _member(parent, name)
    with damaged(parent, f"'{_path(parent, name)}'"):
        plain = isinstance(found, h5py.Dataset) and _plain(found)
    if not plain:
        raise unusable(parent, f"'{_path(parent, name)}' is not a plain dataset of numbers or text")
    if found.dtype.kind not in kinds:
        expected = "text" if kinds == TEXT else "numbers" if found.dtype.kind == TEXT else "other numbers"
        raise unusable(parent, f"'{_path(parent, name)}' holds {_held(found)}, expected {expected}")
    if shape is not None and not _fits(found.shape, shape):
        expected = f"({', '.join('any' if n is None else str(n) for n in shape)})"
        raise unusable(parent, f"'{_path(parent, name)}' has shape {found.shape}, expected {expected}")
    return found


def read(source: h5py.Dataset, rows: slice | tuple[()] = ()) -> np.ndarray:
    """The values of a dataset, or some rows.  Raises SummaryError when they are damaged or not finite."""
    with damaged(source, f"'{source.name}'"):
        values = source[rows]
    if source.dtype.kind == "f" and not np.isfinite(values).all():
        raise unusable(source, f"'{source.name}' holds values that are not finite")
    return values


def strings(source: h5py.Dataset) -> np.ndarray:
    """The texts of a dataset of UTF-8 bytes."""
    values = read(source).tolist()
    with damaged(source, f"'{source.name}'"):
        return np.array([value.decode() for value in values])


def json_in(parent: h5py.Group, name: str) -> Any:
    """What the dataset `name` below `parent` holds as JSON in UTF-8 bytes."""
    source = dataset(parent, name, (None,), "u")
    content = bytes(read(source))
    with damaged(source, f"'{source.name}'"):
        return json.loads(content)


class Attributes(Fields):
    """The attributes of a group or dataset: numbers, and text of fixed length as str.

    Text of variable length is refused unread: it lies in a heap of the file, and HDF5 may never end on a damaged one.
    """

    def __init__(self, holder: h5py.Group | h5py.Dataset):
        super().__init__({}, lambda what: unusable(holder, f"the attributes of '{holder.name}': {what}"))
        self._holder = holder

    def __contains__(self, key: str) -> bool:
        with damaged(self._holder, f"the attribute '{key}' of '{self._holder.name}'"):
            return key in self._holder.attrs

    def get(self, key: str) -> Any:
        """The value, text decoded."""
        if key not in self:
            raise self._refuse(f"'{key}' is missing")
        with damaged(self._holder, f"the attribute '{key}' of '{self._holder.name}'"):
            dtype = self._holder.attrs.get_id(key).dtype
            plain = dtype.kind in NUMBERS + TEXT + "b" and dtype.isnative
            value = self._holder.attrs[key] if plain else None
            if value is not None and dtype.kind == TEXT:
                value = np.char.decode(value, "utf-8")
        if not plain or not isinstance(value, (np.ndarray, np.generic)):
            raise unusable(self._holder, f"the attribute '{key}' of '{self._holder.name}' is not plain")
        return value.item() if np.ndim(value) == 0 else value

    def numbers(self, key: str, length: int, kinds: str) -> np.ndarray:
        """As many finite numbers of these kinds of dtype; a single one need not be a list."""
        values = np.atleast_1d(self.get(key))
        if values.shape != (length,) or values.dtype.kind not in kinds or not np.isfinite(values).all():
            raise self._refuse(f"'{key}' is not a list of {length} numbers")
        return values

    def texts(self, key: str) -> tuple[str, ...]:
        """Some texts; a single one need not be a list."""
        values = np.atleast_1d(self.get(key))
        if values.ndim != 1 or values.dtype.kind != "U":
            raise self._refuse(f"'{key}' is not a list of texts")
        return tuple(values.tolist())


def walk(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Path and dataset of everything in the file that is no link, in the order of the names.

    Raises SummaryError where an object is found a second time: the tool writes trees.
    """
    seen: set[int] = set()
    left: list[tuple[str, h5py.Group | h5py.Dataset]] = [("", file)]
    while left:
        path, found = left.pop()
        with damaged(file, f"'{path or '/'}'"):
            address = h5py.h5o.get_info(found.id).addr
        if address in seen:
            raise unusable(file, f"'{path}' is in the file under another name too")
        seen.add(address)
        if isinstance(found, h5py.Dataset):
            yield path, found
            continue
        with damaged(file, f"'{path or '/'}'"):
            hard = [name for name in list(found) if isinstance(found.get(name, getlink=True), h5py.HardLink)]
            inside = [(f"{path}/{name}", found[name]) for name in reversed(hard)]
        left += [(name, item) for name, item in inside if isinstance(item, (h5py.Group, h5py.Dataset))]


def stored_bytes(source: h5py.Dataset) -> int:
    """What a dataset takes in the file."""
    with damaged(source, f"'{source.name}'"):
        return source.id.get_storage_size()


def check_size(file: h5py.File) -> None:
    """Raise SummaryError for a file that claims to hold far more than its bytes can."""
    size = Path(file.filename).stat().st_size
    most = max(SMALL, LARGEST_RATIO * size)
    claimed = 0
    for path, found in walk(file):
        with damaged(file, f"'{path}'"):
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
        with damaged(parent, f"'{_path(parent, name)}'"):
            link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
            found = found[part] if isinstance(link, h5py.HardLink) else None
        if link is None:
            raise unusable(parent, f"'{_path(parent, name)}' is missing")
        if found is None:
            raise unusable(parent, f"'{_path(parent, name)}' is a link, which is never followed")
    return found


def _path(parent: h5py.Group, name: str) -> str:
    return f"{parent.name.rstrip('/')}/{name}"


def _fits(found: tuple[int, ...], expected: Sequence[int | None]) -> bool:
    return len(found) == len(expected) and all(e in (None, n) for n, e in zip(found, expected, strict=True))
