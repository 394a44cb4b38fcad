"""What is done to an input between the file and the model, in words that a summary can keep.

A transform, where one is named, takes the place of all other steps: the stored image goes through it and what
comes out goes to the model.  Otherwise images get the wanted channels and size, uint8 becomes [0, 1], and the
mean is taken off and the standard deviation divided out.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fsdtool.data.inputs.part import Part, listed
from fsdtool.errors import DataError, describe
from fsdtool.model.factory import load_factory
from fsdtool.model.libraries import import_torchvision

LAYOUTS = ("as is", "channels first", "one channel", "flat")
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> PIL's name


@dataclass(frozen=True)
class Preprocessing:
    """What the user asked to be done to the inputs, and the layout once it is known.

    `mean` and `std` have one value, or one per channel (per feature for tables), in the scale after uint8 has
    become [0, 1]. `image_size` (pixels) resizes the shorter side of images and crops the centre; `channels` (1, 3
    or 4) is what image files are converted to. `layout` is one of LAYOUTS. `transform` is the spec of a transform.
    `parts` are the inputs that the network takes, where they are several or whole numbers (fsdtool.data.inputs).
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    layout: str | None = None
    channels: int | None = None
    transform: str | None = None
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and not (values and all(math.isfinite(v) for v in values)):
                raise DataError(f"the {name} {values} is not a list of finite numbers; give one, or one per channel")
        if self.std is not None and min(self.std) <= 0:
            raise DataError(f"the std {self.std} has a value that is not positive; give positive numbers")
        if self.image_size is not None and self.image_size < 1:
            raise DataError(f"the image size {self.image_size} is not positive; give a number of pixels")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise DataError(f"there is no layout '{self.layout}'; give one of {', '.join(LAYOUTS)}")
        if self.channels is not None and self.channels not in IMAGE_MODES:
            raise DataError(f"images cannot have {self.channels} channels; give 1 (grey), 3 (RGB) or 4 (RGBA)")
        if self.transform is not None and self._steps():
            raise DataError(
                f"`transform={self.transform}` stands for the whole preprocessing; leave out `{self._steps()[0]}`"
            )
        if self.parts and (self.mean is not None or self.std is not None):
            given = "mean" if self.mean is not None else "std"
            raise DataError(
                f"`{given}` is for one input of numbers, and the network takes {listed(self.parts)}; leave it out"
            )

    def _steps(self) -> list[str]:
        steps = ("mean", "std", "image_size", "channels")
        return [name for name in steps if getattr(self, name) is not None]

    @property
    def runs_code(self) -> bool:
        """Whether the transform is a file or package of the user's."""
        return self.transform is not None and not self.transform.startswith("torchvision:")

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that `to_json` wrote. Raises DataError for anything else."""
        try:
            mean, std = (
                None if value.get(key) is None else tuple(float(v) for v in value[key]) for key in ("mean", "std")
            )
            size, channels = (None if value.get(key) is None else int(value[key]) for key in ("image_size", "channels"))
            transform = value.get("transform")
            if not (transform is None or isinstance(transform, str)):
                raise TypeError(f"the transform is a {type(transform).__name__}")
            layout = value.get("layout")
            parts = tuple(map(Part.from_json, value.get("parts", ())))
            return cls(mean, std, size, layout, channels, transform, parts)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"the stored preprocessing cannot be read ({describe(error)}); write it again") from error


@functools.cache
def load_transform(spec: str) -> Callable[[Any], Any]:
    """The transform that a spec names, built once per process.

    `torchvision:ResNet18_Weights.IMAGENET1K_V1` is what torchvision prescribes for these weights (nothing is
    downloaded). `path/file.py:name` is a function of one input, or a function without arguments that returns one.
    """
    if spec.startswith("torchvision:"):
        return _weights_transform(spec.removeprefix("torchvision:"))
    found = load_factory(spec)
    if not _needs_an_argument(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise DataError(f"the transform factory '{spec}' raised {describe(error)}; correct it") from error
    if not callable(found):
        raise DataError(f"'{spec}' gives a {type(found).__name__}; give a function of one input")
    return found


def _weights_transform(name: str) -> Callable[[Any], Any]:
    models = import_torchvision().models
    try:
        return models.get_weight(name).transforms()
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"torchvision has no weights '{name}'; write for example torchvision:ResNet18_Weights.IMAGENET1K_V1"
        ) from error


def _needs_an_argument(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return bool(taken) or any(p.kind is p.VAR_POSITIONAL for p in parameters)
