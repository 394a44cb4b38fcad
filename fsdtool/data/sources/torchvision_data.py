"""A data set of torchvision, from files that are there already."""

from __future__ import annotations

from fsdtool.data.registry import Source
from fsdtool.util.lazy import later

PREFIX = "torchvision:"
_HOLDS = "a torchvision data set from a local root (`$FSDTOOL_DATA_ROOT`, or `data`); nothing is downloaded"
SOURCE = Source(
    spec="torchvision:NAME",
    place=70,
    opens=later("fsdtool.data.formats.map_style", "open_torchvision"),
    rows=(("`torchvision:MNIST?root=FOLDER`", _HOLDS),),
    takes=lambda spec: spec.startswith(PREFIX),
    holds_images=True,
    hint="torchvision:NAME",
)
