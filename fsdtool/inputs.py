"""What several commands read from their arguments: checkpoints, data, lists of numbers, files to be written."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsdtool.errors import FsdtoolError, describe
from fsdtool.report import one_line

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from fsdtool.checkpoints import Checkpoint
    from fsdtool.datasets import DataSource
    from fsdtool.summary import Summary

log = logging.getLogger("fsdtool")


def read_checkpoint(path: Path, allow_pickle: bool) -> Checkpoint:
    from fsdtool.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(path, allow_pickle=allow_pickle)
    for note in checkpoint.notes:
        log.info(f"{path}: {note}")
    return checkpoint


def model_of(summary: Summary, spec: str, arguments: dict[str, str], checkpoint: Checkpoint) -> nn.Module:
    """The network that was summarized, built again; a warning where its weights may be others."""
    from fsdtool.checkpoints import apply_checkpoint
    from fsdtool.models import load_model

    if checkpoint.sha256 != summary.identity.checkpoint_sha256:
        log.warning(
            f"{checkpoint.path} is not the file that was summarized ({summary.identity.checkpoint_name}); "
            "the values hold only if its weights are the same"
        )
    model = load_model(spec, arguments)
    for note in apply_checkpoint(model, checkpoint):
        log.info(f"{checkpoint.path}: {note}")
    return model


def load_like(summary: Summary, spec: str, x_key: str | None, y_key: str | None) -> DataSource:
    """A data set read as the summarized one was."""
    from fsdtool.datasets import load_dataset

    return load_dataset(
        spec,
        task=summary.task,
        preprocessing=summary.preprocessing,
        x_key=x_key,
        y_key=y_key,
        class_names=summary.class_names,
    )


def rows_named(summary: Summary, source: str | None) -> np.ndarray | None:
    """Which records (N,) bool the file `source` (-: stdin) names, an id a line as --ids-only has it; None: all."""
    if source is None:
        return None
    if summary.records is None:
        raise FsdtoolError(f"'{summary.path}' was written with --no-records and knows no ids; leave --ids out")
    import numpy as np

    asked = set(_lines(source))
    known = [one_line(identifier) for identifier in summary.records.ids.tolist()]
    unknown = sorted(asked.difference(known))
    if unknown:
        raise FsdtoolError(
            f"{len(unknown)} of the {len(asked)} ids in '{source}' are not in '{summary.path}', '{unknown[0]}' first; "
            "give ids of its training examples, one a line"
        )
    return np.array([identifier in asked for identifier in known])


def _lines(source: str) -> list[str]:
    """The lines of a file or of stdin that are not empty."""
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        # A byte order mark is no part of an id, nor is the line end of another system.
        return [line.rstrip("\r") for line in content.decode("utf-8-sig").split("\n") if line.rstrip("\r")]
    except (OSError, UnicodeDecodeError) as error:
        raise FsdtoolError(
            f"the ids in '{source}' cannot be read ({describe(error)}); give a UTF-8 file with one id a line"
        ) from error


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


def check_output(path: Path, flag: str, inputs: Iterable[str | Path] = (), suffix: str = "") -> None:
    """Refuse, before anything is computed, a file that cannot be written or that is one of the inputs."""
    folder = path.parent
    if str(path) == "-":
        raise FsdtoolError(f"{flag} - asks for stdout, but only a file can hold it; give the name of a file")
    if not path.name.endswith(suffix):
        raise FsdtoolError(f"{flag} '{path}' does not end in {suffix}; give a name that does")
    if path.is_dir():
        raise FsdtoolError(f"{flag} '{path}' is a folder; give the name of a file in it")
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise FsdtoolError(f"{flag} '{path}' cannot be written: '{folder}' {found}; create it or give another path")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise FsdtoolError(f"{flag} '{path}' cannot be written: permission denied; give another path")
    if path.exists() and any(Path(given).exists() and path.samefile(given) for given in inputs):
        raise FsdtoolError(f"{flag} '{path}' is also an input and would be overwritten; give another path")
