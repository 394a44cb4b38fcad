"""A command as a whole process: its seconds and its peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and peak resident memory in megabytes."""

    seconds: float
    megabytes: float


def run(command: Sequence[str], folder: Path, threads: int) -> Cost:
    """Run a command in `folder` to its end, stdout and stderr put aside; raises RuntimeError where it fails."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    log = folder / "process.log"
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return Cost(seconds, usage.ru_maxrss * unit / 1e6)
