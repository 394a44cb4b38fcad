"""The shell pipeline and the tables of the README, taken from it and run."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


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

    network = "--model sample_data/model.py:mlp --checkpoint sample_data/mlp.pt"
    run(f"fsdtool summarize -q {network} --data sample_data/train.npz -o summary.h5")
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


def excerpts() -> list[tuple[str, list[str], list[list[str]]]]:
    """Of each table that the README shows under its command: the command, the columns and the cells of the rows."""
    found = []
    for block in re.findall(r"^```\n\$ (fsdtool .*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.M):
        command, header, *lines = block.splitlines()
        rows = [line.split() for line in lines if line != "..." and not line.startswith("note: ")]
        found.append((command, header.split(), rows))
    return found


def test_the_tables_of_the_readme_are_what_its_commands_print(bash):
    folder = bash("").folder
    state = torch.load(ROOT / "sample_data" / "mlp.pt", weights_only=True)
    steps = {name: 2 * value.abs().max() / 63 for name, value in state.items()}
    (folder / "fsdtool-demo").mkdir()
    rounded = {name: (value / steps[name]).round() * steps[name] for name, value in state.items()}
    torch.save(rounded, folder / "fsdtool-demo" / "mlp-6bit.pt")
    assert len(excerpts()) == 4
    for command, columns, expected in excerpts():
        rows = json.loads(bash(f"{command} -q --format json").stdout)[: len(expected)]
        assert list(rows[0]) == columns, command
        for row, cells in zip(rows, expected, strict=True):
            for value, cell in zip(row.values(), cells, strict=True):
                if isinstance(value, float):  # another processor rounds otherwise
                    assert value == pytest.approx(float(cell), rel=0.05, abs=0.01), (command, cells)
                else:
                    assert str(value) == cell, (command, cells)


def test_the_notes_in_the_readme_are_those_of_the_command(bash):
    (first, *_) = re.findall(r"^```\n\$ (fsdtool .*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.M)
    notes = [line for line in first.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    found = bash(first.splitlines()[0])
    assert found.stderr.splitlines() == notes
