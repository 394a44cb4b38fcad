"""A folder of images, with one folder for each class: any folder that is nothing else."""

from __future__ import annotations

from pathlib import Path

from fsdtool.data.registry import Source, opened_by

SOURCE = Source(
    spec="folder/",
    place=60,
    opens=opened_by("fsdtool.data.formats.image_files", "open_image_folder"),
    rows=(("`folder/`", "images as `folder/CLASS/IMAGE.png`, or `folder/train/CLASS/IMAGE.png`"),),
    takes=lambda spec: Path(spec).is_dir(),
    holds_images=True,
    hint="a folder of images",
    last=True,
)
