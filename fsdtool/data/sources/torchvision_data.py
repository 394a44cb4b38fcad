"""A data set of torchvision, from files that are there already."""

from __future__ import annotations

from fsdtool.data.registry import Source, opened_by

PREFIX = "torchvision:"
_HOLDS = "a torchvision data set from a local root (`$FSDTOOL_DATA_ROOT`, or `data`); nothing is downloaded"
SOURCE = Source(
    spec="torchvision:NAME",
    place=70,
    opens=opened_by("fsdtool.data.formats.map_style", "open_torchvision"),
    rows=(("`torchvision:MNIST?root=FOLDER`", _HOLDS),),
    takes=lambda spec: spec.startswith(PREFIX),
    holds_images=True,
    hint="torchvision:NAME",
)
