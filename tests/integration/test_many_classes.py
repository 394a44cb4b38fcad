"""Ten thousand classes: every command answers, in bounded memory."""

from __future__ import annotations

import csv
import io
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

CLASSES, EXAMPLES = 10_000, 3_000
MOST_BYTES = 3 * 2**30

MODEL = f"""
from torch import nn

def net():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, {CLASSES}))
"""


@pytest.mark.slow
def test_ten_thousand_classes_pass_through_every_command(tmp_path):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", x=generator.normal(size=(EXAMPLES, 16)).astype("f"), y=np.arange(EXAMPLES))
    np.savez(tmp_path / "new.npz", x=generator.normal(size=(3, 16)).astype("f"), y=np.arange(3))
    (tmp_path / "net.py").write_text(MODEL)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    torch.save(network.state_dict(), tmp_path / "net.pt")

    def fsdtool(*arguments: str) -> list[dict[str, str]]:
        done = subprocess.run(
            [sys.executable, "-m", "fsdtool", "-q", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES)),
        )
        assert done.returncode == 0, done.stderr
        return list(csv.DictReader(io.StringIO(done.stdout)))

    fsdtool("summarize", "--model", "net.py:net", "--checkpoint", "net.pt", "--data", "train.npz", "-o", "s.h5")
    assert len(fsdtool("find-mislabeled", "s.h5", "--all")) == EXAMPLES
    assert len(fsdtool("find-mislabeled", "s.h5", "--data", "new.npz", "--all")) == 3
    assert len(fsdtool("influence", "s.h5", "--self")) == EXAMPLES
    assert {row["query_id"] for row in fsdtool("influence", "s.h5", "--queries", "new.npz", "--top", "2")} <= set("012")
    assert float(fsdtool("fsd", "s.h5", "--checkpoint", "net.pt")[0]["distance"]) == pytest.approx(0, abs=1e-6)
