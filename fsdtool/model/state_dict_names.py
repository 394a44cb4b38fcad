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

import torch
from torch import Tensor

from fsdtool.errors import ModelError, some

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# Segments that torch puts in front of what it wraps, wherever that is.
_WRAPPING = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_checkpoint_module)\.")
_PARALLEL = re.compile(r"(^|(?<=\.))module\.")
# Buffers that no result depends on, which releases of torch and tools write or leave out.
_IDLE = ("num_batches_tracked", "total_ops", "total_params", "position_ids", "n_averaged")
# Beside a network stand what measures it and its loss, with tensors of their own; and the states of torchmetrics.
_MEASURES = re.compile(
    r"(^|_)(metrics?|criterion|criteria|loss(es)?|acc|accuracy|auroc|f1|confmat|confusion\w*|fid|lpips|perceptual)(_|$)"
)
_STATES = ("confmat", "tp", "fp", "tn", "fn", "total", "correct", "preds", "target", "value", "sum_value")
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged)(_|$)")


def match_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    tied: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the entries of `state` to the names in `expected`, and check that names and shapes agree.

    Returns the tensors under the expected names, in the expected order, and notes on what was removed from the
    names and on what stands outside the network's prefix and was left out. Buffers that no result depends on
    (`num_batches_tracked`) may be missing, and are then left out, or extra. tied: names of tensors that have an earlier
    name too, and that name; one of them is enough. Raises ModelError naming what is missing, unexpected, doubled or
    of another shape; `source` says where `state` is from.
    """
    targets = {without_wrappers(name): name for name in expected}  # a model may itself be compiled
    plain = {key: without_wrappers(key) for key in state}
    if any(name not in plain.values() for name in targets):
        targets, plain = _without_inner(targets, plain)
    state = _with_tied(state, plain, tied or {})
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
        raise ModelError(
            f"the checkpoint does not fit the model ({source}): {'; '.join(problems)}; "
            "give the model and the arguments it was trained with",
            path=source,
        )
    notes = _notes(found)
    if outside:
        notes.append(f"left out {some(outside)}: not part of the model")
    matched = {name: state[found[name]] for name in expected if name in found}
    check_tied(matched, tied or {}, source=source)
    return matched, notes


def _without_inner(targets: dict[str, str], plain: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Both with the segment of DataParallel within names removed, unless the network tells names apart by it."""
    shorter = {_PARALLEL.sub("", name): target for name, target in targets.items()}
    bare = {key: _PARALLEL.sub("", name) for key, name in plain.items()}
    if len(shorter) < len(targets) or len(set(bare.values())) < len(set(plain.values())):
        return targets, plain
    endings = set(bare.values())
    met = sum(any(rest in shorter for _, rest in _splits(name)) for name in endings)
    before = sum(any(rest in targets for _, rest in _splits(name)) for name in set(plain.values()))
    return (shorter, bare) if met > before else (targets, plain)


def _with_tied(state: Mapping[str, Tensor], plain: dict[str, str], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """The state, and where it has a tied tensor under one of its names, under the others too (noted in `plain`)."""
    result = dict(state)
    for alias, first in tied.items():
        for here, other in ((alias, first), (first, alias)):
            here, other = without_wrappers(here), without_wrappers(other)
            for key, name in list(plain.items()):
                if name == here or name.endswith(f".{here}"):
                    twin = name.removesuffix(here) + other
                    if twin not in plain.values():
                        result[twin], plain[twin] = result[key], twin
    return result


def check_tied(state: Mapping[str, Tensor], tied: Mapping[str, str], *, source: str) -> None:
    """Raise ModelError where tensors that are one in the network differ; the state has the network's names."""
    for alias, first in tied.items():
        if alias in state and first in state and not torch.equal(state[alias], state[first]):
            raise ModelError(
                f"'{alias}' and '{first}' are one tensor in the network and differ in the checkpoint ({source}); give "
                "a checkpoint of this network, or the network with two tensors",
                path=source,
            )


def is_averaged(name: str) -> bool:
    """Whether a segment of a name says that a moving average of weights stands there (ema, swa, averaged)."""
    return any(_AVERAGED.search(segment) for segment in name.lower().split("."))


def without_wrappers(name: str) -> str:
    """The name without the prefixes that compiled and parallel execution put in front."""
    return _WRAPPING.sub("", name)


def matters(name: str) -> bool:
    """Whether a network needs this entry: not so the count of batches, say, that batch norm keeps."""
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
    """Keys of layers: beside a network may stand its average, a loss and metrics, but no layer."""
    stems = {
        key.rpartition(".")[0]
        for key in outside
        if not _measures(key) and (state[key].dim() > 1 or key.rpartition(".")[2] in ("bias", "running_mean"))
    }
    return [key for key in outside if key.rpartition(".")[0] in stems and not is_averaged(key)]


def _measures(key: str) -> bool:
    *path, leaf = key.lower().split(".")
    return leaf in _STATES or any(_MEASURES.search(segment) for segment in path)


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
    raise ModelError(
        f"the checkpoint has the model's names under several prefixes ({source}): {some(sorted(prefixes))}; give "
        f"`checkpoint_key={sorted(filter(None, prefixes))[0].rstrip('.')}` or another of them",
        path=source,
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
        problems.append(f"it has {there} outputs, the model {here} (in torchvision: `model_arg=num_classes={there}`)")
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
