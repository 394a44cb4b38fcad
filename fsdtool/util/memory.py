"""Running out of memory is not the end: the batch is halved, and the part that failed is computed again."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

log = logging.getLogger("fsdtool")
T = TypeVar("T")

# torch has a type of its own for CUDA alone; allocators and libraries below it speak through RuntimeError.
_SIGNS = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, numpy or torch means that memory ran out, on the CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def undrawn(generator: torch.Generator, compute: Callable[[slice], T]) -> Callable[[slice], T]:
    """compute(rows) that leaves the generator as it was where it fails, so that the next attempt draws the same."""

    def attempt(rows: slice) -> T:
        before = generator.get_state()
        try:
            return compute(rows)
        except Exception:
            generator.set_state(before)
            raise

    return attempt


class BatchSize:
    """How many examples are computed at once; it halves when memory runs out, and stays there.

    fewest: it never halves to fewer examples than these.
    """

    def __init__(self, size: int, fewest: int = 1):
        self.now, self.fewest = size, fewest

    def parts(self, count: int, compute: Callable[[slice], T], *, even: bool = False) -> Iterator[T]:
        """compute(rows) for consecutive slices of range(count), each of at most `now` rows; even: of about equal size.

        Where memory runs out the same rows are computed again in halves; a compute that fails must leave nothing
        behind.  Raises what compute raised when it was anything else, or when the fewest rows are too much.
        """
        start = 0
        while start < count:
            left = count - start
            rows = slice(start, start + (left // -(-left // self.now) if even else min(left, self.now)))
            try:
                result = compute(rows)
            except Exception as error:
                if not self.halved_after(error, rows.stop - rows.start):
                    raise
                continue
            yield result
            start = rows.stop

    def halved_after(self, error: Exception, rows: int) -> bool:
        """Halve the size if `error` says that memory ran out at `rows` rows, enough to halve; whether it did."""
        if rows < 2 * self.fewest or not out_of_memory(error):
            return False
        self.now = min(self.now, rows // 2)
        log.warning(f"out of memory with {rows} examples at once; going on with {self.now}")
        # Tensors of the failed attempt live on in the frames of the traceback.
        error.__traceback__ = None
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.empty_cache()
        return True
