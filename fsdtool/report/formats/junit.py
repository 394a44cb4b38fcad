"""Rows as JUnit's XML."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TextIO

from fsdtool.report.formats.row_format import Checks, Row, RowFormat, RowsToWrite

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# What XML 1.0 cannot hold even when escaped, and the control characters that it may but no reader wants.
_NOT_XML = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")


def write_junit(rows: RowsToWrite, stream: TextIO) -> None:
    """One test case for each row, in one test suite; ASCII, so that it is the same XML in every encoding.

    All rows at once, since the head counts them.
    """
    # Imported here: every command loads the formats, and few write XML.
    from xml.etree.ElementTree import Element, SubElement, indent, tostring

    root = Element("testsuites")
    suite = SubElement(root, "testsuite", name=_clean(rows.checks.suite))
    for row in rows.mappings():
        _add_case(suite, row, rows.checks)
    counts = {"tests": str(len(suite)), "failures": str(len(suite.findall("testcase/failure")))}
    root.attrib |= counts
    suite.attrib |= counts | {"errors": "0", "skipped": "0"}
    indent(root)
    # Not `xml_declaration=True`, which names another encoding: what is ASCII may be read as UTF-8.
    stream.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    stream.write(tostring(root, encoding="us-ascii").decode("ascii") + "\n")


def _add_case(suite: Element, row: Row, checks: Checks) -> None:
    from xml.etree.ElementTree import SubElement

    file = checks.file(row)
    where = {"file": _clean(file)} if file else {}
    case = SubElement(suite, "testcase", {"classname": _clean(checks.suite), "name": _clean(checks.name(row)), **where})
    if checks.level(row) != "notice":
        message = _clean(checks.message(row))
        SubElement(case, "failure", message=message, type=_clean(checks.level(row))).text = message


def _clean(text: str) -> str:
    return _NOT_XML.sub(" ", text)


FORMATS = (RowFormat("junit", write_junit, 60),)
