"""Images: what a picture file holds as an array (H, W) or (H, W, C), with the channels and size asked for.

Palettes, CMYK and the like become RGB. 16-bit grey is divided by 65535, since 8 bits would lose what it holds.
The orientation that a camera noted (EXIF) is left alone, as torchvision's ImageFolder leaves it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsdtool.data.preprocessing import IMAGE_MODES

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
PLAIN = ("1", "L", "LA", "RGB", "RGBA")


def open_image(path: str | Path, *, as_rgb: bool) -> Image:
    """The decoded image of a file; raises what PIL raises for one that is damaged or cut short.

    as_rgb: as torchvision's ImageFolder gives it, except for deeper pixels, which that would cut off at 255.
    """
    from PIL import Image

    with open(path, "rb") as file:
        image = Image.open(file)
        image.load()
    return image.convert("RGB") if as_rgb and image.mode not in (*DEEP_GREY, "I", "F", "RGB") else image


def image_array(image: Image, size: int | None, channels: int | None) -> np.ndarray:
    """An image as uint8, or float32 in [0, 1] for 16-bit grey: (H, W) for one channel, else (H, W, C).

    size: the shorter side is resized to it and the centre cropped. channels: 1, 3, 4, or None for those that the
    image has.
    """
    if image.mode in ("I", "F"):
        raise TypeError(f"it has 32-bit pixels (mode {image.mode}) of unknown scale; give arrays instead")
    if image.mode in DEEP_GREY:
        grey = np.array(_resized(image.convert("F") if size else image, size), dtype=np.float32) / 65535
        return grey if channels in (None, 1) else np.repeat(grey[..., None], channels, axis=2)
    if channels is not None:
        image = image.convert(IMAGE_MODES[channels])
    elif image.mode not in PLAIN:
        image = image.convert("RGB")
    return np.asarray(_resized(image, size))


def turned(image: Image) -> bool:
    """Whether the camera noted that the image is to be turned (EXIF orientation)."""
    return hasattr(image, "getexif") and image.getexif().get(0x0112, 1) != 1


def _resized(image: Image, size: int | None) -> Image:
    """Shorter side to `size`, then the square in the middle: torchvision's Resize and CenterCrop."""
    if size is None:
        return image
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def is_image(value: Any) -> bool:
    """Whether a value is a PIL image, without importing PIL."""
    return hasattr(value, "getbands")
