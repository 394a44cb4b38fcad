"""A format of rows is there because its module is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fsdtool.report.console import Format
from fsdtool.report.formats.row_format import row_formats

ROOT = Path(__file__).parents[3]
PAIRS = """
from fsdtool.report.formats.row_format import RowFormat

def write(rows, stream):
    for row in rows.mappings():
        stream.write(" ".join(f"{key}={value}" for key, value in row.items()) + "\\n")

FORMATS = (RowFormat("pairs", write, 25),)
"""
# A folder more in which formats are found, as if the file lay beside the others.
RUN = """
import sys
from importlib import import_module
from fsdtool.report.formats.row_format import PACKAGE
import_module(PACKAGE).__path__.append(sys.argv[1])
from fsdtool.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_new_module_is_a_format_of_every_command(tmp_path):
    (tmp_path / "pairs.py").write_text(PAIRS)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", RUN, str(tmp_path), *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment).stdout

    assert run("docs", "--format", "pairs").splitlines()[0].startswith("name=data about=")
    assert "table|csv|pairs|json" in run("influence", "--help")


def test_formats_have_places_of_their_own():
    found = row_formats()
    assert list(found) == [one.value for one in Format] == ["table", "csv", "json", "jsonl", "github", "junit"]
    assert len({one.place for one in found.values()}) == len(found)
