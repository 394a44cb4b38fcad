"""From an exception to an exit code: the only place where that is done."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence

import typer

from fsdtool.cli.wording import as_options
from fsdtool.errors import ExitStatus, FsdtoolError, describe
from fsdtool.report import console
from fsdtool.util.memory import out_of_memory

# typer exports BadParameter alone of the exceptions of click, which newer releases carry inside themselves;
# its grandparent is the base of all that mean wrong usage.
_UsageError = typer.BadParameter.__mro__[2]

COMPLETION = "_FSDTOOL_COMPLETE"


def run(command: typer.core.TyperGroup, arguments: Sequence[str]) -> int:
    """Run a command line of the command that holds all others and return its exit code."""
    console.configure(quiet=False, debug=False, words=as_options)
    _set_up_streams()
    try:
        _run(command, arguments)
        sys.stdout.flush()
        return ExitStatus.OK
    except typer.Exit as end:
        return end.exit_code
    except _UsageError as error:  # type: ignore[misc]  # typer has no public name whose type it is
        words = error.ctx.command_path if getattr(error, "ctx", None) else "fsdtool"
        console.say("error", f"{error.format_message().rstrip('.')}; see '{words} --help'")
        return ExitStatus.USER_ERROR
    except FsdtoolError as error:
        return _fail("error", as_options(str(error)), ExitStatus.USER_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("error", "interrupted", ExitStatus.INTERRUPTED)
    except BrokenPipeError:
        console.abandon(sys.stdout)
        return ExitStatus.OK
    except Exception as error:
        if out_of_memory(error):
            message = "out of memory; give a smaller --batch-size or use a machine with more memory"
            return _fail("error", message, ExitStatus.INTERNAL_ERROR)
        if type(error).__name__.lstrip("_") == "LinAlgError":
            message = f"the linear algebra fails ({describe(error)}): numbers are too large, or too unlike in size"
            advice = "check the weights and the scale of the inputs (--mean, --std)"
            return _fail("error", f"{message}; {advice}", ExitStatus.USER_ERROR)
        hint = "" if console.talk.debug else " (run again with --debug for the traceback)"
        return _fail("internal error", f"{describe(error)}{hint}", ExitStatus.INTERNAL_ERROR)


def _run(command: typer.core.TyperGroup, arguments: Sequence[str]) -> None:
    # Not through `command()`: it has exit codes of its own for a closed pipe and for Ctrl-C.
    if os.environ.get(COMPLETION):  # asked by the shell in the middle of a line
        command.main(args=[], prog_name="fsdtool", complete_var=COMPLETION)
    command_line = shlex.join(["fsdtool", *arguments])
    with command.make_context("fsdtool", list(arguments), obj=command_line) as context:
        command.invoke(context)


def _set_up_streams() -> None:
    """A name that the terminal's encoding lacks must not end the program; lines end alike on every system."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", newline="\n")


def _fail(kind: str, message: str, status: ExitStatus) -> ExitStatus:
    if console.talk.debug:
        traceback.print_exc()
    console.say(kind, message)
    return status
