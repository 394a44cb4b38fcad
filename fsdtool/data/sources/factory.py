"""A data set that the user's own code makes: a function in a file, or in a package that can be imported."""

from __future__ import annotations

import re
from pathlib import Path

from fsdtool.data.registry import Source, opened_by

_FACTORY = re.compile(r"(\.py|^[\w.]+):\w")

SOURCE = Source(
    spec="path/file.py:factory",
    place=80,
    opens=opened_by("fsdtool.data.formats.map_style", "open_factory"),
    rows=(
        (
            "`path/file.py:factory?size=9`",
            "your own map-style Dataset of (x, y), of (x1, x2, y), or of dicts with a label",
        ),
    ),
    takes=lambda spec: _FACTORY.search(spec) is not None and not Path(spec).exists(),
    holds_images=True,
    hint="path/file.py:factory",
)
