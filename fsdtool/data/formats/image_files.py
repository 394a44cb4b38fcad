"""Image files: a folder with one folder per class, or a list of paths with labels; each is opened when it is read.

Images come as RGB, as torchvision's ImageFolder gives them, unless other channels are asked for.
"""

from __future__ import annotations

import functools
import glob
import logging
from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.data.formats.image_folders import list_images, split_folder
from fsdtool.data.images import EXTENSIONS, open_image, turned
from fsdtool.data.readers import ROW_NUMBERS, Found, ItemReader, Request
from fsdtool.errors import DataError, some

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


def open_image_folder(spec: str, request: Request) -> Found:
    """`folder/CLASS/IMAGE.png`, or the split of `folder/SPLIT/CLASS/IMAGE.png` that is asked for (default: train)."""
    path = Path(spec)
    if not request.task.has_classes:
        raise DataError(f"the folder '{path}' holds classes of images; leave `task={request.task}` out")
    root, split = split_folder(path, request.split)
    found = list_images(root)
    files = found.files
    if not files:
        inside = f"none in {some(found.classes)}" if found.classes else "it has no folders of classes"
        raise DataError(f"'{root}' is not a folder of images: {inside}{found.left_out}; give folder/CLASS/IMAGE.png")
    targets = np.array(found.targets, dtype=np.int64)
    ids = np.arange(len(files)) if request.id_key == ROW_NUMBERS else np.array(files, dtype=str)
    reader = _reader(root, files, targets, ids, request)
    plural = "folders as classes" if len(found.classes) > 1 else "folder as the only class"
    note = f"{len(files):,} images in {len(found.classes)} {plural}{split}, ids are "
    note += "row numbers" if request.id_key == ROW_NUMBERS else "paths"
    present = set(found.targets)
    empty = [name for i, name in enumerate(found.classes) if i not in present]
    if empty:
        log.warning(f"{len(empty)} of {len(found.classes)} classes have no image ({some(empty)})")
    return Found(reader, ids, found.classes, note + _image_note(reader, root / files[0], request) + found.left_out)


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
    backslashes = ""
    if missing and all("\\" in name for name in missing):
        files = [name.replace("\\", "/") for name in files]
        backslashes = ", backslashes in their paths read as /"
        missing = [name for name in files if not (root / name).is_file()]
    if missing and not (request.skip_bad and len(missing) < len(files)):
        remedy = "correct the paths" + ("" if len(missing) == len(files) else ", or give `skip_bad=True`")
        raise DataError(
            f"{len(missing)} of {len(files)} images in column '{column}' do not exist below '{root}' "
            f"({some(missing)}{_elsewhere(root, missing[0])}); {remedy}"
        )
    reader = _reader(root, files, targets, ids, request)
    note = f"{len(files):,} images by column '{column}' (`x_key`){backslashes}"
    return Found(reader, ids, names, note + _image_note(reader, root / files[0], request))


def _elsewhere(root: Path, name: str) -> str:
    """Where a file of this name lies one folder further down, in words; nothing if it does not."""
    found = next((path for path in sorted(root.glob(f"*/{glob.escape(Path(name).name)}")) if path.is_file()), None)
    return "" if found is None else f"; there is '{found.relative_to(root).as_posix()}'"


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
    note = f", read with {channels} channel{'s' if channels > 1 else ''} (`channels`)"
    try:
        return note + ("; EXIF orientation is not applied" if turned(open_image(first, as_rgb=False)) else "")
    except Exception:  # it is named when it is read
        return note
