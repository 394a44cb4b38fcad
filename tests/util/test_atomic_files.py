"""Output files: complete under their name or not there at all, whatever the disk or a signal does."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from fsdtool import cli
from fsdtool.errors import FsdtoolError
from fsdtool.influence.matrix_file import matrix_file
from fsdtool.mislabel import features
from fsdtool.summary.writer import Writer
from fsdtool.util import atomic_files
from fsdtool.util.atomic_files import Sibling, Sink
from tests.conftest import SAMPLE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, locks and limits of POSIX")
ROOT = Path(__file__).parents[2]
OLD = b"the old one"
SUMMARIZE = [
    *("summarize", "--model", f"{SAMPLE}/model.py:mlp", "--checkpoint", f"{SAMPLE}/mlp.pt"),
    *("--data", f"{SAMPLE}/train.npz", "--quiet", "--output"),
]


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Within it no file of this process grows beyond so many bytes: a disk that is full.

    No longer than needed, since pytest may write its own report into a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def stale(path: Path, process: int) -> Path:
    found = path.with_name(f".{path.name}.{process}.tmp")
    found.write_bytes(b"half")
    return found


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


# Full disks


@pytest.mark.parametrize("size", [1000, 300_000, 1_700_000])
def test_a_disk_that_fills_up_at_any_point_leaves_the_old_summary(tmp_path, monkeypatch, capsys, size):
    output = tmp_path / "s.h5"
    output.write_bytes(OLD)
    monkeypatch.setattr(features, "reserve", lambda file, size: None)  # its files are tested below
    monkeypatch.setattr(np, "memmap", lambda file, dtype, mode, shape: np.zeros(shape, dtype))
    with small_files(size):
        code = cli.main([*SUMMARIZE, str(output)])
    assert code == 2
    assert capsys.readouterr().err == (
        f"error: the summary '{output}' cannot be written (File too large); free some space or give another path\n"
    )
    assert output.read_bytes() == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_a_temporary_folder_without_room_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    output = tmp_path / "s.h5"
    output.write_bytes(OLD)
    with small_files(1000):
        code = cli.main([*SUMMARIZE, str(output)])
    assert code == 2
    assert capsys.readouterr().err == (
        f"error: the temporary folder '{tmp_path}' has no room for 367,872 bytes (File too large); "
        "free some, or set TMPDIR to another folder\n"
    )
    assert output.read_bytes() == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_a_matrix_that_the_disk_has_no_room_for_leaves_the_old_one(tmp_path, sample_paths, capsys):
    matrix = tmp_path / "m.npy"
    matrix.write_bytes(OLD)
    queries = ["--queries", str(SAMPLE / "test.npz"), "--matrix", str(matrix), "--quiet"]
    with small_files(1000):
        code = cli.main(["influence", str(sample_paths["mlp"]), *queries])
    assert code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error: the matrix '{matrix}' cannot be written (File too large); free some space or give another path\n"
    )
    assert matrix.read_bytes() == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["m.npy"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("format", ["csv", "table"])
def test_a_full_disk_behind_stdout_is_one_line(sample_paths, format):
    command = [sys.executable, "-m", "fsdtool", "find-mislabeled", str(sample_paths["mlp"]), "--all", "-q"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*command, "--format", format], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True
        )
    assert result.returncode == 2
    assert result.stderr == (
        "error: the output cannot be written (No space left on device); free some space or send it elsewhere\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stderr_does_not_change_the_answer(sample_paths):
    command = [sys.executable, "-m", "fsdtool", "inspect", str(sample_paths["mlp"])]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stderr=full, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("part,bytes")


def test_hdf5_reads_back_what_could_not_be_written(tmp_path):
    """The disk fills up under an open file: HDF5 must still be able to close it."""
    values = np.random.default_rng(0).normal(size=5000)
    with open(tmp_path / "x.h5", "w+b", buffering=0) as file:
        sink = Sink(file)
        with ExitStack() as stack, h5py.File(sink, "w") as content:
            content["a"] = values
            content.flush()
            assert sink.error is None
            stack.enter_context(small_files((tmp_path / "x.h5").stat().st_size))  # until the file is closed
            for i in range(200):
                content[f"group {i}/b"] = values + i
            content.flush()
            assert sink.error is not None
            np.testing.assert_array_equal(content["group 7/b"], values + 7)
        with h5py.File(sink, "r") as content:
            np.testing.assert_array_equal(content["group 199/b"], values + 199)


# What a killed process leaves behind


@pytest.mark.parametrize("write", ["summary", "matrix"])
def test_the_next_write_removes_what_a_killed_process_left(tmp_path, write):
    path = tmp_path / "a[1].npy"  # brackets mean something to glob
    left = stale(path, dead_process())
    kept = [
        stale(path, os.getppid()),  # a living process
        stale(tmp_path / "other.npy", dead_process()),  # another name
        tmp_path / ".a[1].npy.x.tmp",  # no number
    ]
    kept[2].write_bytes(b"")
    if write == "summary":
        with Writer(path) as writer:
            writer.commit()
    else:
        with matrix_file(path, ["a", "b"], np.arange(3), "nats") as put:
            put(slice(0, 2), slice(0, 3), np.ones((2, 3)))
    assert not left.exists()
    assert all(file.exists() for file in kept)
    assert path.exists()


def test_a_file_that_is_being_written_is_not_taken_for_a_stale_one(tmp_path, monkeypatch):
    path = tmp_path / "s.h5"
    with Writer(path) as first:  # as from another machine or container: its process number is not alive here
        monkeypatch.setattr(atomic_files, "_alive", lambda process: False)
        monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
        with Writer(path) as second:
            second.put("x", np.arange(3), "the second")
            second.commit()
        first.put("x", np.arange(5), "the first")
        first.commit()
    with h5py.File(path) as file:
        assert len(file["x"]) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


def test_two_writers_of_the_same_number_do_not_mix(tmp_path):
    with Writer(tmp_path / "s.h5") as first:
        with pytest.raises(FsdtoolError, match=r"cannot be written \(another process is writing it\); give another"):
            Writer(tmp_path / "s.h5")
        first.commit()
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


def test_a_link_with_the_name_of_a_stale_file_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_bytes(OLD)
    link = tmp_path / f".s.h5.{dead_process()}.tmp"
    link.symlink_to(target)
    Sibling(tmp_path / "s.h5").discard()
    assert target.read_bytes() == OLD
    assert link.is_symlink()


def test_interrupted_while_it_writes_leaves_the_old_summary(tmp_path):
    """Ctrl-C in the middle of the pass."""
    output = tmp_path / "s.h5"
    output.write_bytes(OLD)
    program = (
        # a shell starts what runs in its background without Ctrl-C
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fsdtool.summary import writer\ndef check(self):\n    print('now', flush=True)\n    time.sleep(60)\n"
        "writer.Writer.check = check\nfrom fsdtool.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *SUMMARIZE, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "error: interrupted\n"
        assert process.wait(timeout=60) == 130
    assert output.read_bytes() == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
