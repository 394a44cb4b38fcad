"""Checkpoints: a mapping from parameter names to tensors, out of whatever trained it.

fsdtool.model.weight_files reads the formats, fsdtool.model.unwrapping finds the weights in what they hold,
fsdtool.model.state_dict_names undoes prefixes of names, fsdtool.model.computed_weights makes computed weights plain;
what was done is reported.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fsdtool.errors import ModelError, describe, some
from fsdtool.model.computed_weights import has_sources, make_plain, plain_state, plain_values, source_of
from fsdtool.model.factory import canonical_names
from fsdtool.model.pickle_stand_ins import named_class
from fsdtool.model.state_dict_names import match_state, without_wrappers
from fsdtool.model.unwrapping import is_extra, under, unwrap
from fsdtool.model.weight_files import Names, read_stored

log = logging.getLogger("fsdtool")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, floating ones in float32, under the names it gives them.

    `sha256` is that of the file, or of an index and its shards one after the other; `notes` say which wrappers were
    undone and what was converted. `averaged`: the weights are a moving average. `hyper_parameters`: what Lightning
    recorded of them, as far as it is plain data. `network`: the pickled module the weights were taken from, if any.
    `versions`: what the state_dict notes of each module (`_metadata`). `extra`: what modules save besides tensors
    (`get_extra_state`). `key`: where in the file the weights stand, if that was asked for.
    """

    path: str
    sha256: str
    state: dict[str, Tensor]
    notes: tuple[str, ...]
    averaged: bool = False
    hyper_parameters: Mapping[str, object] = field(default_factory=dict)
    network: nn.Module | None = None
    versions: Mapping[str, dict[str, object]] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)
    key: str = ""


def read_checkpoint(
    path: str | Path,
    *,
    allow_pickle: bool = False,
    ema: bool = False,
    key: str | None = None,
    names: Names = nullcontext,
) -> Checkpoint:
    """Read a file of safetensors or torch.save, an index of shards, or a folder that holds one checkpoint.

    ema: take the moving average of the weights that the checkpoint holds beside them. key: where in the file the
    weights stand, of several ('teacher', 'ema.model', '0' in a list, or a prefix of names). Only plain data is read; a
    pickle that needs code is refused unless `allow_pickle`; within `names` its classes are looked up. Raises
    ModelError for a file that is missing, damaged or without the weights asked for, and for a tensor that is not
    finite or quantized.
    """
    path = Path(path)
    stored = read_stored(path, allow_pickle=allow_pickle, names=names)
    notes = list(stored.notes)
    content = stored.content
    if key is not None:
        content = under(content, key, path)
        notes.append(f"took the weights under '{key}' (`checkpoint_key`)")
    held, tensors, averaged, network = unwrap(content, ema, notes, path)
    size = sum(file.stat().st_size for file in stored.files)
    state = {name: _checked(name, tensor, size, path) for name, tensor in tensors.items()}
    converted = {str(t.dtype).removeprefix("torch.") for n, t in tensors.items() if t.dtype != state[n].dtype}
    if converted:
        notes.append(f"stored as {' and '.join(sorted(converted))}, used as float32")
    recorded = stored.content.get("hyper_parameters") if isinstance(stored.content, Mapping) else None
    hyper_parameters = {k: v for k, v in recorded.items() if _is_plain(v)} if isinstance(recorded, Mapping) else {}
    digest = _sha256(stored.files)
    extra = {str(name): value for name, value in held.items() if is_extra(str(name))}
    versions = getattr(held, "_metadata", None)
    return Checkpoint(
        str(stored.files[0]),
        digest,
        state,
        tuple(notes),
        averaged,
        hyper_parameters,
        network,
        versions if isinstance(versions, Mapping) else {},
        extra,
        key or "",
    )


