"""Data sets that Hugging Face's `datasets` saved to disk, read from its memory-mapped files one example at a time.

Nothing is downloaded; a folder that `save_to_disk` wrote is all that is opened.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.data.formats.array_keys import ID_KEYS, TARGET_KEYS, choose_split
from fsdtool.data.formats.table_columns import text_ids
from fsdtool.data.inputs.keys import TOKENS, Named, named_inputs, tokens_among
from fsdtool.data.inputs.part import listed
from fsdtool.data.readers import ROW_NUMBERS, Found, ItemReader, Request
from fsdtool.data.targets import numbered, refuse_missing
from fsdtool.errors import DataError, describe, some

INPUT_COLUMNS = ("image", "img", "x", "X", "pixel_values", "inputs", "features", "data", "input_ids")
TARGET_COLUMNS = ("label", *TARGET_KEYS)


class Columns:
    """A data set of (x, y) from columns of one that gives rows as dictionaries.

    Several columns of numbers make a vector; of several inputs (`apart`) x is a dict.
    """

    def __init__(self, dataset: Any, inputs: list[str], targets: np.ndarray, apart: bool = False) -> None:
        self._apart = apart
        self._dataset, self._inputs, self._targets = dataset, inputs, targets
        kinds = {_number_type(dataset.features[name]) for name in inputs}
        self._dtype = np.dtype(np.uint8) if kinds == {"uint8"} else None

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        found = self._dataset[row]
        if self._apart:
            return {name: found[name] for name in self._inputs}, self._targets[row]
        values = [found[name] for name in self._inputs]
        x = values[0] if len(values) == 1 else np.array(values, dtype=self._dtype or np.float32)
        return np.array(x, dtype=self._dtype) if isinstance(x, list) else x, self._targets[row]


def _number_type(feature: Any) -> str | None:
    """The type of the numbers in a column, through lists of lists."""
    if isinstance(feature, list):
        feature = feature[0]
    inner = getattr(feature, "feature", None)
    return getattr(feature, "dtype", None) if inner is None else _number_type(inner)


def open_saved_dataset(spec: str, request: Request) -> Found:
    """Open a folder that `save_to_disk` wrote; needs the extra `fsdtool[huggingface]`."""
    path = Path(spec)
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise DataError(
            f"'{path}' was saved by Hugging Face datasets ({error}); pip install 'fsdtool[huggingface]'"
        ) from error
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # arrow and json raise many kinds for damaged files
        raise DataError(f"'{path}' cannot be opened: {describe(error)}; save it again") from error
    split = ""
    if hasattr(dataset, "keys"):
        chosen = choose_split(list(dataset), request.split, str(path))
        split = f", split {chosen} of {', '.join(dataset)} (`split`)"
        dataset = dataset[chosen]
    elif request.split is not None:
        choose_split([], request.split, str(path))
    if not len(dataset):
        raise DataError(f"'{path}' is empty; give at least one example")
    return _open(dataset, split, path, request)


def _open(dataset: Any, split: str, path: Path, request: Request) -> Found:
    y_key = _choose(dataset, request.y_key, TARGET_COLUMNS, "ClassLabel", "targets", "y_key", path)
    named = _several(dataset, request)
    if named:
        inputs = [key for _, key in named]
    elif request.x_key is not None and "," in request.x_key:
        inputs = request.x_key.split(",")
    else:
        inputs = [_choose(dataset, request.x_key, INPUT_COLUMNS, "Image", "inputs", "x_key", path)]
    id_key = request.id_key or next((key for key in ID_KEYS if key in dataset.column_names), None)
    unknown = [key for key in inputs if key not in dataset.column_names]
    if id_key not in (None, ROW_NUMBERS, *dataset.column_names) or unknown:
        wrong = unknown[0] if unknown else id_key
        raise DataError(f"'{path}' has no column '{wrong}'; it has {some(dataset.column_names, 12)}")
    text = [key for key in inputs if _number_type(dataset.features[key]) in ("string", "large_string")]
    if text:
        raise DataError(
            f"column '{text[0]}' of '{path}' holds text, and inputs must be numbers or images; give another `x_key` "
            "(of a text, store the numbers that the network takes, as its embedding)"
        )
    id_key = id_key if id_key in dataset.column_names else None
    ids = np.arange(len(dataset)) if id_key is None else text_ids([str(name) for name in dataset[id_key]])
    names = getattr(dataset.features[y_key], "names", None)
    stored = list(dataset[y_key])
    if request.task.has_classes and _number_type(dataset.features[y_key]) in ("string", "large_string"):
        targets, names = numbered(stored, request, str(path))
    else:
        targets = _numbers(stored, y_key, dataset.features[y_key], path, request)
    pairs = Columns(dataset, inputs, request.task.targets(targets, ids, request.skip_bad), bool(named))
    reader = ItemReader(functools.partial(_same, pairs), pairs, ids, request)
    shown = listed(reader.parts) or f"'{','.join(inputs)}' {reader.shape}"
    note = (
        f"{len(dataset):,} examples, inputs {shown} (`x_key`), targets '{y_key}' (`y_key`){split}, "
        f"ids are {'row numbers' if id_key is None else repr(id_key)} (`id_key`)"
    )
    return Found(reader, ids, list(names) if names else None, note, reader.parts)


def _several(dataset: Any, request: Request) -> Named:
    """The argument and the key of each of several inputs: of more than one column, not all of single numbers."""
    columns = dataset.column_names
    if (
        request.x_key is None
        and not request.preprocessing.parts
        and not (set(INPUT_COLUMNS) - set(TOKENS)) & set(columns)
    ):
        found = tokens_among(columns)
        return found if len(found) > 1 else []
    found = named_inputs(request.x_key, request.preprocessing.parts, columns)
    single = all(hasattr(dataset.features.get(key), "dtype") for _, key in found)
    return [] if single and "=" not in (request.x_key or "") and not request.preprocessing.parts else found


def _numbers(stored: list[Any], key: str, feature: Any, path: Path, request: Request) -> np.ndarray:
    """Stored targets as an array; NaN for missing ones, where bad examples are to be skipped."""
    labels = getattr(feature, "feature", None)
    lengths = {len(value) for value in stored if isinstance(value, list)}
    if len(lengths) > 1 or (getattr(labels, "names", None) and lengths != {1}):
        raise DataError(
            f"column '{key}' of '{path}' lists several labels for one example (multi-label), which is not supported; "
            "give one class per example, or choose another column by `y_key`"
        )
    absent = [row for row, value in enumerate(stored) if value is None]
    if absent and not (request.skip_bad and len(absent) < len(stored)):
        raise refuse_missing(None, f"row {absent[0]} of '{path}'", request, key)
    blank = [np.nan] * lengths.pop() if lengths else np.nan
    try:
        found = np.array([blank if value is None else value for value in stored])
    except (ValueError, TypeError) as error:
        raise DataError(f"column '{key}' of '{path}' is no target ({describe(error)}); give another `y_key`") from error
    if found.dtype.kind not in "buif":
        raise DataError(f"column '{key}' of '{path}' holds {feature}, no targets; choose another by `y_key`")
    return found


def _same(pairs: Columns) -> Columns:
    return pairs


def _choose(
    dataset: Any, given: str | None, usual: tuple[str, ...], feature: str, what: str, argument: str, path: Path
) -> str:
    """The column given, else the first with a usual name, else the only one of the telling feature type."""
    names = dataset.column_names
    typed = [name for name in names if type(dataset.features[name]).__name__ == feature]
    candidates = [given] if given is not None else [name for name in usual if name in names][:1] or typed
    if len(candidates) != 1 or candidates[0] not in names:
        missing = f" has no column '{given}'" if given is not None else f": cannot tell which column holds the {what}"
        raise DataError(f"'{path}'{missing}; give `{argument}` one of: {some(names, 12)}")
    return candidates[0]
