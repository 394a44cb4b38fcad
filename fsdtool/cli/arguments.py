"""What several commands read from their arguments: checkpoints, data, lists of numbers, files to be written."""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fsdtool.errors import FsdtoolError, describe
from fsdtool.util.csv_cells import known_text, unescaped
from fsdtool.util.terminal import one_line

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from fsdtool.data.source import DataSource
    from fsdtool.model.checkpoint import Checkpoint
    from fsdtool.model.weight_files import Names
    from fsdtool.summary.catalogue import Catalogue
    from fsdtool.summary.reader import Summary

log = logging.getLogger("fsdtool")


def read_checkpoint(
    path: Path, allow_pickle: bool, ema: bool = False, key: str | None = None, spec: str | None = None
) -> Checkpoint:
    """The checkpoint; `spec` is --model, in whose module a pickle's classes are looked up too."""
    from fsdtool.model.checkpoint import read_checkpoint

    names: Names = nullcontext
    if allow_pickle and spec is not None:
        from fsdtool.model.factory import script_names

        names = partial(script_names, spec)
    checkpoint = read_checkpoint(path, allow_pickle=allow_pickle, ema=ema, key=key, names=names)
    for note in checkpoint.notes:
        log.info(f"{path}: {note}")
    return checkpoint


def build_model(spec: str | None, arguments: dict[str, str], checkpoint: Checkpoint) -> nn.Module:
    """The network that `spec` names; without one, that of a pickled module or of weights that tell it."""

    if spec is not None and not spec.startswith("mlp:"):
        from fsdtool.model.factory import load_model

        return load_model(spec, arguments, checkpoint.hyper_parameters)
    if spec is None and checkpoint.network is not None:
        from fsdtool.model.factory import prepare

        log.info(f"the model is the {type(checkpoint.network).__name__} pickled in {checkpoint.path}")
        return prepare(checkpoint.network, checkpoint.path)
    from fsdtool.model.computed_weights import plain_state
    from fsdtool.network.mlp_from_weights import infer_mlp

    state, _ = plain_state(checkpoint.state, source=checkpoint.path)
    return infer_mlp(state, spec, arguments, source=checkpoint.path)


def warn_of_fit(summary: Catalogue) -> None:
    """Say again what `summarize` said of a network that does not know its training data."""
    from fsdtool.statistics.fit import doubt

    if summary.fit is not None and (fault := doubt(summary.fit)):
        log.warning(f"'{summary.path}': {fault}")


def read_ids(source: str | Path) -> set[str]:
    """The ids in a file, or on stdin for '-': a column `id` of a CSV file with a header, else one id a line."""
    try:
        content = sys.stdin.buffer.read() if str(source) == "-" else Path(source).read_bytes()
        # A byte order mark is no part of an id, nor is the line end of another system.
        lines = [line.rstrip("\r") for line in content.decode("utf-8-sig").split("\n") if line.rstrip("\r")]
        header = next(csv.reader(lines[:1]), [])
        if "id" not in header:
            return set(lines)
        column = header.index("id")
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        return {unescaped(cells[column]) for cells in list(rows)[1:] if len(cells) > column}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FsdtoolError(
            f"the ids in '{source}' cannot be read ({describe(error)}); give a UTF-8 file with one id a line"
        ) from error


def rows_named(summary: Catalogue, source: str | None, data: DataSource | None = None) -> np.ndarray | None:
    """Which records, or examples of `data`, the file `source` (-: stdin) names: (N,) bool; None without a source."""
    if source is None:
        return None
    if data is not None:
        ids, where = data.ids, data.spec
    elif summary.records is not None:
        ids, where = summary.records.ids, str(summary.path)
    else:
        raise FsdtoolError(f"'{summary.path}' was written with --no-records and knows no ids; leave --ids out")
    import numpy as np

    known = [one_line(identifier) for identifier in ids.tolist()]
    names = set(known)
    asked = {known_text(one_line(text), names) for text in read_ids(source)}
    unknown = sorted(asked - names)
    if unknown:
        raise FsdtoolError(
            f"{len(unknown)} of the {len(asked)} ids in '{source}' are not in '{where}', '{unknown[0]}' first; "
            "give ids of its training examples, one a line"
        )
    return np.array([identifier in asked for identifier in known])


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


