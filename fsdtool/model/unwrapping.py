"""Where in a checkpoint the weights stand: under wrappers, under a key that was asked for, or beside an average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fsdtool.errors import FsdtoolError, ModelError, some
from fsdtool.model.foreign_checkpoints import refuse_foreign
from fsdtool.model.pickle_stand_ins import as_tensor, named_class
from fsdtool.model.state_dict_names import is_averaged
from fsdtool.model.weight_files import needs_code

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
# Lightning's WeightAveraging puts the average under 'state_dict' and the trained weights here.
_TRAINED_ASIDE = "current_model_state"


def is_extra(name: str) -> bool:
    """Whether an entry of a state_dict is what a module saves besides tensors (`get_extra_state`)."""
    return name.rpartition(".")[2] == "_extra_state"


def under(content: object, key: str, path: Path) -> object:
    """What stands under a key: of a mapping, nested with dots between, by number in a list, or a prefix of names."""
    found = _find(content, key)
    if found is None:
        there = [str(k) for k in content] if isinstance(content, Mapping) else [str(i) for i in range(_length(content))]
        raise ModelError(
            f"the checkpoint '{path}' has nothing under '{key}' (it has {some(there, 8) or 'no keys'}); give a key "
            "of it as `checkpoint_key`",
            path=path,
        )
    return found


def _length(content: object) -> int:
    return len(content) if isinstance(content, (list, tuple)) else 0


def _find(content: object, key: str) -> object:
    if isinstance(content, (list, tuple)):
        head, _, rest = key.partition(".")
        inner = content[int(head)] if head.isdigit() and int(head) < len(content) else None
        return _find(inner, rest) if rest else inner
    if not isinstance(content, Mapping):
        return None
    for name, value in content.items():
        if str(name) == key and not isinstance(value, Tensor):
            return value
    for name, value in content.items():
        if key.startswith(f"{name}.") and (inner := _find(value, key.removeprefix(f"{name}."))) is not None:
            return inner
    named = {
        str(name).removeprefix(f"{key}."): value for name, value in content.items() if str(name).startswith(f"{key}.")
    }
    if named:
        return named
    inside = (_find(content[w], key) for w in WRAPPERS if isinstance(content.get(w), Mapping))
    return next((value for value in inside if value is not None), None)


def unwrap(
    content: object, ema: bool, notes: list[str], path: Path
) -> tuple[Mapping[str, object], dict[str, Tensor], bool, nn.Module | None]:
    """The mapping in `content` that holds the weights, its tensors, whether they are an average, and their module."""
    averaged, network = False, None
    for _ in range(16):  # a pickle may hold itself
        if isinstance(content, nn.Module):
            notes.append(f"took the weights of a pickled {getattr(content, 'original_name', type(content).__name__)}")
            network = None if isinstance(content, torch.jit.ScriptModule) else content
            content = content.state_dict()
        if code := named_class(content):
            raise needs_code(path, code)
        if not isinstance(content, Mapping):
            raise _no_mapping(content, path)
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
    if not isinstance(content, Mapping):
        raise _no_mapping(content, path)
    tensors = {
        str(key): value for key, value in content.items() if isinstance(value, Tensor) and not is_extra(str(key))
    }
    if not any(map(_is_weight, tensors.values())):
        arrays = {str(key): tensor for key, value in content.items() if (tensor := as_tensor(value)) is not None}
        notes += ["stored as NumPy arrays"] if arrays else []
        tensors |= arrays
    refuse_foreign(content, tensors, path)
    if not tensors:
        raise _no_tensors(content, path)
    steps = tensors.pop("n_averaged", None)
    if steps is not None:
        averaged = True
        notes.append(f"the weights are an average over {int(steps)} models (AveragedModel)")
    if ema and not averaged:
        tensors, network = _averaged_part(tensors, content, path), None
    return content, tensors, averaged or ema, network


def _no_mapping(content: object, path: Path) -> FsdtoolError:
    several = list(_places(content))
    if several:
        return ModelError(
            f"the checkpoint '{path}' holds a list with weights at {some(several)}; give "
            f"`checkpoint_key={several[0]}` for the first of them",
            path=path,
        )
    return ModelError(
        f"the checkpoint '{path}' holds a {type(content).__name__}, not names and tensors; "
        "save it again with torch.save(model.state_dict(), path)",
        path=path,
    )


def _places(content: object, depth: int = 3) -> Iterator[str]:
    """The keys under which a mapping or list holds weights, nested ones with dots between; not those of optimizers."""
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(content, Mapping):
        parts = content.items()
    elif isinstance(content, (list, tuple)):
        parts = enumerate(content)
    for key, value in () if isinstance(content, Mapping) and "param_groups" in content else parts:
        if _holds_weights(value):
            yield str(key)
        elif depth and isinstance(value, (Mapping, list, tuple)):
            yield from (f"{key}.{inner}" for inner in _places(value, depth - 1))


def _no_tensors(content: Mapping[object, object], path: Path) -> FsdtoolError:
    if several := list(_places(content)):
        found = "several sets of weights" if len(several) > 1 else "weights in a place of its own"
        also = " or another of them" if len(several) > 1 else ""
        return ModelError(
            f"the checkpoint '{path}' holds {found} ({some(several)}); give `checkpoint_key={several[0]}`{also}",
            path=path,
        )
    if whole := next((code for value in content.values() if (code := named_class(value))), None):
        return needs_code(path, whole)
    keys = some([str(key) for key in content], 8) or "no entries"
    return ModelError(
        f"the checkpoint '{path}' holds no tensors where they were looked for (it has {keys}); "
        "save it again with torch.save(model.state_dict(), path)",
        path=path,
    )


def _next_wrapper(content: Mapping[object, object], ema: bool, notes: list[str]) -> tuple[object, bool]:
    """The key of the next mapping to look into, and whether it is known to hold an average; None at the end."""
    trained = next((key for key in WRAPPERS if isinstance(content.get(key), (Mapping, nn.Module))), None)
    average = next((key for key, value in content.items() if is_averaged(str(key)) and _holds_weights(value)), None)
    if average is not None and (ema or (trained is None and not _own_tensors(content))):
        return average, True
    if average is not None and trained is not None:
        notes.append(f"averaged weights stand under '{average}'; give `ema=True` to take them")
    if trained is not None or _own_tensors(content):
        return trained, False
    only = [key for key, value in content.items() if _holds_weights(value)]
    only = only or [key for key, value in content.items() if _holds_weights(value, _is_array)]
    return (only[0] if len(only) == 1 else None), False


def _own_tensors(content: Mapping[object, object]) -> bool:
    """Whether weights stand here by name, and not only a step or the state of a random generator."""
    return any(_is_weight(value) and value.dtype != torch.uint8 for value in content.values())


def _is_weight(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and (is_lazy(value) or value.dim() > 0)


def _is_array(value: object) -> bool:
    tensor = as_tensor(value)
    return tensor is not None and tensor.dim() > 0


def _holds_weights(value: object, is_weight: Callable[[object], bool] = _is_weight) -> bool:
    if isinstance(value, Mapping):
        inner = (value, *(value[key] for key in WRAPPERS if isinstance(value.get(key), Mapping)))
        return any(isinstance(name, str) and is_weight(tensor) for part in inner for name, tensor in part.items())
    return isinstance(value, nn.Module)


def _refuse_nameless(content: Mapping[object, object], path: Path) -> None:
    # diffusers and torch_ema keep averages in the order of model.parameters(), which the names here need not have
    if "shadow_params" in content or any(isinstance(v, Mapping) and "shadow_params" in v for v in content.values()):
        raise ModelError(
            f"the checkpoint '{path}' holds its average as a list without names (shadow_params); copy it into the "
            "model with copy_to, and save model.state_dict()",
            path=path,
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
        raise ModelError(
            f"`ema` is given and the checkpoint '{path}' holds no averaged weights (it has "
            f"{some([str(key) for key in content], 8)}); leave `ema` out",
            path=path,
        )
    return part
