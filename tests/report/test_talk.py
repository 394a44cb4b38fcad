"""What is said on stderr, to the character, and by which talk."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest

from fsdtool.report.talk import Talk, log, print_pairs, say


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def stderr_as_terminal(monkeypatch) -> Terminal:
    """stderr as a terminal without colour (no fixture: pytest puts its own stderr back before the test)."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return stream


def remark() -> None:
    log.info("layout: channels first")
    log.warning("class 3 has one example")
    log.debug("a detail")


def test_remarks_go_to_stderr(capsys):
    with Talk().remarks():
        remark()
    assert capsys.readouterr() == ("", "note: layout: channels first\nwarning: class 3 has one example\n")


def test_quiet_hides_notes_and_keeps_warnings(capsys):
    talk = Talk(quiet=True, debug=True)
    with talk.remarks():
        remark()
        talk.print_summary("done", [("examples", "3")])
    assert capsys.readouterr().err == "warning: class 3 has one example\n"


def test_debug_shows_details(capsys):
    with Talk(debug=True).remarks():
        log.debug("a detail")
    assert capsys.readouterr().err == "debug: a detail\n"


def test_quiet_holds_from_when_it_is_known(capsys):
    talk = Talk()
    with talk.remarks():
        log.info("before")
        talk.quiet = True
        log.info("after")
    assert capsys.readouterr().err == "note: before\n"


def test_words_of_remarks_are_the_talks(capsys):
    with Talk(words=str.upper).remarks():
        log.info("once")
    assert capsys.readouterr().err == "note: ONCE\n"


def test_of_talks_inside_each_other_the_inner_one_speaks(capsys):
    with Talk(quiet=True).remarks():
        log.info("not said")
        with Talk().remarks():
            log.info("said once")
        log.info("not said either")
    with Talk().remarks():
        log.info("said again")
    assert capsys.readouterr().err == "note: said once\nnote: said again\n"


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_the_logger_is_left_as_it_was(error):
    handlers, level = list(log.handlers), log.level

    def fail() -> None:
        with Talk().remarks():
            assert len(log.handlers) == len(handlers) + 1
            if error is not None:
                raise error

    if error is None:
        fail()
    else:
        with pytest.raises(error):
            fail()
    assert (log.handlers, log.level) == (handlers, level)


def test_importing_the_package_attaches_nothing():
    script = (
        "import logging, fsdtool, fsdtool.report.talk, fsdtool.cli.entry\n"
        "log = logging.getLogger('fsdtool')\nprint(log.handlers, log.level, log.propagate)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.stderr) == (f"[] {logging.NOTSET} True\n", "")


def test_a_remark_is_one_line_without_control_characters(capsys):
    say("error", "a\nb\x1b[31mc\u2028d")
    assert capsys.readouterr().err == "error: a b [31mc d\n"


def test_remarks_are_coloured_on_a_terminal_only_and_not_with_no_color(monkeypatch):
    terminal = stderr_as_terminal(monkeypatch)
    say("warning", "plain")
    monkeypatch.delenv("NO_COLOR")
    say("warning", "coloured")
    assert terminal.getvalue() == "warning: plain\n\x1b[33mwarning:\x1b[0m coloured\n"


def test_summary_is_aligned(capsys):
    pairs = [("examples", "1437"), ("size", "1.2 MB")]
    Talk().print_summary("wrote summary.h5", pairs)
    print_pairs("wrote summary.h5", pairs, sys.stdout)
    said = "wrote summary.h5\n  examples: 1437\n  size:     1.2 MB\n"
    assert capsys.readouterr() == (said, said)


def test_no_progress_bar_without_a_terminal(capsys):
    with Talk().track("reading", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_no_progress_bar_when_quiet(monkeypatch):
    terminal = stderr_as_terminal(monkeypatch)
    with Talk(quiet=True).track("reading", 10) as advance:
        advance(10)
    assert terminal.getvalue() == ""


def test_progress_bar_counts_examples_and_leaves_stdout_alone(monkeypatch, capsys):
    terminal = stderr_as_terminal(monkeypatch)
    with Talk().track("reading [x]", 1000) as advance:
        advance(400)
        print("a row")
        advance(600)
    text = terminal.getvalue()
    assert "reading [x]" in text
    assert "1000/1000" in text
    assert "examples/s" in text
    assert capsys.readouterr().out == "a row\n"


def test_progress_bar_without_a_total_counts_nothing(monkeypatch):
    terminal = stderr_as_terminal(monkeypatch)
    with Talk().track("curvature") as advance:
        advance(1)
    assert "curvature" in terminal.getvalue()
    assert "1/" not in terminal.getvalue()
    assert "examples/s" not in terminal.getvalue()
