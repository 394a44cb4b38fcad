"""Folders of images: which folders are splits, which are classes, and which files are images.

What an operating system, a notebook or an archive program leaves (names that begin with a dot, __MACOSX, Thumbs.db ...)
is none of these. A split holds folders of classes, a class holds images, at any depth.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fsdtool.data.formats.array_keys import choose_split
from fsdtool.data.images import EXTENSIONS
from fsdtool.errors import DataError, describe, some

log = logging.getLogger("fsdtool")
LEFT_BEHIND = (
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__", "@eadir"),
    *("$recycle.bin", "system volume information", "lost+found"),
)
OTHER_IMAGES = (
    *(".gif", ".jfif", ".jpe", ".jp2", ".heic", ".heif", ".avif", ".svg", ".ico", ".tga", ".psd", ".raw", ".dng"),
    *(".dcm", ".nii", ".gz", ".npy", ".npz", ".exr", ".hdr"),
)
SPLIT_NAME = re.compile(
    r"(train(ing)?|test(ing)?|val(id(ation)?)?|dev(elopment)?|eval(uation)?|holdout)([-_ ]?(set|data|images|\d+))?",
    re.I,
)


@dataclass(frozen=True)
class ImageFolder:
    """Class names in order, the files below the folder with their class numbers, and what was left out, in words."""

    classes: list[str]
    files: list[str]
    targets: list[int]
    left_out: str


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or left behind by a system, not put there by the user."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def list_images(root: Path) -> ImageFolder:
    """Images of `root/CLASS/...`, classes and files in sorted order. Warns of images that are not read."""
    classes, loose = _entries(root)
    hidden = [entry.name for entry in _scan(root) if is_hidden(entry.name)]
    files: list[str] = []
    targets: list[int] = []
    other: Counter[str] = Counter()
    for number, name in enumerate(classes):
        for folder, below, found in sorted(os.walk(root / name, followlinks=True)):
            inside = Path(os.path.relpath(folder, root))
            if any(is_hidden(part) for part in inside.parts):
                continue
            hidden += [(inside / entry).as_posix() for entry in below if is_hidden(entry)]
            for file in sorted(found):
                path = (inside / file).as_posix()
                if is_hidden(file):
                    hidden.append(path)
                elif file.lower().endswith(EXTENSIONS):
                    files.append(path)
                    targets.append(number)
                else:
                    other[Path(file).suffix.lower() or "no ending"] += 1
    images = {ending: other.pop(ending) for ending in OTHER_IMAGES if ending in other}
    if images:
        log.warning(
            f"images of other kinds in '{root}' are left out ({_counts(images)}); "
            f"convert them to one of {', '.join(EXTENSIONS)}"
        )
    loose = [name for name in loose if name.lower().endswith(EXTENSIONS)]
    parts = (
        f"hidden {some(sorted(hidden))}" if hidden else "",
        f"{some(loose)} outside the folders of classes" if loose else "",
        f"other files ({_counts(other)})" if other else "",
    )
    left_out = ", ".join(part for part in parts if part)
    return ImageFolder(classes, files, targets, f"; left out: {left_out}" if left_out else "")


def split_folder(path: Path, wanted: str | None) -> tuple[Path, str]:
    """The folder of the split that is wanted (default: train), and what to say about it; `path` itself without splits.

    Raises DataError where a folder 'train' may as well be a class.
    """
    folders, _ = _entries(path)
    if wanted is not None:
        splits = folders
    else:
        splits = _splits(path, folders)
        if not splits or (len(splits) < len(folders) and not any("train" in name.lower() for name in splits)):
            return path, ""
    beside = [name for name in folders if name not in splits]
    others = [name for name in beside if not SPLIT_NAME.fullmatch(name)]
    with_images = [
        name for name in others if any(file.lower().endswith(EXTENSIONS) for file in _entries(path / name)[1])
    ]
    if wanted is None and len(splits) == 1 and len(with_images) > 1:
        raise DataError(
            f"'{path}' has a folder '{splits[0]}' beside {some(with_images)}: a split or a class; "
            f"give `split={splits[0]}` to read it, or rename it if it is a class"
        )
    chosen = _choose(splits, wanted, str(path))
    hidden = [entry.name for entry in _scan(path) if is_hidden(entry.name)]
    aside = some([*beside, *hidden])
    return path / chosen, f", split {chosen} of {some(splits)} (`split`)" + (
        f"; beside it stand {aside}" if aside else ""
    )


def _splits(path: Path, folders: list[str]) -> list[str]:
    """Those of the folders that are splits: they have the name of one and hold folders."""
    named = [name for name in folders if SPLIT_NAME.fullmatch(name)]
    if len(named) < len(folders) and all(
        SPLIT_NAME.fullmatch(re.split("[-_ ]", name, maxsplit=1)[-1]) for name in folders
    ):
        named = folders  # seg_train beside seg_test
    splits = [name for name in named if _entries(path / name)[0]]
    if named and named == folders and not splits:
        raise DataError(
            f"'{path}' has the splits {some(named)}, but no folders of classes in them; give "
            f"folder/{named[0]}/CLASS/IMAGE.png, or a csv file with the columns path and label"
        )
    return splits


def _choose(splits: list[str], wanted: str | None, spec: str) -> str:
    train = [name for name in splits if "train" in name.lower()]
    exact = [name for name in train if name.lower() in ("train", "training")] or train
    return exact[0] if wanted is None and len(exact) == 1 else choose_split(splits, wanted, spec)


def _scan(path: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {describe(error)}") from error


def _entries(path: Path) -> tuple[list[str], list[str]]:
    """The names of folders and of files that are not hidden."""
    shown = [entry for entry in _scan(path) if not is_hidden(entry.name)]
    return [entry.name for entry in shown if entry.is_dir()], [entry.name for entry in shown if not entry.is_dir()]


def _counts(numbers: dict[str, int]) -> str:
    return some([f"{count:,} {ending}" for ending, count in sorted(numbers.items())], 6)
