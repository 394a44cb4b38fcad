"""What several commands read from their arguments: ids, lists of numbers, files to be written."""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fsdtool.errors import FsdtoolError, describe
from fsdtool.util.csv_cells import known_text, unescaped
from fsdtool.util.terminal import one_line

if TYPE_CHECKING:
    import numpy as np

    from fsdtool.data.source import DataSource
    from fsdtool.summary.catalogue import Catalogue

log = logging.getLogger("fsdtool")


def warn_of_fit(summary: Catalogue) -> None:
    """Say again what `summarize` said of a network that does not know its training data."""
    from fsdtool.statistics.fit import doubt

    if summary.fit is not None and (fault := doubt(summary.fit)):
        log.warning(f"'{summary.path}': {fault}")


def read_ids(source: str | Path) -> set[str]:
    """The ids in a file, or on stdin for '-': a column `id` of a CSV file with a header, else one id a line."""
    try:
        content = sys.stdin.buffer.read() if str(source) == "-" else Path(source).read_bytes()
        # A byte order mark is no part of an id, nor is the line end of another system.
        lines = [line.rstrip("\r") for line in content.decode("utf-8-sig").split("\n") if line.rstrip("\r")]
        header = next(csv.reader(lines[:1]), [])
        if "id" not in header:
            return set(lines)
        column = header.index("id")
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        return {unescaped(cells[column]) for cells in list(rows)[1:] if len(cells) > column}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FsdtoolError(
            f"the ids in '{source}' cannot be read ({describe(error)}); give a UTF-8 file with one id a line"
        ) from error


def rows_named(summary: Catalogue, source: str | None, data: DataSource | None = None) -> np.ndarray | None:
    """Which records, or examples of `data`, the file `source` (-: stdin) names: (N,) bool; None without a source."""
    if source is None:
        return None
    if data is not None:
        ids, where = data.ids, data.spec
    elif summary.records is not None:
        ids, where = summary.records.ids, str(summary.path)
    else:
        raise FsdtoolError(f"'{summary.path}' was written with --no-records and knows no ids; leave --ids out")
    import numpy as np

    known = [one_line(identifier) for identifier in ids.tolist()]
    names = set(known)
    asked = {known_text(one_line(text), names) for text in read_ids(source)}
    unknown = sorted(asked - names)
    if unknown:
        raise FsdtoolError(
            f"{len(unknown)} of the {len(asked)} ids in '{source}' are not in '{where}', '{unknown[0]}' first; "
            "give ids of its training examples, one a line"
        )
    return np.array([identifier in asked for identifier in known])


def numbers(text: str | None, flag: str) -> tuple[float, ...] | None:
    """The numbers of `0.5,0.4`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FsdtoolError(f"{flag} '{text}' is not a list of numbers; write for example 0.5,0.4,0.3") from None


def check_output(path: Path, flag: str, inputs: Iterable[str | Path] = (), suffix: str | tuple[str, ...] = "") -> None:
    """Refuse, before anything is computed, a file that cannot be written or that is one of the inputs."""
    folder = path.parent
    if str(path) == "-":
        raise FsdtoolError(f"{flag} - asks for stdout, but only a file can hold it; give the name of a file")
    if not path.name.endswith(suffix):
        wanted = suffix if isinstance(suffix, str) else " or ".join(suffix)
        raise FsdtoolError(f"{flag} '{path}' does not end in {wanted}; give a name that does")
    if path.is_dir():
        raise FsdtoolError(f"{flag} '{path}' is a folder; give the name of a file in it")
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise FsdtoolError(f"{flag} '{path}' cannot be written: '{folder}' {found}; create it or give another path")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise FsdtoolError(f"{flag} '{path}' cannot be written: permission denied; give another path")
    if path.exists() and any(Path(given).exists() and path.samefile(given) for given in inputs):
        raise FsdtoolError(f"{flag} '{path}' is also an input and would be overwritten; give another path")


def refuse_options(why: str, instead: str, **options: object) -> None:
    """Refuse those of the options, by their names in Python, that were given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise FsdtoolError(f"{', '.join(given)} has no meaning {why}; leave it out or give {instead}")
