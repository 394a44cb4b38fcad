"""The command line as the shell starts it."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence

import typer

from fsdtool.cli import exits
from fsdtool.cli.app import app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return its exit code."""
    if argv is None:
        _collect_seldom()
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    return exits.run(command, sys.argv[1:] if argv is None else list(argv))


def _collect_seldom() -> None:
    """Raise the garbage collector's thresholds: its collections take a fifth of the time of torch's import."""
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
