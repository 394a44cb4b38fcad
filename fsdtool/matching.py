"""Names of weights: from those of a checkpoint to those of a model.

A network gets a prefix from whatever holds it ("module." from DataParallel, "model." from a Lightning module, any
attribute's name), and torch.compile and FSDP put segments of their own in the middle of names. The network is found
where all of its names stand under one prefix, with its shapes; then every name below must agree.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import Tensor

from fsdtool.errors import FsdtoolError, some

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# Segments that torch puts in front of what it wraps, wherever that is.
_WRAPPING = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_checkpoint_module)\.")
# Buffers that no result depends on, which releases of torch and tools write or leave out.
_IDLE = ("num_batches_tracked", "total_ops", "total_params", "position_ids", "n_averaged")
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged)(_|$)")


def match_state(
    state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the entries of `state` to the names in `expected`, and check that names and shapes agree.

    Returns the tensors under the expected names, in the expected order, and notes on what was removed from the
    names and on what stands outside the network's prefix and was left out. Buffers that no result depends on
    (`num_batches_tracked`) may be missing, and are then left out, or extra. Raises FsdtoolError naming what is
    missing, unexpected, doubled or of another shape; `source` says where `state` is from.
    """
    targets = {without_wrappers(name): name for name in expected}  # a model may itself be compiled
    plain = {key: without_wrappers(key) for key in state}
    names, outside = _named(plain, {p: expected[n] for p, n in targets.items()}, state, source)
    found: dict[str, str] = {}  # expected name -> name in the checkpoint
    doubled: list[str] = []
    for key, name in names.items():
        if name in targets and targets[name] in found:
            doubled.append(f"both {found[targets[name]]} and {key} stand for {targets[name]}")
        elif name in targets:
            found[targets[name]] = key
    unexpected = [key for key, name in names.items() if name not in targets and matters(name)]
    unexpected += _layers(outside, state)
    problems = doubled + _problems(found, unexpected, state, expected)
    if problems:
        raise FsdtoolError(
            f"the checkpoint does not fit the model ({source}): {'; '.join(problems)}; "
            "give the model and the arguments it was trained with"
        )
    notes = _notes(found)
    if outside:
        notes.append(f"left out {some(outside)}: not part of the model")
    return {name: state[found[name]] for name in expected if name in found}, notes


def is_averaged(name: str) -> bool:
    """Whether a segment of a name says that a moving average of weights stands there (ema, swa, averaged)."""
    return any(_AVERAGED.search(segment) for segment in name.lower().split("."))


def without_wrappers(name: str) -> str:
    return _WRAPPING.sub("", name)


def matters(name: str) -> bool:
    return name.rpartition(".")[2] not in _IDLE


def _named(
    plain: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, str], list[str]]:
    """The name in the model of each key, and the keys that stand outside of it."""
    wanted = {name for name in shapes if matters(name)}
    by_name: Counter[str] = Counter()
    by_shape: Counter[str] = Counter()
    for key, name in plain.items():
        for prefix, rest in _splits(name):
            if rest in wanted:
                by_name[prefix] += 1
                by_shape[prefix] += tuple(state[key].shape) == shapes[rest]
    fitting = [p for p, n in by_shape.items() if n == len(wanted)] or [
        p for p, n in by_name.items() if n == len(wanted)
    ]
    if fitting:
        prefix = _choose(fitting, source)
        outside = [key for key, name in plain.items() if not name.startswith(prefix) and matters(name)]
        return {key: name.removeprefix(prefix) for key, name in plain.items() if name.startswith(prefix)}, outside
    each = {key: next((n for n in _shortened(name) if n in shapes), name) for key, name in plain.items()}
    best = max(by_name, key=by_name.__getitem__, default="")
    if by_name[best] > len(wanted.intersection(each.values())):
        return {key: name.removeprefix(best) for key, name in plain.items() if name.startswith(best)}, []
    return each, []


def _layers(outside: list[str], state: Mapping[str, Tensor]) -> list[str]:
    """Keys of layers: beside a network may stand its average and the class weights of a loss, but no layer."""
    stems = {
        key.rpartition(".")[0]
        for key in outside
        if state[key].dim() > 1 or key.rpartition(".")[2] in ("bias", "running_mean")
    }
    return [key for key in outside if key.rpartition(".")[0] in stems and not is_averaged(key)]


def _choose(prefixes: list[str], source: str) -> str:
    """The prefix under which the network stands, of those where all of its names do."""
    for kept in (
        [p for p in prefixes if not p],
        prefixes,
        [p for p in prefixes if not is_averaged(p)],
        [p for p in prefixes if not p.strip(".") or all(f"{part}." in PREFIXES for part in p[:-1].split("."))],
    ):
        if len(kept) == 1:
            return kept[0]
    raise FsdtoolError(
        f"the checkpoint has the model's names under several prefixes ({source}): {some(sorted(prefixes))}; "
        "save the one that is meant, with torch.save(model.state_dict(), path)"
    )


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """The name cut at its start and after each of its dots, as prefix and rest."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _shortened(name: str) -> Iterator[str]:
    """The name, then the name with one more known prefix removed each time."""
    prefix: str | None = ""
    while prefix is not None:
        name = name.removeprefix(prefix)
        yield name
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)


def _problems(
    found: Mapping[str, str],
    unexpected: list[str],
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
) -> list[str]:
    missing = [name for name in expected if name not in found and matters(name)]
    same_shape = {
        name: [key for key in unexpected if tuple(state[key].shape) == expected[name]] for name in missing[:4]
    }
    shown = [f"{name}{_perhaps(name, same_shape[name])}" if name in same_shape else name for name in missing]
    reshaped = {name: key for name, key in found.items() if tuple(state[key].shape) != expected[name]}
    shapes = [f"{name} is {tuple(state[key].shape)}, expected {expected[name]}" for name, key in reshaped.items()]
    problems = [f"missing {some(shown)}"] if missing else []
    problems += [f"unexpected {some(unexpected)}"] if unexpected else []
    problems += [f"other shapes: {some(shapes)}"] if shapes else []
    outputs = {(tuple(state[key].shape)[:1], expected[name][:1]) for name, key in reshaped.items()}
    tails = all(tuple(state[key].shape)[1:] == expected[name][1:] for name, key in reshaped.items())
    if len(outputs) == 1 and tails and not (missing or unexpected) and all(map(all, outputs)):
        ((there,), (here,)) = outputs.pop()
        problems.append(f"it has {there} outputs, the model {here} (in torchvision: --model-arg num_classes={there})")
    return problems


def _perhaps(name: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.3)
    return f" (perhaps {near[0]}, of the same shape)" if near else ""


def _notes(found: Mapping[str, str]) -> list[str]:
    prefixes = Counter(key.removesuffix(name) for name, key in found.items() if key.endswith(name))
    notes = [
        f"removed the prefix '{prefix}' from {count} of {len(found)} names"
        for prefix, count in sorted(prefixes.items())
        if prefix
    ]
    inside = [key for name, key in found.items() if not key.endswith(name)]
    if inside:
        notes.append(f"removed the names of wrappers from {len(inside)} of {len(found)} names, as in {inside[0]}")
    return notes
