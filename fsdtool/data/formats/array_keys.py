"""Arrays in .npz, .npy and HDF5 files: which of them are the inputs, the targets and the ids.

Names decide where they are the usual ones, shapes where only one array can be meant, and the user otherwise.
`x_train`, `train_images` and `train/x` belong to the split 'train': one split is read, by its short names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.data.formats.hdf5_arrays import H5File
from fsdtool.data.formats.numpy_files import CLASS_NAMES_KEY, Entry, NpyFiles, NpzFile
from fsdtool.data.inputs.keys import TOKENS, Named, named_inputs, tokens_among
from fsdtool.data.inputs.packing import ArraysReader, part_of
from fsdtool.data.readers import ROW_NUMBERS, ArrayReader, Found, Request
from fsdtool.data.sources.npy import npy_files, pair_of_files
from fsdtool.data.targets import numbered
from fsdtool.errors import DataError, some

INPUT_KEYS = ("x", "X", "images", "inputs", "input_ids", "data")
TARGET_KEYS = ("y", "Y", "labels", "targets", "target")
ID_KEYS = ("ids", "id")
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")
ArrayFile = NpzFile | NpyFiles | H5File


def open_array_file(spec: str, request: Request) -> Found:
    """Open a .npz or HDF5 file."""
    path = Path(spec)
    return open_arrays(_array_file(path), str(path), request)


def open_npy_files(spec: str, request: Request) -> Found:
    """Open a folder of .npy files, or `x.npy,y.npy` (or .npz, .h5): the inputs, then the targets."""
    pair = pair_of_files(spec)
    if not pair:
        return open_arrays(NpyFiles(npy_files(Path(spec))), spec, request)
    missing = [str(part) for part in pair if not part.is_file()]
    if missing:
        raise DataError(f"the data '{missing[0]}' does not exist; give x.npy,y.npy: the inputs, then the targets")
    return open_arrays(PairedFiles(*pair), spec, request)


def open_arrays(file: ArrayFile | PairedFiles, spec: str, request: Request) -> Found:
    """Inputs, targets, ids and class names among the arrays of `file`."""
    view = _choose_split(file.entries, request, spec)
    named = _several(view, request)
    x_keys, y_key = _choose_keys(view, request, named, spec)
    y = file.entries[y_key]
    count = _count(file.entries, x_keys, y_key, spec)
    id_key = _choose_ids(view, request, (*x_keys, y_key), spec)
    ids = np.arange(count) if id_key is None else _ids(file.read(id_key), count, spec)
    names = file.class_names(y_key)
    names = None if names is None else [_text(name) for name in np.atleast_1d(names)]
    targets = file.read(y_key)
    if targets.dtype.kind in "SU" and targets.ndim == 1 and request.task.has_classes:
        labels = [_text(label) for label in targets]
        targets, names = numbered(labels, replace(request, class_names=request.class_names or names), spec)
    converted = request.task.targets(targets, ids, request.skip_bad)
    one_hot = request.task.has_classes and targets.ndim == 2 and targets.shape[1] > 1
    shown = ", ".join(f"'{key}' {file.entries[key].dtype} {file.entries[key].shape}" for key in x_keys)
    note = "".join(
        (
            f"inputs {shown} (`x_key`), targets '{y_key}' {y.dtype} {y.shape} (`y_key`)",
            f", one-hot labels read as {targets.shape[1]} classes" if one_hot else "",
            f", split {view.split} of {', '.join(view.splits)} (`split`)" if view.split else "",
            ", ids are row numbers (`id_key`)" if id_key is None else f", ids '{id_key}' (`id_key`)",
        )
    )
    if not named:
        return Found(ArrayReader(file.rows(x_keys[0]), converted), ids, names, note)
    entries = [file.entries[key] for key in x_keys]
    parts = tuple(part_of(key, name, e.shape[1:], e.dtype) for (name, key), e in zip(named, entries, strict=True))
    return Found(ArraysReader([file.rows(key) for key in x_keys], parts, converted, ids), ids, names, note, parts)


def _several(view: _View, request: Request) -> Named:
    """The argument and the key of each of several inputs; those of tokens where no other is named."""
    found = named_inputs(request.x_key, request.preprocessing.parts, (*view.keys, *view.keys.values()))
    if found or request.x_key is not None or (set(INPUT_KEYS) & set(view.keys)) - {TOKENS[0]}:
        return found
    tokens = tokens_among(view.keys)
    return tokens if len(tokens) > 1 else []


def _count(entries: Mapping[str, Entry], x_keys: Sequence[str], y_key: str, spec: str) -> int:
    """How many examples there are.  Raises DataError for inputs that are no numbers, or not one for each target."""
    y = entries[y_key]
    for x_key in x_keys:
        x = entries[x_key]
        if not x.is_number:
            raise DataError(f"the inputs '{x_key}' of '{spec}' have dtype {x.dtype}; give numbers")
        if x.shape[:1] != y.shape[:1]:
            raise DataError(
                f"'{spec}' has inputs '{x_key}' {x.shape} but targets '{y_key}' {y.shape}; give one target each"
            )
        if not x.shape or not x.shape[0]:
            raise DataError(f"'{spec}' is empty: '{x_key}' has shape {x.shape}; give at least one example")
    return y.shape[0]


class PairedFiles:
    """The arrays of two files, the inputs in the first and the targets in the second.

    Where a file holds one array that is 'x' or 'y'; a name that both files use gets that of its file in front.
    """

    def __init__(self, x: Path, y: Path) -> None:
        opened = [(path, _array_file(path)) for path in (x, y)]
        shared = set(opened[0][1].entries) & set(opened[1][1].entries)
        self._places: dict[str, tuple[ArrayFile, str]] = {}
        for (path, file), usual in zip(opened, "xy", strict=True):
            for key in file.entries:
                name = usual if len(file.entries) == 1 else f"{path.stem}/{key}" if key in shared else key
                self._places[name] = (file, key)
        self.entries = {name: file.entries[key] for name, (file, key) in self._places.items()}

    def rows(self, key: str) -> Any:
        """The array, not read whole."""
        file, name = self._places[key]
        return file.rows(name)

    def read(self, key: str) -> np.ndarray:
        """The whole array."""
        file, name = self._places[key]
        return file.read(name)

    def class_names(self, y_key: str) -> Any:
        """What the file of the targets names their classes, or None."""
        file, name = self._places[y_key]
        return file.class_names(name)


def _array_file(path: Path) -> ArrayFile:
    if path.suffix == ".npy":
        return NpyFiles({path.stem: path})
    return NpzFile(path) if path.suffix == ".npz" else H5File(path)


@dataclass(frozen=True)
class _View:
    """The arrays that are to be considered: full key by short name; the split taken, and those there are."""

    entries: Mapping[str, Entry]
    keys: dict[str, str]
    split: str | None
    splits: list[str]

    def short(self, given: str | None) -> str | None:
        """The short name of a key that the user gave in full."""
        return next((short for short, key in self.keys.items() if key == given), given)


def split_of(key: str, known: Sequence[str] = SPLITS) -> tuple[str | None, str]:
    """The split that a key names and what is left of it: 'train/x' and 'x_train' are ('train', 'x')."""
    parts = re.split(r"([/_.-])", key)
    at = next((i for i in range(0, len(parts), 2) if parts[i].lower() in known), None)
    if at is None or len(parts) == 1:
        return None, key
    rest = parts[:at] + parts[at + 2 :] if at + 1 < len(parts) else parts[: at - 1]
    return parts[at].lower(), "".join(rest)


def choose_split(splits: Sequence[str], wanted: str | None, spec: str) -> str:
    """The wanted split, else 'train', else the only one; raises DataError where none of these is there."""
    train = [split for split in splits if split.lower() in ("train", "training")]
    alike = [split for split in splits if wanted is not None and split.lower() == wanted.lower()]
    candidates = (train or list(splits)) if wanted is None else [wanted] if wanted in splits else alike
    if len(candidates) != 1:
        found = f"has the splits {some(list(splits), 12)}" if splits else "has no splits"
        wish = f"not '{wanted}'; leave `split` out or give one of them" if wanted else "give one of them by `split`"
        raise DataError(f"'{spec}' {found}, {wish}")
    return candidates[0]


def _choose_split(entries: Mapping[str, Entry], request: Request, spec: str) -> _View:
    known = SPLITS if request.split is None else (*SPLITS, request.split.lower())
    parts = {key: split_of(key, known) for key in entries}
    splits = list(dict.fromkeys(split for split, _ in parts.values() if split is not None))
    whole = {key: key for key, (split, _) in parts.items() if split is None}
    given: list[str | None] = [key for _, key in named_inputs(request.x_key, (), entries)] or [request.x_key]
    by_key = [parts[key][0] for key in (*given, request.y_key) if key in parts]
    wanted = request.split.lower() if request.split is not None else next(iter(by_key), None)
    named = wanted is None and (by_key or any(key in whole for key in (*INPUT_KEYS, *given)))
    if (not splits and wanted is None) or named:
        return _View(entries, {key: key for key in entries}, None, splits)
    chosen = choose_split(splits, wanted, spec)
    mine = {short: key for key, (split, short) in parts.items() if split == chosen}
    return _View(entries, whole | mine, chosen, splits)


def _choose_keys(view: _View, request: Request, named: Named, spec: str) -> tuple[list[str], str]:
    """The arrays of inputs and targets: as given, else by the usual names, else the only possible ones.

    named: of several inputs, argument and key of each.
    """
    entries = {short: view.entries[key] for short, key in view.keys.items()}
    listed = some([f"{key} {view.entries[key].shape}" for key in view.keys.values()], 12) or "nothing"
    x_given, y_given = view.short(request.x_key), view.short(request.y_key)

    def choose(what: str, argument: str, given: str | None, usual: Sequence[str], possible: list[str]) -> str:
        if given is not None and given not in entries:
            raise DataError(f"'{spec}' has no array '{given}'; give `{argument}` one of: {listed}")
        known = [key for key in usual if key in entries]
        if len(known) > 1:
            known = [key for key in known if key in possible]
        candidates = [given] if given is not None else known or possible
        if len(candidates) != 1:
            raise DataError(f"cannot tell which array of '{spec}' holds the {what}; give `{argument}` one of: {listed}")
        return candidates[0]

    aside = (*ID_KEYS, CLASS_NAMES_KEY, view.short(request.id_key))
    others = {key: e for key, e in entries.items() if key not in aside}
    not_inputs = (y_given, *TARGET_KEYS)
    inputs = [key for key, e in others.items() if e.is_number and len(e.shape) > 1 and key not in not_inputs]
    asked = [view.short(key) for _, key in named] or [x_given]
    x_keys = [choose("inputs", "x_key", given, INPUT_KEYS, inputs) for given in asked]
    count = entries[x_keys[0]].shape[:1]
    flat = [k for k, e in others.items() if len(e.shape) in (1, 2) or e.shape[:1] == (math.prod(e.shape),)]
    targets = [key for key in flat if entries[key].shape[:1] == count and key not in x_keys]
    if y_given is None and not targets and not set(TARGET_KEYS) & set(entries):
        beside = some([f"'{key}'" for key in x_keys])
        raise DataError(
            f"'{spec}' has no array of targets beside the inputs {beside}: it holds {listed}; "
            "give inputs and targets in two files as inputs.h5,targets.h5 (or .npy, .npz)"
        )
    y_key = choose("targets", "y_key", y_given, TARGET_KEYS, targets)
    return [view.keys[x_key] for x_key in x_keys], view.keys[y_key]


def _choose_ids(view: _View, request: Request, taken: tuple[str, ...], spec: str) -> str | None:
    if request.id_key == ROW_NUMBERS and ROW_NUMBERS not in view.keys:
        return None
    if request.id_key is None:
        return next((view.keys[k] for k in ID_KEYS if k in view.keys and view.keys[k] not in taken), None)
    short = view.short(request.id_key)
    if short not in view.keys:
        listed = some(list(view.keys.values()), 12)
        raise DataError(f"'{spec}' has no array '{request.id_key}'; give `id_key=row` (numbers) or one of: {listed}")
    return view.keys[short]


def _ids(stored: np.ndarray, count: int, spec: str) -> np.ndarray:
    if stored.shape != (count,):
        raise DataError(f"'{spec}' has ids of shape {stored.shape} for {count} examples; give one id each")
    if stored.dtype.kind in "SU":
        return np.array([_text(name) for name in stored])
    if stored.dtype.kind not in "iu":
        raise DataError(
            f"'{spec}' has ids of dtype {stored.dtype}; give integers or text, or `id_key=row` for row numbers"
        )
    if stored.max() > np.iinfo(np.int64).max:
        return stored.astype(str)
    return stored.astype(np.int64)


def _text(stored: object) -> str:
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)
