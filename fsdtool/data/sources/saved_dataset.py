"""A folder that the `save_to_disk` of Hugging Face's `datasets` wrote."""

from __future__ import annotations

from pathlib import Path

from fsdtool.data.registry import Source, opened_by


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` writes."""
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


SOURCE = Source(
    spec="folder/",
    place=90,
    opens=opened_by("fsdtool.data.formats.huggingface", "open_saved_dataset"),
    rows=(
        (
            "`folder/` of `save_to_disk`",
            "a Hugging Face data set, of tokens too; needs `pip install 'fsdtool[huggingface]'`",
        ),
    ),
    takes=lambda spec: Path(spec).is_dir() and is_saved_dataset(Path(spec)),
    holds_images=True,
)
