"""Thumbnails of examples as data URIs: small images as PNG to the pixel, larger ones as JPEG.

What a data set holds is a picture when it has the shape of one: (H, W) read as one channel, (C, H, W) or (H, W, C)
with 1, 3 or 4 channels.  Values outside [0, 1], as a user's own normalisation leaves them, are mapped onto it by
one scale for all pictures: that of the first of them that are not all one constant.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.report.html import Picture

SIDE = 128  # pixels of the longer side; twice what the page shows, for fine screens
TINY = 48  # up to this side pixels stay sharp
BUDGET = 8_000_000  # bytes of data URIs in one page
BATCH = 64


def thumbnails(source: DataSource, rows: Sequence[int], budget: int = BUDGET) -> list[Picture | None]:
    """A picture of each of the rows of the data set, or None for those beyond `budget` bytes in all.

    Raises FsdtoolError where the inputs have not the shape of pictures, or cannot be read.
    """
    stored = source.as_stored()
    if not _pictorial(stored.input_shape, source.preprocessing.layout):
        raise FsdtoolError(f"inputs of shape {stored.input_shape} are no pictures")
    pictures: list[Picture | None] = []
    (low, high), left = _range(stored, rows), budget
    for batch in stored.batches(BATCH, indices=rows):
        for image in batch.x.numpy():
            picture = _encode((image - low) / (high - low))
            left -= len(picture.uri)
            if left < 0:
                return [*pictures, *[None] * (len(rows) - len(pictures))]
            pictures.append(picture)
    return pictures


def _range(stored: DataSource, rows: Sequence[int]) -> tuple[float, float]:
    """The values that are black and white.  A constant says nothing of them; where there is nothing else it is grey."""
    low = high = 0.0
    for batch in stored.batches(BATCH, indices=rows):
        low, high = float(batch.x.min()), float(batch.x.max())
        if low < high:
            break
    if 0 <= low <= high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _pictorial(shape: tuple[int, ...], layout: str | None) -> bool:
    if len(shape) == 2:
        return layout == "one channel"
    return len(shape) == 3 and bool({shape[0], shape[2]} & {1, 3, 4}) and min(sorted(shape)[1:]) > 1


def _encode(image: np.ndarray) -> Picture:
    """An image (H, W), (C, H, W) or (H, W, C) with values in [0, 1] as a picture of at most SIDE pixels."""
    from PIL import Image

    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3:
        pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]  # what shines through is left out
    small = Image.fromarray(np.ascontiguousarray(pixels))
    tiny = max(small.size) <= TINY
    small.thumbnail((SIDE, SIDE))
    file, kind = io.BytesIO(), "png" if tiny else "jpeg"
    small.save(file, kind, **({"optimize": True} if tiny else {"quality": 80}))
    return Picture(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", tiny)
