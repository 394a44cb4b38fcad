"""Rows as the checks of a CI system: GitHub's workflow commands, and JUnit's XML.

A row becomes one check with a name, a message and, where the row is about a file, its path; a row over the user's
threshold is a failed check.  Names come from the data, so everything that either format takes for its own is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

Row = Mapping[str, Any]

# What XML 1.0 cannot hold even when escaped, and the control characters that it may but no reader wants.
_NOT_XML = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")
_CONTROL = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]+")


def _pairs(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items() if value is not None)


@dataclass(frozen=True)
class Checks:
    """How the rows of a command read as checks.

    suite: what they belong to.  name, message, file: text of a row (file: None for a row about no file).
    level: 'notice', 'warning' or 'error'; the last two are failed checks.
    """

    suite: str
    name: Callable[[Row], str] = lambda row: str(next(iter(row.values())))
    message: Callable[[Row], str] = _pairs
    file: Callable[[Row], str | None] = lambda row: None
    level: Callable[[Row], str] = lambda row: "notice"


def write_github(rows: Iterable[Row], checks: Checks, stream: TextIO) -> None:
    """One workflow command for each row: `::warning file=PATH,title=SUITE::MESSAGE`."""
    for row in rows:
        file = checks.file(row)
        properties = ([f"file={_property(file)}"] if file else []) + [f"title={_property(checks.suite)}"]
        stream.write(f"::{checks.level(row)} {','.join(properties)}::{_data(checks.message(row))}\n")


def write_junit(rows: Iterable[Row], checks: Checks, stream: TextIO) -> None:
    """One test case for each row, in one test suite; ASCII, so that it is the same XML in every encoding."""
    cases = [_case(row, checks) for row in rows]
    failures = sum("<failure" in case for case in cases)
    suite = _attribute(checks.suite)
    stream.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    stream.write(f'<testsuites tests="{len(cases)}" failures="{failures}">\n')
    stream.write(f'  <testsuite name={suite} tests="{len(cases)}" failures="{failures}" errors="0" skipped="0">\n')
    stream.writelines(cases)
    stream.write("  </testsuite>\n</testsuites>\n")


def _case(row: Row, checks: Checks) -> str:
    file = checks.file(row)
    where = f" file={_attribute(file)}" if file else ""
    start = f"    <testcase classname={_attribute(checks.suite)} name={_attribute(checks.name(row))}{where}"
    if checks.level(row) == "notice":
        return f"{start}/>\n"
    message = checks.message(row)
    failure = f"<failure message={_attribute(message)} type={_attribute(checks.level(row))}>{_text(message)}</failure>"
    return f"{start}>{failure}</testcase>\n"


def _data(text: str) -> str:
    text = _CONTROL.sub(" ", text)
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


# Imported where they are used: behind them are urllib and ssl, for which no other command should wait.


def _text(text: str) -> str:
    from xml.sax.saxutils import escape

    return _ascii(escape(_NOT_XML.sub(" ", text)))


def _attribute(text: str) -> str:
    from xml.sax.saxutils import quoteattr

    return _ascii(quoteattr(_NOT_XML.sub(" ", text)))


def _ascii(xml: str) -> str:
    return xml.encode("ascii", "xmlcharrefreplace").decode()
