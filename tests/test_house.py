"""The order of the modules: data flows down it, imports go up it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import fsdtool

# One line for each layer of the house.
ROOMS = """
errors fields device progress memory files cells hdf5 models standins weightfiles computed foreign matching unwrapping
checkpoints preprocessing images tasks readers targets
fit catalogue selfinfluence
npyfiles h5files arrays imagefolders imagefiles tables csvtables parquet items huggingface
sources scaling repeatability datasets fitting
activations operations infer graph logits nodes translate trace frozen
spectra component_laws moments components sums budget propagate simulate outputs gradients metrics curvature anchors
distance_forms distance_calibration penalty
agreement labelpairs noise posterior unmixing verdict discriminant records features gaussians evidence spreads
wrongkinds outliers residuals trajectory
networkfile summary writer data_like influence_calibration evidencefile headonly recording finite sweep
record_curvature run_calibration
summarize fsd
examples ranking screening matrix candidates krylov response query_solves influence misvalue mislabel stacking judge
inspection
checks report noisefile options inputs answers markup charts page thumbnails review
exits command command_demo command_docs command_summarize command_mislabeled command_influence command_fsd
command_inspect commands cli
"""
ORDER = re.findall(r"\w+", ROOMS)
ANYWHERE = {"__init__", "__main__"}
FOLDER = Path(fsdtool.__file__).parent


def files_of(module: str) -> list[Path]:
    """The file of a module, or those of a package."""
    return sorted((FOLDER / module).glob("*.py")) or [FOLDER / f"{module}.py"]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fsdtool":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def registered(tree: ast.Module) -> set[str]:
    """Classes that are found by the `names` that they give themselves."""
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(part).startswith("names = ") for part in node.body if isinstance(part, ast.Assign))
    }


def test_every_module_has_a_place():
    packages = {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    modules = {path.stem for path in FOLDER.glob("*.py")} | packages
    modules -= ANYWHERE
    assert modules == set(ORDER)


def test_imports_go_only_upward():
    for position, module in enumerate(ORDER):
        above = set(ORDER[:position]) | {"__version__"}
        imported = set().union(*map(imports, files_of(module))) - {module}
        downward = imported - above
        assert not downward, f"{module} imports {downward} from below it"


def test_what_a_module_names_is_named_once_and_used():
    files = [*FOLDER.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    words = Counter(word for file in files for word in re.findall(r"\w+", file.read_text()))
    for module in [path for name in ORDER for path in files_of(name)]:
        tree = ast.parse(module.read_text())
        defined = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        names = [node.name for node in defined if not node.decorator_list or isinstance(node, ast.ClassDef)]
        assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        names += [target.id for target in assigned if isinstance(target, ast.Name)]
        twice = [name for name, count in Counter(names).items() if count > 1]
        unused = [name for name in names if words[name] < 2 and name not in registered(tree)]
        assert not twice, f"{module} defines {twice} twice"
        assert not unused, f"nothing uses {unused} of {module}"
