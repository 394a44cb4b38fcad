"""Checkpoints: a mapping from parameter names to tensors, out of whatever trained it.

It is often wrapped ({"state_dict": {...}}) and may hold a moving average of the weights beside them. Wrappers are
undone here, and that is reported; fsdtool.weightfiles reads the formats, fsdtool.matching undoes prefixes of names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fsdtool.errors import FsdtoolError, some
from fsdtool.matching import is_averaged, match_state
from fsdtool.weightfiles import StandIn, needs_code, read_stored

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
# Lightning's WeightAveraging puts the average under 'state_dict' and the trained weights here.
_TRAINED_ASIDE = "current_model_state"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, floating ones in float32, under the names it gives them.

    `sha256` is that of the file, or of an index and its shards one after the other; `notes` say which wrappers were
    undone and what was converted. `averaged`: the weights are a moving average. `hyper_parameters`: what Lightning
    recorded of them, as far as it is plain data. `network`: the pickled module the weights were taken from, if any.
    """

    path: str
    sha256: str
    state: dict[str, Tensor]
    notes: tuple[str, ...]
    averaged: bool = False
    hyper_parameters: Mapping[str, object] = field(default_factory=dict)
    network: nn.Module | None = None


def read_checkpoint(path: str | Path, *, allow_pickle: bool = False, ema: bool = False) -> Checkpoint:
    """Read a file of safetensors or torch.save, an index of shards, or a folder that holds one checkpoint.

    ema: take the moving average of the weights that the checkpoint holds beside them. Only plain data is read; a
    pickle that needs code is refused unless `allow_pickle`. Raises FsdtoolError for a file that is missing, damaged
    or without the weights asked for, and for a tensor that is not finite or quantized.
    """
    path = Path(path)
    stored = read_stored(path, allow_pickle=allow_pickle)
    notes = list(stored.notes)
    tensors, averaged, network = _unwrap(stored.content, ema, notes, path)
    size = sum(file.stat().st_size for file in stored.files)
    state = {name: _checked(name, tensor, size, path) for name, tensor in tensors.items()}
    converted = {str(t.dtype).removeprefix("torch.") for n, t in tensors.items() if t.dtype != state[n].dtype}
    if converted:
        notes.append(f"stored as {' and '.join(sorted(converted))}, used as float32")
    recorded = stored.content.get("hyper_parameters") if isinstance(stored.content, Mapping) else None
    hyper_parameters = {k: v for k, v in recorded.items() if _is_plain(v)} if isinstance(recorded, Mapping) else {}
    digest = _sha256(stored.files)
    return Checkpoint(str(stored.files[0]), digest, state, tuple(notes), averaged, hyper_parameters, network)


