"""Networks that libraries build: `torchvision:resnet18`, `timm:vit_tiny_patch16_224`, `transformers:AutoModelFor...`.

Nothing is downloaded: weights come from the checkpoint, and what transformers needs to know of a network from the
`config.json` in the checkpoint's folder, as `save_pretrained` writes it.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fsdtool.errors import ModelError, describe, some

OPERATOR_MISSING = "operator torchvision::nms does not exist"


def is_library(place: str) -> bool:
    """Whether `place:name` names a network of a library."""
    return place in _BUILDERS


def library_builder(place: str, name: str, folder: Path | None) -> Callable[..., nn.Module]:
    """What builds the network `place:name`; folder: that of the checkpoint.

    Raises ModelError where the library is missing or has no such network.
    """
    return _BUILDERS[place](name, folder)


def misses_operator(error: BaseException | None) -> bool:
    """Whether an import failed since torchvision's extension did not load, which `import_torchvision` makes up for."""
    while error is not None:
        if OPERATOR_MISSING in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled extension does not fit the installed torch.

    A CUDA build of torchvision beside a CPU build of torch cannot load its operators, and then fails to
    describe two of them. Declaring those is enough for its data sets, transforms and classification models.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise ModelError(f"torchvision is needed and missing ({error}); pip install torchvision") from error
    except (ImportError, RuntimeError) as error:
        if OPERATOR_MISSING not in str(error):
            raise ModelError(
                f"torchvision cannot be imported: {describe(error)}; "
                f"install the release that fits torch {torch.__version__}"
            ) from error
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare_torchvision_operators()
    return importlib.import_module("torchvision")


@functools.cache  # a Library withdraws its declarations when it is collected
def _declare_torchvision_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _of_torchvision(name: str, folder: Path | None) -> Callable[..., nn.Module]:
    models = import_torchvision().models
    return getattr(models, _known(name, models.list_models(module=models), "torchvision", "classification model"))


def _of_timm(name: str, folder: Path | None) -> Callable[..., nn.Module]:
    timm = _import("timm")
    return functools.partial(timm.create_model, _known(name, timm.list_models(), "timm", "model"), pretrained=False)


def _of_transformers(name: str, folder: Path | None) -> Callable[..., nn.Module]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read at the import: nothing is fetched
    transformers = _import("transformers")
    kind = getattr(transformers, name, None)
    if kind is None or not (hasattr(kind, "from_config") or hasattr(kind, "config_class")):
        known = [key for key in dir(transformers) if "Model" in key or "For" in key]
        near = difflib.get_close_matches(name, known) or ["AutoModelForSequenceClassification", "AutoModel"]
        raise ModelError(f"transformers has no network '{name}'; it has {some(near)}")
    if folder is None or not (folder / "config.json").is_file():
        raise ModelError(
            f"'transformers:{name}' is built from a config.json, and there is none in '{folder}'; give the folder that "
            "save_pretrained wrote as `checkpoint`",
            path=folder,
        )

    def build(**settings: Any) -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, **settings)
        config.use_cache = False  # past keys are no output
        return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)

    return build


def _import(name: str) -> ModuleType:
    """A library that may use torchvision, which is made to load first where it does not by itself."""
    try:
        if importlib.util.find_spec("torchvision") is not None:
            import_torchvision()
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(f"{name} is needed and missing ({error}); pip install 'fsdtool[{name}]'") from error
    except (ImportError, RuntimeError) as error:
        raise ModelError(f"{name} cannot be imported: {describe(error)}; install it again") from error


def _known(name: str, known: list[str], library: str, what: str) -> str:
    if name not in known:
        near = difflib.get_close_matches(name, known) or known
        raise ModelError(f"{library} has no {what} '{name}'; it has {some(near)}")
    return name


_BUILDERS: dict[str, Callable[[str, Path | None], Callable[..., nn.Module]]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
    "transformers": _of_transformers,
}
