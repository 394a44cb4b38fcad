"""How long-running functions tell their progress: `with track(label, total) as advance: ... advance(n)`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Track = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


def silent(label: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """The progress of a caller that wants none."""
    return nullcontext(lambda n: None)
