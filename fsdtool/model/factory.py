"""Models: a spec names the code that builds a network; no other code of the user's runs.

A spec is `path/file.py:factory`, `package.module:factory` or a library's, such as `torchvision:resnet18`; calling the
factory gives the network. It is used in eval mode, whatever mode the factory leaves it in.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fsdtool.errors import FsdtoolError, ModelError, describe, perhaps, some
from fsdtool.model.libraries import import_torchvision, is_library, library_builder, misses_operator

log = logging.getLogger("fsdtool")


def load_model(
    spec: str,
    arguments: Mapping[str, str] | None = None,
    recorded: Mapping[str, object] | None = None,
    folder: Path | None = None,
) -> nn.Module:
    """Build the network that `spec` names, in eval mode, on the CPU, in float32.

    `arguments` go to the factory by name, read as Python literals where they are one and as text otherwise; those
    left out are taken from `recorded`, the hyper-parameters of a checkpoint, where it has them; `folder` is that of the
    checkpoint, where transformers describes a network. Wrappers for
    compiled and parallel execution are taken off. Raises ModelError when there is no such factory, when it needs
    other arguments, when it raises, or when what it returns is not a network of known size.
    """
    factory = load_factory(spec, folder)
    if isinstance(factory, nn.Module) and not arguments:
        model: Any = factory
    else:
        values = {name: parse_value(text) for name, text in (arguments or {}).items()}
        values = _recorded(factory, recorded or {}, values) | values
        check_arguments(factory, values, spec=spec, usage="`model_arg={}=VALUE`")
        try:
            model = factory(**values)
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"the model factory '{spec}' raised {describe(error)}; correct it or its `model_arg` values", path=spec
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model factory '{spec}' returned a {type(model).__name__}; it must return a torch.nn.Module", path=spec
        )
    return prepare(model, spec)


def prepare(model: nn.Module, name: str) -> nn.Module:
    """The network itself, without wrappers, in eval mode, on the CPU, in float32; `name` is for messages.

    Raises ModelError where parameters have no size yet.
    """
    model = _unwrapped(model)
    lazy = [name for name, tensor in _parameters_and_buffers(model) if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"the model '{name}' has parameters of unknown size ({some(lazy)}); run one input through it in the factory"
        )
    if any(t.is_floating_point() and t.dtype != torch.float32 for _, t in _parameters_and_buffers(model)):
        log.info("the model's parameters are used as float32")
    return model.cpu().float().eval()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network that torch.compile, DataParallel or DistributedDataParallel run."""
    while True:
        compiled = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(compiled, nn.Module):
            model = compiled
        else:
            break
    for module in model.modules():
        module._compiled_call_impl = None  # what `module.compile()` set
    return model


def _recorded(
    factory: Callable[..., Any], recorded: Mapping[str, object], given: Mapping[str, object]
) -> dict[str, object]:
    """The recorded hyper-parameters that the factory takes by name and that are not given."""
    try:
        named = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    taken = {name: value for name, value in recorded.items() if name in named and name not in given}
    if taken:
        shown = some([f"{name}={value!r}" for name, value in taken.items()], 8)
        log.info(f"the model's {shown} are from the checkpoint's hyper_parameters")
    return taken


def load_factory(spec: str, folder: Path | None = None) -> Callable[..., Any]:
    """The callable that `path/file.py:name`, `package.module:name` or `torchvision:name` stands for.

    folder: that of the checkpoint, for the libraries that describe a network there.
    """
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise ModelError(
            f"'{spec}' names no factory; write path/file.py:factory, package.module:factory or torchvision:resnet18",
            path=spec,
        )
    if is_library(place):
        return library_builder(place, name, folder)
    module = _load_file(Path(place)) if place.endswith(".py") else _load_package(place)
    factory: Any = module
    for part in name.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        there = [key for key, value in vars(module).items() if _defined_in(module, key, value)]
        raise ModelError(
            f"'{place}' has no factory '{name}'{perhaps(name, there)}; it has {some(there, 12) or 'none'}", path=spec
        )
    return factory


