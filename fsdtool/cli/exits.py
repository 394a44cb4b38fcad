"""From an exception to an exit code: the only place where that is done."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from fsdtool.cli.answers import CommandLine
from fsdtool.cli.wording import as_options
from fsdtool.errors import ExitStatus, FsdtoolError, describe
from fsdtool.report import console
from fsdtool.report.talk import Talk, say
from fsdtool.util.memory import out_of_memory

# typer exports BadParameter alone of the exceptions of click, which newer releases carry inside themselves;
# its grandparent is the base of all that mean wrong usage.
_UsageError = typer.BadParameter.__mro__[2]

COMPLETION = "_FSDTOOL_COMPLETE"


def run(command: typer.core.TyperGroup, arguments: Sequence[str]) -> int:
    """Run a command line of the command that holds all others and return its exit code.

    Remarks of the library are said while it runs, and not after it.
    """
    line = CommandLine(shlex.join(["fsdtool", *arguments]), Talk(words=as_options))
    with line.talk.remarks():
        _set_up_streams()
        try:
            _run(command, arguments, line)
            sys.stdout.flush()
            return ExitStatus.OK
        except typer.Exit as end:
            return end.exit_code
        except BrokenPipeError:
            console.abandon(sys.stdout)
            return ExitStatus.OK
        except (Exception, KeyboardInterrupt) as error:
            if line.talk.debug and not isinstance(error, _UsageError):
                traceback.print_exc()
            kind, message, status = _told(error, line.talk.debug)
            say(kind, message)
            return status


def _told(error: BaseException, debug: bool) -> tuple[str, str, ExitStatus]:
    """What an exception is called, one line on it, and its exit code."""
    if isinstance(error, _UsageError):
        usage: Any = error
        words = usage.ctx.command_path if getattr(usage, "ctx", None) else "fsdtool"
        return "error", f"{usage.format_message().rstrip('.')}; see '{words} --help'", ExitStatus.USER_ERROR
    if isinstance(error, FsdtoolError):
        return "error", as_options(str(error)), ExitStatus.USER_ERROR
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "error", "interrupted", ExitStatus.INTERRUPTED
    if out_of_memory(error):
        message = "out of memory; give a smaller --batch-size or use a machine with more memory"
        return "error", message, ExitStatus.INTERNAL_ERROR
    if type(error).__name__.lstrip("_") == "LinAlgError":
        message = f"the linear algebra fails ({describe(error)}): numbers are too large, or too unlike in size"
        advice = "check the weights and the scale of the inputs (--mean, --std)"
        return "error", f"{message}; {advice}", ExitStatus.USER_ERROR
    hint = "" if debug else " (run again with --debug for the traceback)"
    return "internal error", f"{describe(error)}{hint}", ExitStatus.INTERNAL_ERROR


def _run(command: typer.core.TyperGroup, arguments: Sequence[str], line: CommandLine) -> None:
    # Not through `command()`: it has exit codes of its own for a closed pipe and for Ctrl-C.
    if os.environ.get(COMPLETION):  # asked by the shell in the middle of a line
        command.main(args=[], prog_name="fsdtool", complete_var=COMPLETION)
    with command.make_context("fsdtool", list(arguments), obj=line) as context:
        command.invoke(context)


def _set_up_streams() -> None:
    """A name that the terminal's encoding lacks must not end the program; lines end alike on every system."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", newline="\n")
