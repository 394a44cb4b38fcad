"""fsdtool: what a trained network knows about its training set, kept in one file.

`fsdtool summarize` goes over the training data once and writes that file, the summary; `load` opens one:

    import fsdtool

    with fsdtool.load("summary.h5") as summary:
        ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from fsdtool.summary.reader import Summary

__version__ = "0.1.0"


def load(path: str | PathLike[str]) -> Summary:
    """Open a summary file written by `fsdtool summarize`.

    Small parts are in memory; the file stays open, for the records, until `close()` or the end of `with`.
    Raises `fsdtool.errors.FsdtoolError` when the file is missing, damaged or of another schema version.
    """
    # Imported here so that `import fsdtool`, and with it every help text, does not wait for torch.
    from fsdtool.summary.reader import load as load_summary

    return load_summary(path)
