"""The kinds of data that a spec may name: `Source` describes one, and each stands in a module of fsdtool.data.sources.

A new kind of data is one new file there: it says which specs it takes, how such a spec is opened, how `--data` shows
it in help, and its rows in the table of accepted data (`fsdtool docs data`). Help reads these modules, so that they
import numpy, torch or a format's library only when something is opened (`opened_by`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fsdtool.util.discovery import modules_of

if TYPE_CHECKING:
    from fsdtool.data.readers import Found, Request

PACKAGE = "fsdtool.data.sources"


@dataclass(frozen=True)
class Source:
    """One kind of data.

    spec: how help shows it. place: its order in help and table, and among sources that take the same spec.
    opens: from the spec as given, and what the user said about the data, to what was found; raises DataError.
    rows: cells (`--data`, what it holds) of the table of accepted data, Markdown. suffixes: of the files it takes, in
    lower case. takes: whether it takes a spec, where suffixes do not tell. holds_images: whether `image_size` and
    `channels` apply. hint: how an error offers it, where it is no file. last: takes only what no other source takes.
    """

    spec: str
    place: int
    opens: Callable[[str, Request], Found]
    rows: tuple[tuple[str, str], ...]
    suffixes: tuple[str, ...] = ()
    takes: Callable[[str], bool] | None = None
    holds_images: bool = False
    hint: str = ""
    last: bool = False

    def fits(self, spec: str) -> bool:
        """Whether the spec names data of this kind."""
        if self.takes is not None:
            return self.takes(spec)
        path = Path(spec)
        return path.suffix.lower() in self.suffixes and path.is_file()


def opened_by(module: str, name: str) -> Callable[[str, Request], Found]:
    """The function `name` of `module`, which is imported when it is called."""
    return lambda spec, request: getattr(import_module(module), name)(spec, request)


def sources() -> list[Source]:
    """All kinds of data, in the order of their places: a module of the package has one as SOURCE."""
    return sorted((module.SOURCE for module in modules_of(PACKAGE)), key=lambda source: source.place)


def find_source(spec: str) -> Source | None:
    """The kind of data that a spec names; None where it is of none, or does not exist."""
    return min((s for s in sources() if s.fits(spec)), key=lambda source: (source.last, source.place), default=None)


def data_help() -> str:
    """What `--data` takes, in one line."""
    *most, last = dict.fromkeys(source.spec for source in sources())
    return f"{', '.join(most)} or {last}."


def offered() -> str:
    """What to give as data, as the end of an error: 'a .npz or .csv file, x.npy,y.npy (or .h5) or ...'."""
    *files, last_file = [suffix for source in sources() for suffix in source.suffixes]
    *hints, last = [source.hint for source in sources() if source.hint]
    return f"a {', '.join(files)} or {last_file} file, {', '.join(hints)} or {last}"
