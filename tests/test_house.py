"""The house: rooms in the order of imports, none of them crowded, each with a word on what it is for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import fsdtool

# Data flows down this list, imports go up it. `fsdtool` itself holds the errors.
ORDER = """
fsdtool util tasks model network.functions network.activations network.operations network network.tracing data.inputs
data data.sources data.formats statistics laftr.gates laftr curvature summary fsd influence.matrix_formats influence
mislabel.noise mislabel mislabel.regression mislabel.multilabel fitting report.formats report cli cli.commands
"""
# What these hold is found by importing all of it: their faces do so.
REGISTRIES = {"network.functions", "network.activations", "network.operations"}
ROOMS = re.findall(r"\S+", ORDER)
MODULES_EACH, LINES_EACH = 13, 350
FOLDER, TESTS = Path(fsdtool.__file__).parent, Path(__file__).parent
FACES = {"__init__", "__main__"}
MODULES = sorted(path for path in FOLDER.rglob("*.py") if path.stem not in FACES)
BESIDE_ROOMS = {"integration", "fuzz", "benchmarks"}


def name_of(path: Path) -> str:
    """'network.graph' of fsdtool/network/graph.py."""
    return ".".join(path.relative_to(FOLDER).with_suffix("").parts)


def room_of(name: str) -> str:
    return name if name in ROOMS else name.rpartition(".")[0] or "fsdtool"


def registered(tree: ast.Module) -> set[str]:
    """Classes that are found by the name or `names` that they give themselves."""
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(
            ast.unparse(part).startswith(("name = ", "names = ")) for part in node.body if isinstance(part, ast.Assign)
        )
    }


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it; a room's name where its face is imported."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fsdtool":
                known = (parts[1:end] for end in range(len(parts), 1, -1))
                inside = next((p for p in known if FOLDER.joinpath(*p).with_suffix(".py").is_file()), None)
                rooms = (p for p in (parts[1:end] for end in range(len(parts), 0, -1)) if FOLDER.joinpath(*p).is_dir())
                found.add(".".join(inside or next(rooms)))
    return found


def test_every_module_is_in_a_room():
    assert {room_of(name_of(path)) for path in MODULES} == set(ROOMS)


def test_imports_go_only_upward():
    for path in MODULES:
        position = ROOMS.index(room_of(name_of(path)))
        below = [other for other in imports(path) - {""} if ROOMS.index(room_of(other)) > position]
        assert not below, f"{name_of(path)} imports {below} from below it"


def test_rooms_are_entered_by_their_modules():
    """Inside the package nobody asks a room's face, which would hide what is imported."""
    rooms = set(ROOMS) - {"fsdtool", *REGISTRIES}
    assert {name_of(path): imports(path) & rooms for path in MODULES if imports(path) & rooms} == {}


def test_no_modules_import_each_other():
    tuple(TopologicalSorter({name_of(path): imports(path) for path in MODULES}).static_order())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_not_crowded_and_says_what_it_is_for(room):
    held = [path for path in MODULES if room_of(name_of(path)) == room]
    assert len(held) <= MODULES_EACH
    assert {path.name: lines for path in held if (lines := path.read_text().count("\n")) > LINES_EACH} == {}
    assert len(import_module("fsdtool" if room == "fsdtool" else f"fsdtool.{room}").__doc__.split()) > 20


@pytest.mark.parametrize("room", ROOMS[1:])
def test_a_room_shows_its_public_names_and_no_modules(room):
    face = import_module(f"fsdtool.{room}")
    held = {path.stem for path in Path(face.__file__).parent.iterdir()}
    for name in face.__all__:
        assert getattr(face, name) is not None
        assert name not in held, f"fsdtool.{room}.{name} would be the function or the module"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        face.nothing  # noqa: B018


def test_rooms_open_without_torch_and_numpy():
    rooms = ", ".join(f"fsdtool.{room}" for room in ROOMS[1:] if room not in REGISTRIES)
    script = f"import sys, {rooms}\nprint({{'torch', 'numpy', 'h5py', 'typer'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=FOLDER.parent)
    assert (result.stdout, result.stderr) == ("set()\n", "")


def test_tests_are_where_the_modules_are():
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")} - {Path()}
    assert {".".join(folder.parts) for folder in folders} <= set(ROOMS) | BESIDE_ROOMS


def test_what_a_module_names_is_named_once_and_used():
    files = [*FOLDER.rglob("*.py"), *TESTS.rglob("*.py")]
    words = Counter(word for file in files for word in re.findall(r"\w+", file.read_text()))
    for path in MODULES:
        tree = ast.parse(path.read_text())
        defined = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        names = [node.name for node in defined if not node.decorator_list or isinstance(node, ast.ClassDef)]
        assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        names += [target.id for target in assigned if isinstance(target, ast.Name)]
        twice = [name for name, count in Counter(names).items() if count > 1]
        unused = [name for name in names if words[name] < 2 and name not in registered(tree)]
        assert not twice, f"{path} defines {twice} twice"
        assert not unused, f"nothing uses {unused} of {path}"