def numbers(text: str | None, flag: str) -> tuple[float, ...] | None:
    """The numbers of `0.5,0.4`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FsdtoolError(f"{flag} '{text}' is not a list of numbers; write for example 0.5,0.4,0.3") from None


def check_output(path: Path, flag: str, inputs: Iterable[str | Path] = (), suffix: str | tuple[str, ...] = "") -> None:
    """Refuse, before anything is computed, a file that cannot be written or that is one of the inputs."""
    folder = path.parent
    if str(path) == "-":
        raise FsdtoolError(f"{flag} - asks for stdout, but only a file can hold it; give the name of a file")
    if not path.name.endswith(suffix):
        wanted = suffix if isinstance(suffix, str) else " or ".join(suffix)
        raise FsdtoolError(f"{flag} '{path}' does not end in {wanted}; give a name that does")
    if path.is_dir():
        raise FsdtoolError(f"{flag} '{path}' is a folder; give the name of a file in it")
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise FsdtoolError(f"{flag} '{path}' cannot be written: '{folder}' {found}; create it or give another path")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise FsdtoolError(f"{flag} '{path}' cannot be written: permission denied; give another path")
    if path.exists() and any(Path(given).exists() and path.samefile(given) for given in inputs):
        raise FsdtoolError(f"{flag} '{path}' is also an input and would be overwritten; give another path")


def refuse_options(why: str, instead: str, **options: object) -> None:
    """Refuse those of the options, by their names in Python, that were given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise FsdtoolError(f"{', '.join(given)} has no meaning {why}; leave it out or give {instead}")


def check_model_options(
    model: str | None, arguments: list[str] | None, checkpoint: Path | None, allow_pickle: bool, key: str | None
) -> None:
    """Refuse --model and --checkpoint one without the other, unless the network itself may be pickled in the latter."""
    if key is not None and checkpoint is None:
        raise FsdtoolError(f"--checkpoint-key {key} is given without --checkpoint; give both or neither")
    if model is None and checkpoint is not None and allow_pickle:
        return
    if (model is None) is not (checkpoint is None):
        given, missing = ("--checkpoint", "--model") if model is None else ("--model", "--checkpoint")
        raise FsdtoolError(f"{given} is given without {missing}; give both or neither")
    if model is None and arguments:
        raise FsdtoolError(f"--model-arg {arguments[0]} is given without --model; give both or neither")


def network_of(
    summary: Summary,
    model: str | None,
    arguments: list[str] | None,
    path: Path | None,
    allow_pickle: bool,
    ema: bool,
    key: str | None = None,
) -> nn.Module | None:
    """The network that was summarized, built again from --model and --checkpoint; None without these.

    Raises FsdtoolError for another checkpoint file.
    """
    if path is None:
        return None
    from fsdtool.fsd.last_layer import check_unmoved
    from fsdtool.model.checkpoint import apply_checkpoint

    key = key or summary.identity.checkpoint_key or None
    checkpoint = read_checkpoint(path, allow_pickle, ema, key, model)
    if checkpoint.sha256 != summary.identity.checkpoint_sha256:
        expected = f"{summary.identity.checkpoint_name}, SHA-256 {summary.identity.checkpoint_sha256[:16]}..."
        raise FsdtoolError(
            f"'{checkpoint.path}' is not the checkpoint that was summarized ({expected}), "
            f"its SHA-256 is {checkpoint.sha256[:16]}...; give that file, or summarize this one"
        )
    if checkpoint.averaged is not summary.identity.checkpoint_averaged:
        averaged = "averaged" if summary.identity.checkpoint_averaged else "trained"
        log.warning(f"the {averaged} weights of the checkpoint were summarized and these are not; see --ema")
    network = rebuild(summary, model, arguments, checkpoint)
    for note in apply_checkpoint(network, checkpoint):
        log.info(f"{checkpoint.path}: {note}")
    check_unmoved(summary, network, checkpoint.path)
    return network


def rebuild(summary: Summary, spec: str | None, arguments: list[str] | None, checkpoint: Checkpoint) -> nn.Module:
    """The network that `spec` names, with the summary's arguments where it is the same; without its weights.

    It returns the output that was summarized.
    """
    from fsdtool.network.logits import answer_with

    identity, given = summary.identity, key_values(arguments)
    if spec is not None and _same_factory(spec, identity.model_spec):
        added = {name: value for name, value in identity.model_arguments.items() if name not in given}
        if added:
            log.info(f"the model's {', '.join(f'{n}={v}' for n, v in added.items())} are as summarized (--model-arg)")
        given = added | given
    network = build_model(spec, given, checkpoint)
    answer_with(network, identity.output)
    return network


def _same_factory(one: str, other: str) -> bool:
    """Whether two specs name the same factory, of the same file name where it is a file."""
    (place, _, name), (there, _, known) = one.rpartition(":"), other.rpartition(":")
    return name == known and (place == there or (place.endswith(".py") and Path(place).name == Path(there).name))