def apply_checkpoint(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Load the checkpoint's tensors into the model and make its computed weights plain; returns notes on both.

    Raises ModelError where names or shapes differ, or where integers are stored for a floating parameter.
    """
    notes = _load(model, checkpoint)
    kinds = Counter(make_plain(model).values())
    if kinds:
        found = ", ".join(f"{kind} of {count}" for kind, count in kinds.items())
        notes.append(f"computed weights are used as they come out ({found})")
    return notes


def with_plain_weights(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as the model, which may compute weights, makes of it: all under plain names.

    The model is left with these weights and computes them as before.
    """
    _load(model, checkpoint)
    computed = plain_values(model)
    state = {name: tensor for name, tensor in tensors_of(model).items() if source_of(name, computed) is None}
    return replace(checkpoint, state={k: v.detach().clone() for k, v in (state | computed).items()}, versions={})


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of its state_dict: parameters and buffers, without what modules save besides (`get_extra_state`)."""
    state = model.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and not is_extra(name)}


def tied_names(model: nn.Module) -> dict[str, str]:
    """The names of tensors that have an earlier name too, and that name."""
    return {name: first for name, first in canonical_names(model).items() if name != first}


def _load(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    notes: list[str] = []
    own = tensors_of(model)
    given = checkpoint.state
    if has_sources(given) and not has_sources(own):
        given, notes = plain_state(given, source=checkpoint.path)
    elif has_sources(own) and not has_sources(given):
        make_plain(model)
        own = tensors_of(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    state, renamed = match_state(given, shapes, source=checkpoint.path, tied=tied_names(model))
    integers = [n for n, t in state.items() if own[n].is_floating_point() and not t.is_floating_point()]
    if integers:
        raise ModelError(
            f"the checkpoint does not fit the model ({checkpoint.path}): {some(integers)} hold "
            f"{state[integers[0]].dtype}, expected float32: it is quantized; give the checkpoint from before that",
            path=checkpoint.path,
        )
    whole = OrderedDict(state) | _extra_states(model, checkpoint)
    # torch keeps versions of modules there
    whole._metadata = _versions(model, checkpoint, state)  # type: ignore[attr-defined]  # no part of OrderedDict
    try:
        model.load_state_dict(whole, strict=False)
    except Exception as error:  # the model's own hooks
        raise ModelError(
            f"the model does not take the checkpoint ({checkpoint.path}): {describe(error)}; give the model and the "
            "arguments it was trained with",
            path=checkpoint.path,
        ) from error
    return notes + renamed


def _extra_states(model: nn.Module, checkpoint: Checkpoint) -> dict[str, object]:
    """What the checkpoint saved of the model's modules besides tensors, by the model's names."""
    found = {}
    for name in filter(is_extra, model.state_dict()):
        there = [k for k in checkpoint.extra if without_wrappers(k) == name or without_wrappers(k).endswith(f".{name}")]
        if len(there) == 1 and named_class(checkpoint.extra[there[0]]) is None:
            found[name] = checkpoint.extra[there[0]]
        else:
            log.warning(f"'{name}' is not in the checkpoint {checkpoint.path}; it stays as the factory has it")
    return found


def _versions(model: nn.Module, checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> OrderedDict[str, object]:
    """The notes of a state_dict on each module: the checkpoint's, where it has them, else the model's own."""
    keys = {id(tensor): key for key, tensor in checkpoint.state.items()}
    prefixes = Counter(
        keys[id(tensor)].removesuffix(name) for name, tensor in state.items() if keys.get(id(tensor), "").endswith(name)
    )
    prefix = max(prefixes, key=prefixes.__getitem__, default="")
    own = getattr(model.state_dict(), "_metadata", {})
    found = ((path, checkpoint.versions.get(f"{prefix}{path}".rstrip("."), kept)) for path, kept in own.items())
    return OrderedDict((path, dict(notes)) for path, notes in found if isinstance(notes, Mapping))


def _checked(name: str, tensor: Tensor, file_size: int, path: Path) -> Tensor:
    """The tensor, in float32 if it is floating; checked to be dense, finite and no larger than its file can hold."""
    if is_lazy(tensor):
        raise ModelError(
            f"the tensor '{name}' of the checkpoint '{path}' has no size yet: it was saved before its lazy layer had "
            "seen an input; run one batch through the model, train it and save it again",
            path=path,
        )
    tensor = tensor.detach()
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.element_size() < 2):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise ModelError(
            f"the tensor '{name}' of the checkpoint '{path}' is quantized ({dtype}); give the checkpoint in float32, "
            "float16 or bfloat16 that it was made from",
            path=path,
        )
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
        raise ModelError(
            f"the tensor '{name}' of the checkpoint '{path}' is sparse, complex or empty of data; "
            "save it as a dense floating tensor",
            path=path,
        )
    # A view with stride 0 can claim any size; what a file of this size can really hold is never refused.
    if tensor.numel() * tensor.element_size() > max(file_size, 2**30):
        raise ModelError(
            f"the tensor '{name}' of shape {tuple(tensor.shape)} is larger than its file '{path}' "
            f"({file_size} bytes); save it again with torch.save(model.state_dict(), path)",
            path=path,
        )
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.float32)
    finite = torch.isfinite(tensor)
    if not finite.all() and not _is_mask(tensor):
        bad = tensor.numel() - int(finite.sum())
        raise ModelError(
            f"the tensor '{name}' of the checkpoint '{path}' holds NaN or infinity ({bad} of {tensor.numel()} values); "
            "give a checkpoint from before the training diverged",
            path=path,
        )
    return tensor


def _is_mask(tensor: Tensor) -> bool:
    """Whether it is an attention mask, of zeros and minus infinities: some networks save theirs as a buffer."""
    return bool(((tensor == 0) | (tensor == -torch.inf)).all() and (tensor == 0).any())


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
