"""The demo: its commands are real, and it ends with the truth."""

from __future__ import annotations

import re
import shlex

from fsdtool.cli import main


def test_demo_shows_real_commands_and_ends_with_the_truth(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "digits", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for network in ("mlp", "convnet"):
        found, wrong, by_loss = map(
            int,
            re.search(rf"^{network}: (\d+) of (\d+) wrong .* would find (\d+)$", out, re.MULTILINE).groups(),
        )
        assert wrong == 115
        assert found >= 0.9 * wrong > by_loss
    commands = re.findall(r"^\$ fsdtool (.*)$", out, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {
        "summarize", "find-mislabeled", "influence", "fsd", "inspect",
    }  # fmt: skip
    assert main([*shlex.split(commands[2]), "--quiet"]) == 0  # what it shows can be run again
    assert capfd.readouterr().out.splitlines()[1] in out


def test_demo_into_a_file_is_one_line(tmp_path, capfd):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["demo", str(blocked / "x"), "--quiet"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_a_folder_with_a_space_can_be_pasted(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "my 'first' digits", "--quiet"]) == 0
    commands = re.findall(r"^\$ fsdtool (.*)$", capfd.readouterr().out, re.MULTILINE)
    assert len(commands) == 6
    for command in commands[2:]:
        assert main([*shlex.split(command), "--quiet"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["my 'first' digits"]