def apply_checkpoint(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Load the checkpoint's tensors into the model; returns notes on what was removed from their names.

    Raises FsdtoolError where names or shapes differ, or where integers are stored for a floating parameter.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    state, notes = match_state(checkpoint.state, shapes, source=checkpoint.path)
    integers = [n for n, t in state.items() if own[n].is_floating_point() and not t.is_floating_point()]
    if integers:
        raise FsdtoolError(
            f"the checkpoint does not fit the model ({checkpoint.path}): {some(integers)} hold "
            f"{state[integers[0]].dtype}, expected float32; give a checkpoint that is not quantized"
        )
    model.load_state_dict(state, strict=False)
    return notes


def _unwrap(
    content: object, ema: bool, notes: list[str], path: Path
) -> tuple[dict[str, Tensor], bool, nn.Module | None]:
    """The mapping of tensors inside `content`, whether it is an average, and the module that held it."""
    averaged, network = False, None
    for _ in range(16):  # a pickle may hold itself
        if isinstance(content, nn.Module):
            notes.append(f"took the weights of a pickled {getattr(content, 'original_name', type(content).__name__)}")
            network = None if isinstance(content, torch.jit.ScriptModule) else content
            content = content.state_dict()
        if isinstance(content, StandIn):
            raise needs_code(path, content.name)
        if not isinstance(content, Mapping):
            raise FsdtoolError(
                f"the checkpoint '{path}' holds a {type(content).__name__}, not names and tensors; "
                "save it again with torch.save(model.state_dict(), path)"
            )
        if _TRAINED_ASIDE in content:
            averaged = True
            notes.append("the weights are the average that Lightning's WeightAveraging keeps")
        if ema:
            _refuse_nameless(content, path)
        key, average = _next_wrapper(content, ema and not averaged, notes)
        if key is None:
            break
        averaged = averaged or average
        notes.append(f"took the {'averaged ' if average else ''}weights under '{key}'")
        content = content[key]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    arrays = [value.name for value in content.values() if isinstance(value, StandIn) and "_reconstruct" in value.name]
    if arrays:
        raise needs_code(path, arrays[0])
    if not tensors:
        keys = some([str(key) for key in content], 8) or "no entries"
        raise FsdtoolError(
            f"the checkpoint '{path}' holds no tensors where they were looked for (it has {keys}); "
            "save it again with torch.save(model.state_dict(), path)"
        )
    packed = [str(key) for key in content if str(key).endswith("_packed_params")]
    if packed:
        raise FsdtoolError(
            f"the checkpoint '{path}' is of a quantized network ({some(packed)}); give the one before it was quantized"
        )
    steps = tensors.pop("n_averaged", None)
    if steps is not None:
        averaged = True
        notes.append(f"the weights are an average over {int(steps)} models (AveragedModel)")
    if ema and not averaged:
        tensors, network = _averaged_part(tensors, content, path), None
    return tensors, averaged or ema, network


def _next_wrapper(content: Mapping[object, object], ema: bool, notes: list[str]) -> tuple[object, bool]:
    """The key of the next mapping to look into, and whether it is known to hold an average; None at the end."""
    trained = next((key for key in WRAPPERS if isinstance(content.get(key), (Mapping, nn.Module))), None)
    average = next((key for key, value in content.items() if is_averaged(str(key)) and _holds_weights(value)), None)
    if average is not None and (ema or (trained is None and not _own_tensors(content))):
        return average, True
    if average is not None and trained is not None:
        notes.append(f"averaged weights stand under '{average}'; give --ema to take them")
    if trained is not None or _own_tensors(content):
        return trained, False
    only = [key for key, value in content.items() if _holds_weights(value)]
    return (only[0] if len(only) == 1 else None), False


def _own_tensors(content: Mapping[object, object]) -> bool:
    """Whether weights stand here by name, and not only a step or the state of a random generator."""
    return any(_is_weight(value) and value.dtype != torch.uint8 for value in content.values())


def _holds_weights(value: object) -> bool:
    if isinstance(value, Mapping):
        inner = (value, *(value[key] for key in WRAPPERS if isinstance(value.get(key), Mapping)))
        return any(isinstance(name, str) and _is_weight(tensor) for part in inner for name, tensor in part.items())
    return isinstance(value, nn.Module)


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and (is_lazy(value) or value.dim() > 0)


def _refuse_nameless(content: Mapping[object, object], path: Path) -> None:
    # diffusers and torch_ema keep averages in the order of model.parameters(), which the names here need not have
    if "shadow_params" in content or any(isinstance(v, Mapping) and "shadow_params" in v for v in content.values()):
        raise FsdtoolError(
            f"the checkpoint '{path}' holds its average as a list without names (shadow_params); copy it into the "
            "model with copy_to, and save model.state_dict()"
        )


def _averaged_part(tensors: Mapping[str, Tensor], content: Mapping[object, object], path: Path) -> dict[str, Tensor]:
    """The tensors under a prefix that names an average (ema_model.module.fc.weight), without it."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        segments = name.split(".")
        depth = next((i for i, segment in enumerate(segments[:-1]) if is_averaged(segment)), None)
        if depth is not None and segments[-1] != "n_averaged":
            part[".".join(segments[depth + 1 :])] = tensor
    if not part:
        raise FsdtoolError(
            f"--ema is given and the checkpoint '{path}' holds no averaged weights (it has "
            f"{some([str(key) for key in content], 8)}); leave --ema out"
        )
    return part


def _checked(name: str, tensor: Tensor, file_size: int, path: Path) -> Tensor:
    """The tensor, in float32 if it is floating, known to be dense, of honest size and finite."""
    if is_lazy(tensor):
        raise FsdtoolError(
            f"the tensor '{name}' of the checkpoint '{path}' has no size yet: it was saved before its lazy layer had "
            "seen an input; run one batch through the model, train it and save it again"
        )
    tensor = tensor.detach()
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.element_size() < 2):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise FsdtoolError(
            f"the tensor '{name}' of the checkpoint '{path}' is quantized ({dtype}); give the checkpoint in float32, "
            "float16 or bfloat16 that it was made from"
        )
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
        raise FsdtoolError(
            f"the tensor '{name}' of the checkpoint '{path}' is sparse, complex or empty of data; "
            "save it as a dense floating tensor"
        )
    # A view with stride 0 can claim any size; what a file of this size can really hold is never refused.
    if tensor.numel() * tensor.element_size() > max(file_size, 2**30):
        raise FsdtoolError(
            f"the tensor '{name}' of shape {tuple(tensor.shape)} is larger than its file '{path}' "
            f"({file_size} bytes); save it again with torch.save(model.state_dict(), path)"
        )
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.float32)
    finite = torch.isfinite(tensor)
    if not finite.all() and not _is_mask(tensor):
        bad = tensor.numel() - int(finite.sum())
        raise FsdtoolError(
            f"the tensor '{name}' of the checkpoint '{path}' holds NaN or infinity ({bad} of {tensor.numel()} values); "
            "give a checkpoint from before the training diverged"
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
