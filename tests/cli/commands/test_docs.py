"""The documents: `fsdtool docs` lists and prints them, the wheel holds them, and links between them lead somewhere."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

import fsdtool
from fsdtool.cli import main
from fsdtool.cli.command import find_commands
from fsdtool.cli.commands import docs
from fsdtool.errors import ExitStatus
from fsdtool.report import console

ROOT = Path(__file__).parents[3]
FILES = sorted((Path(fsdtool.__file__).parent / "docs").glob("*.md"))
README = ROOT / "README.md"


def setting(table: str, key: str) -> str | None:
    """The value of a key in a table of pyproject.toml, as text (Python 3.10 reads no TOML)."""
    parts = (ROOT / "pyproject.toml").read_text("utf-8").split(f"\n[{table}]\n", 1)
    found = re.search(rf"^{key} *= *(.*)$", parts[1].split("\n[")[0], re.MULTILINE) if len(parts) > 1 else None
    return found and found[1]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_list_names_every_file_and_what_it_is_about(capsys):
    assert main(["docs"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == [path.stem for path in FILES]
    for row, path in zip(rows, FILES, strict=True):
        assert path.read_text("utf-8").startswith(f"# {row['about']}\n\n")
        assert 10 < len(row["about"]) < 80


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_in_a_pipe_a_document_is_the_file_to_the_character(capsys, path):
    assert main(["docs", path.stem]) == 0
    assert capsys.readouterr() == (path.read_text("utf-8"), "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_on_a_terminal_a_document_is_formatted_and_no_word_is_lost(monkeypatch, path):
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    console.write_markdown(path.read_text("utf-8"), stream)
    assert "\x1b[" in stream.getvalue()
    shown = re.sub(r"\x1b\]8;.*?\x1b\\|\x1b\[[\d;]*m", "", stream.getvalue())
    assert "**" not in shown
    assert "|---" not in shown
    words = set(re.findall(r"[A-Za-z]{3,}", re.sub(r"\]\([^)]*\)|^```\w+", "", path.read_text("utf-8"), flags=re.M)))
    assert words - set(re.findall(r"[A-Za-z]{3,}", shown)) == set()


def test_no_color_holds_for_documents(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    console.write_markdown("# Title\n\n**bold** text\n", stream)
    assert "\x1b[3" not in stream.getvalue()
    assert "bold text" in re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())


@pytest.mark.parametrize("name", ["dta", "../docs/data", "data.md", ""])
def test_an_unknown_name_is_one_line_with_the_names(capsys, name):
    assert main(["docs", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    names = ", ".join(path.stem for path in FILES)
    assert err == f"error: no document is called '{name}'; give one of {names}\n"


def test_a_format_is_for_the_list_alone(capsys):
    assert main(["docs", "data", "--format", "json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: --format json is for the list of documents; leave it or 'data' out\n"


def test_documents_that_were_not_installed_are_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(docs, "FOLDER", tmp_path)
    assert main(["docs"]) == 2
    assert capsys.readouterr().err == f"error: the documents are missing in {tmp_path}; install fsdtool again\n"


def test_the_wheel_holds_every_document_and_template():
    """Hatch takes all of a listed package but what .gitignore names; nothing may narrow that."""
    wheel = "tool.hatch.build.targets.wheel"
    assert setting(wheel, "packages") == '["fsdtool"]'
    narrowing = [
        (table, key) for table in (wheel, "tool.hatch.build") for key in ("exclude", "include", "only-include")
    ]
    assert [pair for pair in narrowing if setting(*pair)] == []
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert len(FILES) > 5
    templates = sorted((FILES[0].parents[1] / "report" / "templates").iterdir())
    assert [path.name for path in templates] == ["chart.html", "page.css", "page.html", "page.js"]
    for path in [*FILES, *templates]:
        inside = path.relative_to(ROOT)
        assert inside.parts[0] == "fsdtool"
        names = {*inside.parts, *(f"{part}/" for part in inside.parts[:-1]), f"*{path.suffix}"}
        assert names.isdisjoint(ignored)


# Links


def anchors(text: str) -> set[str]:
    """The fragments that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [README, *FILES], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    for link in links:
        if link.startswith("https://"):
            continue
        file, _, fragment = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), link
        assert not fragment or fragment in anchors(target.read_text("utf-8")), link
        # What a document links to is installed with it.
        assert path == README or target.parent == path.parent, link


def test_the_readme_names_every_document():
    text = README.read_text("utf-8")
    missing = [path.stem for path in FILES if f"](fsdtool/docs/{path.name})" not in text]
    assert missing == []


def columns_of(text: str) -> dict[str, str]:
    """Command as typed -> columns, of the first table of columns by command."""
    rows = text.split("| command | columns |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows]
    return {command.replace("`", ""): re.findall("`(.*?)`", columns)[0] for command, columns in cells}


def test_the_columns_in_the_documents_are_those_of_the_commands():
    held = {
        f"{command.name} {when}".strip(): ", ".join(columns)
        for command in find_commands()
        for when, columns in command.columns.items()
    }
    assert columns_of(README.read_text("utf-8")) == held
    for path in FILES:
        if "| command | columns |" in path.read_text("utf-8"):
            told = {when.replace(" SPEC", ""): text for when, text in columns_of(path.read_text("utf-8")).items()}
            told.pop("fsd --data", None)  # one column more
            assert told.items() <= held.items()
    judged = (FILES[0].parent / "find-mislabeled.md").read_text("utf-8")
    for when in ("find-mislabeled", "find-mislabeled of a regression"):
        assert f"| `{held[when]}` |" in judged


def test_the_exit_codes_in_the_documents_are_one_table():
    header = "| exit code | meaning |"
    tables = {
        path.read_text("utf-8").split(header)[1].split("\n\n")[0]
        for path in (README, *FILES)
        if header in path.read_text("utf-8")
    }
    assert len(tables) == 1
    codes = re.findall(r"^\| (\d+) \|", tables.pop(), re.MULTILINE)
    assert [int(code) for code in codes] == sorted(ExitStatus)


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= 240


def test_commands_that_documents_show_have_the_options_shown(capsys):
    """Every `fsdtool COMMAND --option` of the README and the documents is one that the command's help lists."""
    for path in (README, *FILES):
        text = re.sub(r"\\\n *", "", path.read_text("utf-8"))
        for line in re.findall(r"^(?:- run: |\$ )?(fsdtool [a-z][^\n]*)$", text, re.MULTILINE):
            for part in re.findall(r"fsdtool ([a-z-]+)([^|>]*)", line):
                assert main([part[0], "--help"]) == 0, line
                listed = capsys.readouterr().out
                for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", part[1]):
                    assert option in listed, (path.name, line, option)
