"""Files that appear under their name when they are complete, or not at all.

A file grows as a hidden sibling `.NAME.PID.tmp`, locked while it is written, and is renamed at the end.  A killed
process leaves its sibling behind; the next one that writes NAME removes it, if nobody holds its lock and no process
has its number.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from fsdtool.errors import FsdtoolError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cannot_write(what: str, path: Path, error: OSError) -> FsdtoolError:
    """The error for a file that the system does not let be written, or not wholly."""
    cure = "free some space or give another path" if error.errno in _FULL else "give another path"
    return FsdtoolError(f"{what} '{path}' cannot be written ({error.strerror or error}); {cure}")


class Sibling:
    """The hidden file in which `path` grows; `file` is open for reading and writing, empty and locked.

    Raises OSError where it cannot be made.
    """

    def __init__(self, path: Path):
        self.target = path
        _remove_stale(path)
        self.path = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.file: BinaryIO = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        if not _lock(self.file):
            self.file.close()
            raise BlockingIOError(errno.EAGAIN, "another process is writing it")
        self.file.truncate(0)

    def put_in_place(self) -> None:
        """Give the complete file its name."""
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.path, self.target)

    def discard(self) -> None:
        """Remove the file, unless it has its name already."""
        self.file.close()
        self.path.unlink(missing_ok=True)


class Sink:
    """What HDF5 writes a file into: it never fails, since HDF5 does not survive a write that does.

    After a failure `error` says why; what is written then stays in memory, for HDF5 to read back while it closes.
    """

    def __init__(self, file: BinaryIO):
        self.error: OSError | None = None
        self._file, self._position = file, 0
        self._kept: list[tuple[int, bytes]] = []

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end()}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        start, written = self._position, 0
        try:
            while self.error is None and written < len(view):
                self._file.seek(start + written)
                written += self._file.write(view[written:])
        except OSError as error:
            self.error = error
        if written < len(view):
            self._kept.append((start + written, bytes(view[written:])))
        self._position = start + len(view)
        return len(view)

    def readinto(self, buffer: bytearray) -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._position, min(self._position + len(view), self._end())
        self._file.seek(start)
        content = bytearray(self._file.read(max(stop - start, 0)).ljust(max(stop - start, 0), b"\0"))
        for at, kept in self._kept:
            low, high = max(at, start), min(at + len(kept), stop)
            if low < high:
                content[low - start : high - start] = kept[low - at : high - at]
        view[: len(content)] = content
        self._position = start + len(content)
        return len(content)

    def read(self, size: int) -> bytes:
        content = bytearray(size)
        return bytes(content[: self.readinto(content)])

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        if self.error is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        pass  # unbuffered

    def _end(self) -> int:
        kept = max((at + len(content) for at, content in self._kept), default=0)
        return max(os.fstat(self._file.fileno()).st_size, kept)


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Sibling]:
    """A file to write that takes the place of `path` when the block ends well; nothing is left of it otherwise.

    Raises FsdtoolError, which names `what` it is, for an OSError.
    """
    try:
        sibling = Sibling(path)
    except OSError as error:
        raise cannot_write(what, path, error) from error
    try:
        yield sibling
        sibling.put_in_place()
    except OSError as error:
        raise cannot_write(what, path, error) from error
    finally:
        sibling.discard()


def write_whole(path: Path, content: bytes, what: str) -> None:
    """Write a small file, which appears at `path` when it is complete.  Raises FsdtoolError as `replacing` does."""
    with replacing(path, what) as sibling:
        reserve(sibling.file, len(content))
        sibling.file.write(content)


def reserve(file: BinaryIO, size: int) -> None:
    """Take `size` bytes of the disk, so that writing through a memory map cannot fail; OSError when there are none.

    A full disk met by a memory map is no exception but a signal that ends the process.
    """
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(file.fileno(), 0, size)


def _lock(file: BinaryIO) -> bool:
    """Lock the file until it is closed; False where another process has."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_stale(path: Path) -> None:
    """Remove siblings of `path` that killed processes left."""
    if fcntl is None:
        return
    for found in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = re.fullmatch(r"\.(\d+)\.tmp", found.name.removeprefix(f".{path.name}"))
        try:
            if number is None or not stat.S_ISREG(found.lstat().st_mode) or _alive(int(number[1])):
                continue
            with os.fdopen(os.open(found, os.O_RDWR | os.O_NOFOLLOW), "r+b") as file:
                if _lock(file):
                    found.unlink()
        except OSError:  # another process was faster, or it is another user's
            continue


def _alive(process: int) -> bool:
    """Whether a process has this number; one of another user counts as well."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()
