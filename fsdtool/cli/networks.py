"""From --model, --model-arg and --checkpoint to checkpoints and networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fsdtool.cli.groups import NetworkOptions, WeightOptions
from fsdtool.errors import FsdtoolError

if TYPE_CHECKING:
    from torch import nn

    from fsdtool.model.checkpoint import Checkpoint
    from fsdtool.model.weight_files import Names
    from fsdtool.summary.reader import Summary

log = logging.getLogger("fsdtool")


def key_values(pairs: Sequence[str] | None) -> dict[str, str]:
    """The arguments given as `--model-arg key=value`."""
    arguments: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not (equals and key):
            raise FsdtoolError(f"--model-arg '{pair}' is not of the form key=value; write for example width=64")
        if key in arguments:
            raise FsdtoolError(f"--model-arg {key} is given twice, as '{arguments[key]}' and '{value}'; give it once")
        arguments[key] = value
    return arguments


def check_network_options(network: NetworkOptions, weights: WeightOptions) -> None:
    """Refuse --model and --checkpoint one without the other, unless the network itself may be pickled in the latter."""
    model, checkpoint = network.model, network.checkpoint
    if weights.checkpoint_key is not None and checkpoint is None:
        raise FsdtoolError(
            f"--checkpoint-key {weights.checkpoint_key} is given without --checkpoint; give both or neither"
        )
    if model is None and checkpoint is not None and weights.allow_pickle:
        return
    if (model is None) is not (checkpoint is None):
        given, missing = ("--checkpoint", "--model") if model is None else ("--model", "--checkpoint")
        raise FsdtoolError(f"{given} is given without {missing}; give both or neither")
    check_model_arguments(model, network.model_arg)


def check_model_arguments(model: str | None, arguments: Sequence[str] | None) -> None:
    """Refuse --model-arg without --model."""
    if model is None and arguments:
        raise FsdtoolError(f"--model-arg {arguments[0]} is given without --model; give both or neither")


def read_checkpoint(path: Path, weights: WeightOptions, spec: str | None = None) -> Checkpoint:
    """The checkpoint; `spec` is --model, in whose module a pickle's classes are looked up too."""
    from fsdtool.model.checkpoint import read_checkpoint

    names: Names = nullcontext
    if weights.allow_pickle and spec is not None:
        from fsdtool.model.factory import script_names

        names = partial(script_names, spec)
    checkpoint = read_checkpoint(
        path, allow_pickle=weights.allow_pickle, ema=weights.ema, key=weights.checkpoint_key, names=names
    )
    for note in checkpoint.notes:
        log.info(f"{path}: {note}")
    return checkpoint


def build_model(spec: str | None, arguments: dict[str, str], checkpoint: Checkpoint) -> nn.Module:
    """The network that `spec` names; without one, that of a pickled module or of weights that tell it."""
    if spec is not None and not spec.startswith("mlp:"):
        from fsdtool.model.factory import load_model

        return load_model(spec, arguments, checkpoint.hyper_parameters, Path(checkpoint.path).parent)
    if spec is None and checkpoint.network is not None:
        from fsdtool.model.factory import prepare

        log.info(f"the model is the {type(checkpoint.network).__name__} pickled in {checkpoint.path}")
        return prepare(checkpoint.network, checkpoint.path)
    from fsdtool.model.computed_weights import plain_state
    from fsdtool.network.mlp_from_weights import infer_mlp

    state, _ = plain_state(checkpoint.state, source=checkpoint.path)
    return infer_mlp(state, spec, arguments, source=checkpoint.path)


def rebuild(summary: Summary, spec: str | None, arguments: Sequence[str] | None, checkpoint: Checkpoint) -> nn.Module:
    """The network that `spec` names, with the summary's arguments where it is the same; without its weights.

    It returns the output that was summarized.
    """
    from fsdtool.data.inputs.handing import hand_over
    from fsdtool.network.logits import answer_with

    identity, given = summary.identity, key_values(arguments)
    if spec is not None and _same_factory(spec, identity.model_spec):
        added = {name: value for name, value in identity.model_arguments.items() if name not in given}
        if added:
            log.info(f"the model's {', '.join(f'{n}={v}' for n, v in added.items())} are as summarized (--model-arg)")
        given = added | given
    network = build_model(spec, given, checkpoint)
    answer_with(network, identity.output)
    hand_over(network, identity.preprocessing.parts)
    return network


def summarized_network(summary: Summary, options: NetworkOptions, weights: WeightOptions) -> nn.Module | None:
    """The network that was summarized, built again from --model and --checkpoint; None without these.

    Raises FsdtoolError for another checkpoint file.
    """
    if options.checkpoint is None:
        return None
    from fsdtool.fsd.last_layer import check_unmoved
    from fsdtool.model.checkpoint import apply_checkpoint

    identity = summary.identity
    weights = replace(weights, checkpoint_key=weights.checkpoint_key or identity.checkpoint_key or None)
    checkpoint = read_checkpoint(options.checkpoint, weights, options.model)
    if checkpoint.sha256 != identity.checkpoint_sha256:
        expected = f"{identity.checkpoint_name}, SHA-256 {identity.checkpoint_sha256[:16]}..."
        raise FsdtoolError(
            f"'{checkpoint.path}' is not the checkpoint that was summarized ({expected}), "
            f"its SHA-256 is {checkpoint.sha256[:16]}...; give that file, or summarize this one"
        )
    if checkpoint.averaged is not identity.checkpoint_averaged:
        averaged = "averaged" if identity.checkpoint_averaged else "trained"
        log.warning(f"the {averaged} weights of the checkpoint were summarized and these are not; see --ema")
    network = rebuild(summary, options.model, options.model_arg, checkpoint)
    for note in apply_checkpoint(network, checkpoint):
        log.info(f"{checkpoint.path}: {note}")
    check_unmoved(summary, network, checkpoint.path)
    return network


def _same_factory(one: str, other: str) -> bool:
    """Whether two specs name the same factory, of the same file name where it is a file."""
    (place, _, name), (there, _, known) = one.rpartition(":"), other.rpartition(":")
    return name == known and (place == there or (place.endswith(".py") and Path(place).name == Path(there).name))