@contextlib.contextmanager
def script_names(spec: str | None) -> Iterator[None]:
    """Within it, the public names of the module of `spec` stand in `__main__` too, unless they are taken there.

    A network pickled by the script that trained it is looked up in `__main__`, where no file that is imported is.
    """
    place, _, _ = (spec or "").rpartition(":")
    if not place or place == "mlp" or is_library(place):
        yield
        return
    module = _load_file(Path(place)) if place.endswith(".py") else _load_package(place)
    main = vars(sys.modules["__main__"])
    added = {name: value for name, value in vars(module).items() if name not in main}
    main.update(added)
    try:
        yield
    finally:
        for name in added:
            del main[name]


def check_arguments(factory: Callable[..., Any], values: Mapping[str, Any], *, spec: str, usage: str) -> None:
    """Raise ModelError unless `factory(**values)` has every argument it needs and none it does not know.

    `usage` shows how the user gives an argument, with `{}` for its name.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty and p.name not in values]
    if needed:
        raise ModelError(
            f"'{spec}' needs the argument{'s' if len(needed) > 1 else ''} {', '.join(needed)}; "
            f"give {' '.join(usage.format(name) for name in needed)}",
            path=spec,
        )
    unknown = [name for name in values if name not in {p.name for p in named}]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        takes = ", ".join(p.name for p in named) or "no arguments"
        near = perhaps(unknown[0], [p.name for p in named])
        raise ModelError(f"'{spec}' takes no argument '{unknown[0]}'{near}; it takes {takes}", path=spec)


def parse_value(text: str) -> Any:
    """Read an argument given as text: a Python literal, true or false, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every parameter and buffer name, mapped to the first name of the same tensor (tied weights)."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    state = model.state_dict()
    return {name: first.setdefault(id(tensor), name) for name, tensor in named if name in state}


def _parameters_and_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _defined_in(module: ModuleType, key: str, value: object) -> bool:
    return not key.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = perhaps(path.name, [file.name for file in path.parent.glob("*.py")])
        raise ModelError(f"the file '{path}' does not exist{near}; give the path of a Python file", path=path)
    path = path.resolve()
    name = f"{_USER_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:  # a link to a file of another suffix
        raise ModelError(
            f"'{path}' cannot be imported, since its name does not end in .py; give a copy that does", path=path
        )
    loader = module_spec.loader

    def execute() -> ModuleType:
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module  # dataclasses and pickle look their own module up here
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return _run_user_import(execute, folder=path.parent, what=f"the file '{path}'")


def _load_package(name: str) -> ModuleType:
    what = f"the module '{name}'"
    return _run_user_import(lambda: importlib.import_module(name), folder=Path.cwd(), what=what)


def _run_user_import(load: Callable[[], ModuleType], *, folder: Path, what: str) -> ModuleType:
    try:
        with _importable(folder):
            try:
                return load()
            except (RuntimeError, ImportError) as error:
                if not misses_operator(error):
                    raise
                import_torchvision()
                return load()
    except FsdtoolError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{what} cannot be imported: {describe(error)}; correct it or its path") from error


_USER_MODULE = "fsdtool_user_"  # followed by what makes the name unique to the file's path
_siblings: dict[str, str] = {}  # module name -> the user's folder it was imported from


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put `folder` on sys.path, and forget the modules that came from another user folder.

    Otherwise `import config` in one folder would quietly give the config of the other.
    """
    home = str(folder)
    for name in [name for name, origin in _siblings.items() if origin != home]:
        del _siblings[name]
        sys.modules.pop(name, None)
    before = set(sys.modules)
    sys.path.insert(0, home)
    try:
        yield
    finally:
        sys.path.remove(home)
        _siblings.update({name: home for name in set(sys.modules) - before if _lies_in(folder, name)})


def _lies_in(folder: Path, name: str) -> bool:
    origin = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
    if origin is None or name.startswith(_USER_MODULE):
        return False
    path = Path(origin)
    return folder in (path.parent, path.parent.parent if path.name == "__init__.py" else None)
