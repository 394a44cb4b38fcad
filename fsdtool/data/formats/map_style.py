"""Data sets that give one example at a time: torchvision's and a user's own.

Nothing is downloaded.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from fsdtool.data.formats.image_folders import is_hidden
from fsdtool.data.inputs.part import listed
from fsdtool.data.readers import Found, ItemReader, Request
from fsdtool.errors import DataError, describe, some
from fsdtool.model.factory import check_arguments, load_factory, parse_value
from fsdtool.model.libraries import import_torchvision

log = logging.getLogger("fsdtool")
DATA_ROOT_VARIABLE = "FSDTOOL_DATA_ROOT"


def open_torchvision(spec: str, request: Request) -> Found:
    """`torchvision:NAME?argument=value&...`, from a local root."""
    return open_items(functools.partial(_torchvision_dataset, spec, request.split), spec, request)


def open_factory(spec: str, request: Request) -> Found:
    """`path/file.py:factory?argument=value&...`, a map-style data set of (x, y)."""
    return open_items(functools.partial(_user_dataset, spec, request.split), spec, request)


def open_items(open_dataset: Callable[[], Any], spec: str, request: Request) -> Found:
    """The examples of a map-style data set; its `classes` name the classes where it has such a list."""
    dataset = open_dataset()
    _check_map_style(dataset, spec)
    count = len(dataset)
    if count == 0:
        raise DataError(f"'{spec}' is empty; give at least one example")
    given = getattr(dataset, "classes", None)
    classes = list(given) if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given) else []
    hidden = [name for name in classes if is_hidden(name)]
    if hidden:
        log.warning(
            f"the classes of '{spec}' hold {some(hidden)}, a hidden folder, which shifts the numbers of the others; "
            "if the network was trained without it, remove it or give the folder of images itself as `data`"
        )
    ids = np.arange(count)
    reader = ItemReader(open_dataset, dataset, ids, request)
    split = f", split {request.split}" if request.split else ""
    shown = listed(reader.parts) or reader.shape
    note = f"{count:,} examples with inputs {shown}{split}, ids are row numbers"
    if request.task.has_classes and math.prod(reader.target_shape) != 1:
        note += f", one-hot labels of shape {reader.target_shape}"
    return Found(reader, ids, classes or None, note, reader.parts)


def _check_map_style(dataset: Any, spec: str) -> None:
    kind = type(dataset).__name__
    remedy = "return a data set that has a length and items (x, y)"
    if isinstance(dataset, DataLoader):
        remedy = "return the data set in it (its attribute 'dataset'), which gives (x, y) one by one"
    elif isinstance(dataset, Mapping):
        kind += f" with the keys {some([str(key) for key in dataset])}"
        remedy = "return a data set of (x, y), such as list(zip(x, y)) of its arrays"
    elif isinstance(dataset, tuple):
        kind += f" of {len(dataset)} parts"
        remedy = "return a data set of (x, y), such as list(zip(x, y)) of its arrays"
    elif isinstance(dataset, IterableDataset) or (hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")):
        kind += " that can only be read in order"
        remedy = "return a data set that has a length and items (x, y), such as the list of its examples"
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return
    raise DataError(f"'{spec}' gives a {kind}; {remedy}")


def _torchvision_dataset(spec: str, split: str | None) -> Any:
    name, arguments = _split_arguments(spec.removeprefix("torchvision:"))
    datasets = import_torchvision().datasets
    if name not in datasets.__all__:
        raise DataError(f"torchvision has no data set '{name}'; it has {some(sorted(datasets.__all__), 12)}")
    if "download" in arguments:
        raise DataError(f"'{spec}' asks for a download; fsdtool never downloads, leave download out")
    factory = getattr(datasets, name)
    root = arguments.get("root", os.environ.get(DATA_ROOT_VARIABLE, "data"))
    if "root" in inspect.signature(factory).parameters:
        arguments = {"root": root} | arguments
    arguments |= _split_argument(factory, spec, split)
    check_arguments(factory, arguments, spec=f"torchvision:{name}", usage=f"torchvision:{name}?{{}}=VALUE")
    try:
        return factory(**arguments)
    except Exception as error:
        raise DataError(
            f"'{spec}' cannot be opened under '{root}': {describe(error)}; fsdtool never downloads, "
            f"put the data set there or give torchvision:{name}?root=FOLDER"
        ) from error


def _user_dataset(spec: str, split: str | None) -> Any:
    name, arguments = _split_arguments(spec)
    factory = load_factory(name)
    arguments |= _split_argument(factory, spec, split)
    check_arguments(factory, arguments, spec=name, usage=name + "?{}=VALUE")
    try:
        return factory(**arguments)
    except (Exception, SystemExit) as error:
        raise DataError(f"the data factory '{spec}' raised {describe(error)}; correct it") from error


def _split_argument(factory: Callable[..., Any], spec: str, split: str | None) -> dict[str, Any]:
    """`split` as the factory takes it: its argument `split`, or `train` true or false."""
    if split is None:
        return {}
    parameters = inspect.signature(factory).parameters
    if "split" in parameters:
        return {"split": split}
    if "train" in parameters and split in ("train", "test"):
        return {"train": split == "train"}
    takes = "only train and test" if "train" in parameters else "no split"
    raise DataError(f"'{spec}' has {takes}, and `split` says '{split}'; leave it out or correct it")


def _split_arguments(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME?key=value&key=value` as the name and its arguments."""
    name, _, query = text.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    return name, {key: parse_value(value) for key, _, value in pairs}
