"""The shell pipeline of the README, taken from it and run."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipeline() -> str:
    """The one block of the README that is marked as bash."""
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return block


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """Runs a script in a folder with the sample data, where `fsdtool` is this one."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "sample_data").symlink_to(ROOT / "sample_data")
    command = folder / "bin" / "fsdtool"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fsdtool "$@"\n')
    command.chmod(0o755)
    variables = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(script: str) -> subprocess.CompletedProcess[str]:
        found = subprocess.run(
            ["bash"], input=script, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=300
        )
        found.folder = folder
        return found

    return run


def test_the_pipeline_of_the_readme_fails_over_its_limit_and_keeps_the_list(pipeline, bash):
    assert "set -euo pipefail" in pipeline
    found = bash(pipeline)
    assert found.returncode == 1, found.stderr
    with open(found.folder / "suspects.csv", newline="") as file:
        flagged = list(csv.DictReader(file))
    assert len(flagged) > 50
    assert f"{len(flagged)} labels are flagged, more than --max-flagged 50" in found.stderr
    *pairs, lines = found.stdout.splitlines()
    assert int(lines) == len(flagged) + 1
    assert len(pairs) == 3
    counts = [
        sum(f"{row['given_label']},{row['suggested_label']}" == pair.split()[1] for row in flagged) for pair in pairs
    ]
    assert counts == [int(pair.split()[0]) for pair in pairs] == sorted(counts, reverse=True)
    assert (found.folder / "suspects.html").read_text("utf-8").endswith("</html>\n")


def test_the_gate_of_the_readme_is_open_below_its_limit(pipeline, bash):
    gate = pipeline[pipeline.rindex("fsdtool find-mislabeled") :]
    script = "set -euo pipefail\n" + gate.replace("--max-flagged 50", "--max-flagged 1437")
    assert script.count("--max-flagged 1437") == 1
    found = bash(script)
    assert found.returncode == 0, found.stderr
