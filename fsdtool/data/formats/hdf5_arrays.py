"""Arrays in HDF5 files of the user's: inputs stay in the file and are read slice by slice.

No link out of the file is followed, and no data set that lies in other files is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fsdtool.data.formats.numpy_files import CLASS_NAMES_KEY, Entry
from fsdtool.errors import DataError, describe


class H5File:
    """The arrays of an HDF5 file, at any depth."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        try:
            self._file = h5py.File(path, "r")
            kinds = {key: self._file.get(key, getlink=True) for key in self._file}
            self._file.visititems(self._enter)  # follows no link
        except (OSError, RuntimeError) as error:
            raise DataError(f"'{path}' is damaged or not an HDF5 file ({describe(error)}); write it again") from error
        links = [key for key, kind in kinds.items() if not isinstance(kind, h5py.HardLink)]
        if links:
            raise DataError(f"'{links[0]}' in '{path}' is a link, which is not followed; store the data itself")

    def _enter(self, name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            self.entries[name] = Entry(item.shape or (), item.dtype)

    def rows(self, key: str) -> h5py.Dataset:
        """The data set, still in the file."""
        found = self._file[key]
        if found.is_virtual or found.external:
            raise DataError(f"'{key}' in '{self._path}' lies in other files; store the data itself")
        return found

    def read(self, key: str) -> np.ndarray:
        """The whole array; text as str."""
        found = self.rows(key)
        try:
            is_text = h5py.check_string_dtype(found.dtype) is not None
            return np.array(found.asstr()[()], dtype=str) if is_text else found[()]
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise DataError(f"'{key}' in '{self._path}' cannot be read ({describe(error)}); write it again") from error

    def class_names(self, y_key: str) -> Any:
        """What the file, or an attribute of it or of its targets, names the classes; or None."""
        if CLASS_NAMES_KEY in self.entries:
            return self.read(CLASS_NAMES_KEY)
        return self._file[y_key].attrs.get(CLASS_NAMES_KEY, self._file.attrs.get(CLASS_NAMES_KEY))
