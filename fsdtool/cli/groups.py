"""Groups of options that several commands share.

A group is a dataclass whose fields are options in typer's annotations. A command takes it as one parameter, without a
default, and hands it on as one value. typer knows no groups: `flat` makes of the command the function that it wants,
with one parameter for each option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from fsdtool.cli.options import (
    AllowPickle,
    BatchSize,
    CheckpointKey,
    Device,
    DeviceChoice,
    Ema,
    IdKey,
    LastLayerCheckpoint,
    LastLayerModel,
    ModelArguments,
    SkipBad,
    Split,
    Transform,
    XKey,
    YKey,
)
from fsdtool.summary.data_like import load_like

if TYPE_CHECKING:
    import torch

    from fsdtool.data.source import DataSource
    from fsdtool.summary.reader import Summary


@dataclass(frozen=True)
class DataOptions:
    """How data are read that are like the summarized ones."""

    x_key: XKey = None
    y_key: YKey = None
    id_key: IdKey = None
    split: Split = None
    skip_bad: SkipBad = False
    transform: Transform = None

    def load(self, summary: Summary, spec: str) -> DataSource:
        """The data that `spec` names.  Raises FsdtoolError where they cannot be read."""
        return load_like(summary, spec, **asdict(self))


@dataclass(frozen=True)
class ComputeOptions:
    """Where, and how much at once."""

    device: DeviceChoice = Device.auto
    batch_size: BatchSize = 256

    def choose_device(self) -> torch.device:
        """The device.  Raises FsdtoolError where there is none of that kind."""
        from fsdtool.util.device import choose_device

        return choose_device(self.device.value)


@dataclass(frozen=True)
class WeightOptions:
    """Which weights of a checkpoint file, and whether its code may run."""

    ema: Ema = False
    checkpoint_key: CheckpointKey = None
    allow_pickle: AllowPickle = False


@dataclass(frozen=True)
class NetworkOptions:
    """The network that was summarized, for a summary that does not hold all of it."""

    model: LastLayerModel = None
    model_arg: ModelArguments = None
    checkpoint: LastLayerCheckpoint = None


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of its groups, in their places, as parameters of its own."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        options, kind = [parameter], parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            options = list(inspect.signature(kind, eval_str=True).parameters.values())
        parameters += [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
