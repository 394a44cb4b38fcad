"""Arrays in .npz and .npy files, mapped into memory where the file allows it, so that none is held whole.

A member that .npz stores as it is gets checked once against its checksum and mapped; one that it compresses is
unpacked once to a temporary file without a name, which vanishes with the process. Small ones are read.
No pickled or object array is read.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from fsdtool.errors import DataError, describe

CLASS_NAMES_KEY = "class_names"
SMALL = 2**26  # bytes up to which a member of a .npz file is read whole
BLOCK = 2**20


@dataclass(frozen=True)
class Entry:
    """An array in a file, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers, or true and false."""
        return self.dtype.kind in "buif"


class NpzFile:
    """The arrays of a .npz file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith("/") or name.startswith("__MACOSX/"):
                        continue
                    with archive.open(name) as member:
                        self.entries[name.removesuffix(".npy")] = _header(member)[0]
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
            raise DataError(f"'{path}' is damaged or not a .npz file ({describe(error)}); write it again") from error

    def read(self, key: str) -> np.ndarray:
        """The whole array."""
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                return archive[key]
        except Exception as error:
            raise DataError(
                f"'{key}' in '{self._path}' cannot be read ({describe(error)}); write plain numbers or text "
                "(of objects: .astype(str))"
            ) from error

    def rows(self, key: str) -> np.ndarray:
        """The array, mapped unless it is small."""
        with zipfile.ZipFile(self._path) as archive:
            member = archive.getinfo(key if key in archive.namelist() else f"{key}.npy")
            if member.file_size <= SMALL or self.entries[key].dtype.hasobject:
                return self.read(key)
            try:
                with archive.open(member) as stream:
                    if member.compress_type != zipfile.ZIP_STORED:
                        return _map(_unpacked(stream), 0)
                    while stream.read(BLOCK):  # the checksum is compared at the end
                        pass
                with open(self._path, "rb") as file:
                    return _map(file, _content_offset(file, member))
            except zipfile.BadZipFile as error:
                raise DataError(f"'{key}' in '{self._path}' is damaged ({describe(error)}); write it again") from error
            except OSError as error:
                raise DataError(
                    f"'{key}' in '{self._path}' cannot be unpacked to {tempfile.gettempdir()} ({describe(error)}); "
                    "make room there, set TMPDIR, or write it uncompressed (numpy.savez)"
                ) from error

    def class_names(self, y_key: str) -> Any:
        """What the file names its classes, or None."""
        return self.read(CLASS_NAMES_KEY) if CLASS_NAMES_KEY in self.entries else None


class NpyFiles:
    """Arrays in .npy files of their own, by name."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths
        self.entries: dict[str, Entry] = {}
        for key, path in paths.items():
            try:
                with open(path, "rb") as file:
                    self.entries[key] = _header(file)[0]
            except Exception as error:  # numpy raises many kinds for a damaged file
                raise DataError(
                    f"'{path}' is damaged or not a .npy file ({describe(error)}); write it again"
                ) from error

    def rows(self, key: str) -> np.ndarray:
        """The array, mapped."""
        try:
            return np.load(self._paths[key], mmap_mode="c", allow_pickle=False)
        except Exception as error:
            raise DataError(
                f"'{self._paths[key]}' cannot be read ({describe(error)}); write plain numbers or text "
                "(of objects: .astype(str))"
            ) from error

    def read(self, key: str) -> np.ndarray:
        """The whole array."""
        return np.array(self.rows(key))

    def class_names(self, y_key: str) -> Any:
        """What the files name their classes, or None."""
        return self.read(CLASS_NAMES_KEY) if CLASS_NAMES_KEY in self.entries else None


def _header(stream: Any) -> tuple[Entry, bool]:
    """What an .npy stream holds, and whether its first index varies fastest; the stream is left at the content."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    return Entry(shape, dtype), fortran


def _map(file: BinaryIO, offset: int) -> np.ndarray:
    """The .npy content that begins at `offset`, mapped; writing to it would not reach the file."""
    file.seek(offset)
    entry, fortran = _header(file)
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.memmap(file, dtype=entry.dtype, mode="c", offset=file.tell(), shape=entry.shape, order=order)


def _unpacked(stream: Any) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the map needs it open)
    shutil.copyfileobj(stream, file, BLOCK)
    file.flush()
    return file


def _content_offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    # the local header repeats the name, but may have extra fields that the directory does not have
    file.seek(member.header_offset)
    local = file.read(30)
    return member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
