"""Image files: a folder with one folder per class, or a list of paths with labels; each is opened when it is read.

Images come as RGB, as torchvision's ImageFolder gives them, unless other channels are asked for.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.arrays import SPLITS, choose_split
from fsdtool.errors import FsdtoolError, describe, some
from fsdtool.images import EXTENSIONS, open_image, turned
from fsdtool.models import import_torchvision
from fsdtool.readers import ROW_NUMBERS, Found, ItemReader, Request

log = logging.getLogger("fsdtool")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path")


class ImageFiles:
    """A data set of (image, target): `files` (N,) paths below `root`, `targets` (N, ...)."""

    def __init__(self, root: Path, files: list[str], targets: np.ndarray, as_rgb: bool) -> None:
        self._root, self._files, self._targets, self._as_rgb = root, files, targets, as_rgb

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return open_image(self._root / self._files[row], as_rgb=self._as_rgb), self._targets[row]


def is_image_path(text: str) -> bool:
    """Whether a cell of a table names an image file."""
    return text.strip().lower().endswith(EXTENSIONS)


def open_image_folder(path: Path, request: Request) -> Found:
    """`folder/CLASS/IMAGE.png`, or the split of `folder/SPLIT/CLASS/IMAGE.png` that is asked for (default: train)."""
    if request.task == "regression":
        raise FsdtoolError(f"the folder '{path}' holds classes of images; leave --task regression out")
    root, split = _split_folder(path, request)
    try:
        found = import_torchvision().datasets.ImageFolder(str(root), allow_empty=True)
    except OSError as error:
        raise FsdtoolError(
            f"'{root}' is not a folder of images ({describe(error)}); give folder/CLASS/IMAGE.png"
        ) from error
    files = [Path(os.path.relpath(name, found.root)).as_posix() for name, _ in found.samples]
    if not files:
        raise FsdtoolError(
            f"'{root}' is not a folder of images: none in {some(found.classes)}; give folder/CLASS/IMAGE.png"
        )
    targets = np.array(found.targets, dtype=np.int64)
    ids = np.arange(len(files)) if request.id_key == ROW_NUMBERS else np.array(files, dtype=str)
    reader = _reader(root, files, targets, ids, request)
    note = f"{len(files):,} images in {len(found.classes)} folders as classes{split}, ids are "
    note += "row numbers" if request.id_key == ROW_NUMBERS else "paths"
    present = set(found.targets)
    empty = [name for i, name in enumerate(found.classes) if i not in present]
    if empty:
        log.warning(f"{len(empty)} of {len(found.classes)} classes have no image ({some(empty)})")
    return Found(reader, ids, list(found.classes), note + _image_note(reader, root / files[0], request))


def open_image_list(
    root: Path,
    files: list[str],
    targets: np.ndarray,
    ids: np.ndarray,
    names: list[str] | None,
    column: str,
    request: Request,
) -> Found:
    """Images by the paths of a table, which are relative to the folder that it lies in, and their targets."""
    missing = [name for name in files if not (root / name).is_file()]
    if missing and not request.skip_bad:
        raise FsdtoolError(
            f"{len(missing)} of {len(files)} images in column '{column}' do not exist below '{root}' "
            f"({some(missing)}); correct the paths, or give --skip-bad"
        )
    reader = _reader(root, files, targets, ids, request)
    note = f"{len(files):,} images by column '{column}' (--x-key)"
    return Found(reader, ids, names, note + _image_note(reader, root / files[0], request))


def _reader(root: Path, files: list[str], targets: np.ndarray, ids: np.ndarray, request: Request) -> ItemReader:
    dataset = ImageFiles(root, files, targets, as_rgb=request.preprocessing.channels is None)
    return ItemReader(functools.partial(_same, dataset), dataset, ids, request)


def _same(dataset: ImageFiles) -> ImageFiles:
    return dataset


def _image_note(reader: ItemReader, first: Path, request: Request) -> str:
    asked = request.preprocessing
    if asked.transform is not None:
        return f", through {asked.transform}"
    channels = 1 if len(reader.shape) == 2 else reader.shape[2]
    note = f", read with {channels} channel{'s' if channels > 1 else ''} (--channels)"
    try:
        return note + ("; EXIF orientation is not applied" if turned(open_image(first, as_rgb=False)) else "")
    except Exception:  # it is named when it is read
        return note


def _split_folder(path: Path, request: Request) -> tuple[Path, str]:
    """The folder of the split, and what to say about it."""
    try:
        folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    except OSError as error:
        raise FsdtoolError(f"'{path}' cannot be read: {describe(error)}") from error
    if request.split is None and not (folders and all(name.lower() in SPLITS for name in folders)):
        return path, ""
    chosen = choose_split(folders, request.split, str(path))
    return path / chosen, f", split {chosen} of {some(folders)} (--split)"
