"""Items of a Python data set: which of their parts are inputs, and which is the target.

(x, y)               one input, or several where x is a dict or a tuple of tensors
(x1, x2, ..., y)     several by position
{"input_ids": ..., "label": y}     several by name; a single one by position; text is no input
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsdtool.data.inputs.keys import Named
from fsdtool.errors import DataError, some

LABELS = ("label", "labels", "target", "targets", "y")


def split_item(item: Any, y_key: str | None) -> tuple[Any, Any] | None:
    """Inputs and target of an item: the inputs as they are, or a dict or tuple of several; None for another item."""
    if isinstance(item, Mapping):
        label = y_key if y_key is not None else next((key for key in LABELS if key in item), None)
        if label not in item:
            return None
        return {key: value for key, value in item.items() if key != label}, item[label]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        return None
    return (item[0] if len(item) == 2 else tuple(item[:-1])), item[-1]


def several(x: Any, wanted: Named, identifier: Any) -> list[tuple[str, str, Any]]:
    """Key, name and value of each of several inputs; none where x is a single one.

    wanted: which are asked for, by argument and key.  Raises DataError for one that is not there.
    """
    if isinstance(x, Mapping):
        found = {str(key): value for key, value in x.items() if not isinstance(value, str) and value is not None}
    elif isinstance(x, (tuple, list)) and any(map(_is_array, x)):
        found = {str(i): value for i, value in enumerate(x)}
    else:
        return []
    if not wanted:
        return [(key, key if isinstance(x, Mapping) else "", value) for key, value in found.items()]
    missing = [key for name, key in wanted if key not in found and name not in found]
    if missing:
        raise DataError(
            f"example {identifier} has no input '{missing[0]}'; it has {some(list(found), 12)}", example=identifier
        )
    return [(key, name, found[key if key in found else name]) for name, key in wanted]


def _is_array(value: Any) -> bool:
    """Whether it is more than a number: a tensor, an array or a picture."""
    return bool(getattr(value, "shape", ())) or hasattr(value, "getbands")
