"""`x_key` that names several inputs: by position as `ids,mask`, by name as `input_ids=ids,attention_mask=mask`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fsdtool.data.inputs.part import Part
from fsdtool.errors import DataError

# As tokenizers name what they make, in the order in which networks take it; each goes to the argument of its name.
TOKENS = ("input_ids", "attention_mask", "token_type_ids")

Named = list[tuple[str, str]]


def named_inputs(x_key: str | None, parts: Sequence[Part], known: Collection[str] = ()) -> Named:
    """The argument ('' by position) and the key of each of several inputs, none where one without a name is meant.

    parts: those of the summarized data, which count where no `x_key` is given.  known: keys of the data, one of which
    may be an `x_key` with a comma in it.  Raises DataError for a text that names no keys.
    """
    if x_key is None:
        return [(part.name, part.key) for part in parts if part.key or part.name]
    if x_key in known or not ("," in x_key or "=" in x_key):
        return []
    pairs = [part.partition("=") for part in x_key.split(",")]
    found = [(name.strip(), key.strip()) if equals else ("", name.strip()) for name, equals, key in pairs]
    if not all(key for _, key in found) or any(equals and not name.strip() for name, equals, _ in pairs):
        raise DataError(f"`x_key={x_key}` names no inputs; write ids,mask or input_ids=ids,attention_mask=mask")
    by_name = [bool(name) for name, _ in found]
    if by_name != sorted(by_name):
        raise DataError(f"`x_key={x_key}` has an input by position behind one by name; put those without names first")
    return found


def tokens_among(keys: Collection[str]) -> Named:
    """The usual keys of tokens, each to the argument of its name; none where there are no ids."""
    return [(key, key) for key in TOKENS if key in keys] if TOKENS[0] in keys else []
