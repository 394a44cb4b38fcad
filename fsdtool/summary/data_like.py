"""Other data read as the summarized data set was: the same steps from what is stored to an input, the same classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fsdtool.errors import SummaryError

if TYPE_CHECKING:
    from fsdtool.data.source import DataSource
    from fsdtool.summary.reader import Summary


def load_like(summary: Summary, spec: str, transform: str | None = None, **reading: Any) -> DataSource:
    """A data set read as the summarized one was; `reading` are further arguments of `load_dataset`.

    Raises SummaryError where that takes a transform of the user's and `transform` does not name it: a summary
    never says which code is run.
    """
    from fsdtool.data.formats.load import load_dataset

    asked = summary.preprocessing
    if transform is not None or asked.runs_code:
        if transform is None:
            raise SummaryError(
                f"'{summary.path}' was made with `transform={asked.transform}`, which is code; "
                "give `transform` again to run it",
                path=summary.path,
            )
        if asked.transform is None:
            raise SummaryError(
                f"'{summary.path}' was made without `transform`; leave `transform={transform}` out", path=summary.path
            )
        asked = replace(asked, transform=transform)
    names = summary.class_names
    return load_dataset(spec, task=summary.task, preprocessing=asked, class_names=names, prepared=True, **reading)
