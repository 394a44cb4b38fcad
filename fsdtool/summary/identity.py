"""What was summarized: `Identity`, and how its fields stand in the file.

Each field says in which part it stands: '/', 'model' and 'data' are parts of the dataset `/identity` (JSON), 'names' is
the dataset `/model/names`.  Writing and reading go over the fields in their order here; a field's type tells how its
value is written.  The network (`graph`, `shapes`) and the class names are datasets of their own.  Values other than the
preprocessing are read without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import h5py

from fsdtool.summary import hdf5
from fsdtool.tasks.task import Task, task_of
from fsdtool.util.fields import Fields

if TYPE_CHECKING:
    from fsdtool.data.preprocessing import Preprocessing
    from fsdtool.network.graph import Graph

JSON_PARTS, NAMES = ("/", "model", "data"), "names"


def _at(part: str, key: str = "") -> dict[str, str]:
    """That a field stands in this part of the file, under its own name unless `key` gives another."""
    return {"part": part, "key": key}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What was summarized: everything of the file that is neither statistics nor records.

    graph, shapes: the network, and the shape of every entry of the model's state_dict.
    reasons: why the network was not traced in full.  head: the layer traced, in last layer mode.
    earlier: name and SHA-256 of checkpoints that gave evidence too.
    checkpoint_key: where in the checkpoint's file the weights stood; output: which of the model's outputs is meant;
    both empty unless asked for.
    tied: names of tensors that have an earlier name too, and that name.  computed: weights that the model's code
    computes, and how.  digests: in last layer mode, of each tensor outside that layer.
    """

    graph: Graph
    shapes: dict[str, tuple[int, ...]]
    class_names: tuple[str, ...] | None
    task: Task = field(metadata=_at("/"))
    tool_version: str = field(metadata=_at("/"))
    created: str = field(metadata=_at("/"))
    command_line: str = field(metadata=_at("/"))
    seed: int = field(metadata=_at("/"))
    model_spec: str = field(metadata=_at("model", "spec"))
    model_arguments: dict[str, Any] = field(metadata=_at("model", "arguments"))
    mode: str = field(metadata=_at("model"))
    reasons: tuple[str, ...] = field(metadata=_at("model"))
    head: str = field(metadata=_at("model"))
    checkpoint_name: str = field(metadata=_at("model", "checkpoint"))
    checkpoint_sha256: str = field(metadata=_at("model"))
    checkpoint_averaged: bool = field(metadata=_at("model"))
    earlier: tuple[tuple[str, str], ...] = field(metadata=_at("model"), default=())
    checkpoint_key: str = field(metadata=_at("model"), default="")
    output: str = field(metadata=_at("model"), default="")
    data_spec: str = field(metadata=_at("data", "spec"))
    examples: int = field(metadata=_at("data"))
    fingerprint: str = field(metadata=_at("data"))
    preprocessing: Preprocessing = field(metadata=_at("data"))
    tied: dict[str, str] = field(metadata=_at(NAMES), default_factory=dict)
    computed: dict[str, str] = field(metadata=_at(NAMES), default_factory=dict)
    digests: dict[str, str] = field(metadata=_at(NAMES), default_factory=dict)


def identity_part(file: h5py.File, name: str) -> Fields:
    """What the file says of itself ('/'), of the 'model' or of the 'data'."""
    everything = hdf5.json_in(file, "identity")
    part = everything.get(name) if isinstance(everything, dict) else None
    return Fields(part, lambda what: hdf5.unusable(file, f"'/identity' of '{name}': {what}"))


def read_names(file: h5py.File) -> Fields:
    """Names of parameters by kind: `frozen`, a list, and `tied`, `computed` and `digests`, texts by name."""
    return Fields(hdf5.json_in(file, "model/names"), lambda what: hdf5.unusable(file, f"'/model/names': {what}"))


def read_values(file: h5py.File, *names: str) -> dict[str, Any]:
    """The stored fields of these names, or all, by name.  Raises SummaryError for one that is not as it should be."""
    wanted = [f for f in _stored() if not names or f.name in names]
    parts = {part: _part(file, part) for part in dict.fromkeys(f.metadata["part"] for f in wanted)}
    return {f.name: _codec(f).read(parts[f.metadata["part"]], _key(f)) for f in wanted}


def written_values(identity: Identity, part: str) -> dict[str, Any]:
    """The fields of one part as JSON values, by key."""
    found = [f for f in _stored() if f.metadata["part"] == part]
    return {_key(f): _codec(f).write(getattr(identity, f.name)) for f in found}


@dataclass(frozen=True)
class _Codec:
    """How a value of one type is read from a part and made a JSON value."""

    read: Callable[[Fields, str], Any]
    write: Callable[[Any], Any] = lambda value: value


def _read_preprocessing(part: Fields, key: str) -> Preprocessing:
    from fsdtool.data.preprocessing import Preprocessing  # torch comes with it

    return Preprocessing.from_json(part.mapping(key))


_CODECS = {
    "str": _Codec(Fields.text),
    "int": _Codec(Fields.integer),
    "bool": _Codec(Fields.flag),
    "tuple[str, ...]": _Codec(Fields.texts),
    "tuple[tuple[str, str], ...]": _Codec(Fields.pairs),
    "dict[str, Any]": _Codec(Fields.mapping),
    "dict[str, str]": _Codec(Fields.named_texts),
    "Task": _Codec(lambda part, key: task_of(part.text(key)), lambda task: task.name),
    "Preprocessing": _Codec(_read_preprocessing, lambda preprocessing: preprocessing.to_json()),
}


def _stored() -> list[Field[Any]]:
    return [f for f in fields(Identity) if f.metadata]


def _codec(f: Field[Any]) -> _Codec:
    return _CODECS[str(f.type)]


def _key(f: Field[Any]) -> str:
    return f.metadata["key"] or f.name


def _part(file: h5py.File, part: str) -> Fields:
    return read_names(file) if part == NAMES else identity_part(file, part)
