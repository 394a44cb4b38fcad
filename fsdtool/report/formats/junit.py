"""Rows as JUnit's XML.  Names come from the data, so all that XML takes for its own is escaped."""

from __future__ import annotations

import re
from typing import TextIO

from fsdtool.report.formats.row_format import Checks, Row, RowFormat, RowsToWrite

# What XML 1.0 cannot hold even when escaped, and the control characters that it may but no reader wants.
_NOT_XML = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")


def write_junit(rows: RowsToWrite, stream: TextIO) -> None:
    """One test case for each row, in one test suite; ASCII, so that it is the same XML in every encoding."""
    checks = rows.checks
    cases = [_case(row, checks) for row in rows.mappings()]
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


# Imported where they are used: behind them are urllib and ssl, for which no other command should wait.


def _text(text: str) -> str:
    from xml.sax.saxutils import escape

    return _ascii(escape(_NOT_XML.sub(" ", text)))


def _attribute(text: str) -> str:
    from xml.sax.saxutils import quoteattr

    return _ascii(quoteattr(_NOT_XML.sub(" ", text)))


def _ascii(xml: str) -> str:
    return xml.encode("ascii", "xmlcharrefreplace").decode()


FORMATS = (RowFormat("junit", write_junit, 60),)
