"""Files of weights: what torch.save or safetensors wrote, as one file, in shards with an index, or in a folder.

Files are told apart by their first bytes. Reading runs no code unless `allow_pickle`: torch's restricted
unpickler builds tensors and plain data, and inert stand-ins for all else (fsdtool.model.pickle_stand_ins).
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fsdtool.errors import FsdtoolError, ModelError, describe, some
from fsdtool.model.pickle_stand_ins import StandIns, named_class

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ".pt.tar", ".th")
# Of several files in a folder the first of these is the model, and the others belong to its training.
USUAL = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
INDEX = ".index.json"
_SHARD = re.compile(r"(.+)-\d+-of-(\d+)(\.safetensors|\.bin)$")


@dataclass(frozen=True)
class Stored:
    """What was read: the content as it was saved, the files it was read from, and what was decided on the way."""

    content: object
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


Names = Callable[[], AbstractContextManager[None]]  # within which the classes of a pickled network can be found


def read_stored(path: Path, *, allow_pickle: bool, names: Names = nullcontext) -> Stored:
    """Read the checkpoint at `path`: a file, an index of shards, one of the shards, or a folder that holds one.

    Raises ModelError for what is missing, damaged or no checkpoint, and for a pickle that needs code unless
    `allow_pickle`.
    """
    notes: list[str] = []
    if path.is_dir():
        path = _in_folder(path)
        notes.append(f"took {path.name}")
    if not path.is_file():
        raise ModelError(
            f"the checkpoint '{path}' does not exist{_neighbours(path)}; give a .pt, .pth, .ckpt or .safetensors file",
            path=path,
        )
    shard = _SHARD.match(path.name)
    if shard:
        index = path.with_name(f"{shard[1]}{shard[3]}{INDEX}")
        if not index.is_file():
            raise ModelError(
                f"the checkpoint '{path}' is one of {int(shard[2])} shards and their index '{index.name}' is not "
                "beside it; put all shards and the index in one folder and give the folder",
                path=path,
            )
        path = index
        notes.append(f"took all {int(shard[2])} shards of {index.name}")
    if path.name.endswith(INDEX):
        content, files = _read_shards(path, allow_pickle, names)
        return Stored(content, (path, *files), tuple(notes))
    return Stored(_read_file(path, allow_pickle, names), (path,), tuple(notes))


def _neighbours(path: Path) -> str:
    there = sorted(p.name for p in path.parent.iterdir() if _is_weights(p)) if path.parent.is_dir() else []
    return f" (its folder has {some(there)})" if there else ""


def _is_weights(path: Path) -> bool:
    """Whether it is named like a checkpoint; hidden files, as macOS leaves beside others (._model.pt), are none."""
    return path.name.endswith((*SUFFIXES, INDEX)) and not path.name.startswith(".") and path.is_file()


def _in_folder(folder: Path) -> Path:
    """The one checkpoint in a folder, or in the folders in it."""
    if any(folder.glob("*.distcp")):
        raise ModelError(
            f"the checkpoint '{folder}' is a distributed one (.distcp files); convert it with "
            f"'python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt'"
        )
    found = [p for pattern in ("[!.]*", "[!.]*/*") for p in sorted(folder.glob(pattern)) if _is_weights(p)]
    found = [p for p in found if p.parent == found[0].parent or found[0].parent != folder]
    usual = [p for name in USUAL for p in found if p.name in (name, name + INDEX)]
    if len({p.parent for p in usual}) == 1:
        return usual[0]
    whole = [p for p in found if not _SHARD.match(p.name)]
    if len(whole) == 1:
        return whole[0]
    names = [str(p.relative_to(folder)) for p in found]
    what = f"several checkpoints ({some(names)})" if names else "no .pt, .pth, .ckpt, .bin or .safetensors file"
    raise ModelError(f"the checkpoint '{folder}' is a folder with {what}; give the file")


def _read_shards(index: Path, allow_pickle: bool, names: Names) -> tuple[dict[str, Any], list[Path]]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"the index '{index}' is damaged or has no 'weight_map' ({describe(error)}); download it again"
        ) from error
    plain = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    # An index from a stranger must not lead out of its own folder.
    odd = [file for file in places.values() if Path(file).name != file] if plain else ["its weight_map"]
    if odd:
        raise ModelError(f"the index '{index}' does not name files of its own folder ({odd[0]}); download it again")
    files = [index.with_name(name) for name in sorted(set(places.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ModelError(f"of the shards of '{index}' {some(absent)} missing; put all of them in its folder")
    content: dict[str, Any] = {}
    for file in files:
        shard = _read_file(file, allow_pickle, names)
        entries = shard if isinstance(shard, Mapping) else {}
        held = [name for name, place in places.items() if place == file.name]
        lost = [name for name in held if name not in entries]
        if lost:
            raise ModelError(f"the shard '{file}' does not hold {some(lost)}; download it and its index again")
        content |= {name: entries[name] for name in held}
    return content, files


def _read_file(path: Path, allow_pickle: bool, names: Names) -> object:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelError(
            f"the checkpoint '{path}' cannot be read ({describe(error)}); check its rights", path=path
        ) from error
    if not head:
        raise ModelError(f"the checkpoint '{path}' is empty (0 bytes); write it again", path=path)
    if another := _another_kind(head, path):
        raise ModelError(f"the checkpoint '{path}' is {another}", path=path)
    torch_wrote = head.startswith((b"PK\x03\x04", b"\x80"))
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and not torch_wrote):
        return _read_safetensors(path)
    return _read_pickle(path, allow_pickle, names)


def _another_kind(head: bytes, path: Path) -> str | None:
    """What a file that is certainly no checkpoint is, and what to do."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the weights; run 'git lfs pull' in its repository"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, not weights: the download failed or needs a login; download it again"
    if text.startswith((b'{"', b"{\n", b"[")):
        return "JSON text, not weights; give the .pt, .ckpt or .safetensors file"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file (a summary, or of Keras), not a PyTorch checkpoint; give a .pt or .safetensors file"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "compressed; unpack it and give the file inside"
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return None  # torch says what is wrong with it
        if any(name.endswith(".npy") for name in names):
            return "a NumPy archive, not a PyTorch checkpoint; give a .pt or .safetensors file"
        if any("exported_program" in name or name.endswith("archive_format") for name in names):
            return "a program of torch.export, not weights; save its state_dict with torch.save"
        if not any(name.endswith("data.pkl") for name in names):
            return f"a zip archive of other files ({some(names)}); unpack it and give the checkpoint inside"
    return None


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"the checkpoint '{path}' is damaged or not a safetensors file ({describe(error)}); save it again",
            path=path,
        ) from error


def _read_pickle(path: Path, allow_pickle: bool, names: Names) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read_whole(path, names) if allow_pickle else _read_plain(path)
    except FsdtoolError:
        raise
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise _refusal(path, error, allow_pickle) from error


def _read_whole(path: Path, names: Names) -> object:
    """torch.load with code; where that is not found, what can be read without, if there are weights in it."""
    try:
        with names():
            return torch.load(path, weights_only=False, map_location="cpu")
    except (ImportError, AttributeError):
        content = _read_plain(path)
        if named_class(content) or not _any_tensor(content):
            raise
        return content


def _any_tensor(content: object, depth: int = 3) -> bool:
    if isinstance(content, torch.Tensor):
        return True
    return isinstance(content, Mapping) and depth > 0 and any(_any_tensor(v, depth - 1) for v in content.values())


def _read_plain(path: Path) -> object:
    """torch.load without code, with a stand-in for each class and function that the pickle names."""
    stand_ins = StandIns()
    while True:
        try:
            with torch.serialization.safe_globals(stand_ins.allowed()):
                return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
        except Exception as error:
            if not stand_ins.serve(error):
                raise


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _refusal(path: Path, error: Exception, allow_pickle: bool) -> FsdtoolError:
    code = _code_needed(str(error))
    if code and code.rpartition(".")[2] in ("UninitializedParameter", "UninitializedBuffer"):
        return ModelError(
            f"the checkpoint '{path}' was saved before its lazy layers had seen an input, so it has no weights for "
            "them; run one batch through the model, train it and save it again",
            path=path,
        )
    if code and not allow_pickle:
        return needs_code(path, code)
    if isinstance(error, (ImportError, AttributeError)) and allow_pickle:
        return ModelError(
            f"the checkpoint '{path}' needs code that was not found ({describe(error)}); {_finding(str(error))}, "
            "or save model.state_dict() instead",
            path=path,
        )
    if re.search(r"Invalid magic number|Unsupported operand", str(error)) and _begins(path, b"\x80"):
        return ModelError(
            f"the checkpoint '{path}' is a pickle that torch.save did not write; read it with pickle.load and write it "
            "again with torch.save(state_dict, path)",
            path=path,
        )
    if allow_pickle and not isinstance(error, (pickle.UnpicklingError, EOFError, OSError)):
        return ModelError(
            f"the checkpoint '{path}' is damaged or cannot be built here ({describe(error)}); save model.state_dict()",
            path=path,
        )
    return ModelError(
        f"the checkpoint '{path}' is damaged or not a PyTorch checkpoint ({_reason(error)}); "
        "write it again with torch.save(model.state_dict(), path)",
        path=path,
    )


def _finding(message: str) -> str:
    """How the code that a pickle names is found."""
    own = re.search(r"attribute '(\w+)' on <module '[\w.]*__main__'", message)
    if own:
        return f"give `model=path/file.py:{own[1]}`, with the file that defines {own[1]}"
    missing = re.search(r"No module named '([\w.]+)'", message)
    return f"install {missing[1]} or put its folder on PYTHONPATH" if missing else "put it on PYTHONPATH"


def needs_code(path: Path, code: str) -> FsdtoolError:
    """The refusal of a file that could be read only by running what it names."""
    script, _, name = code.rpartition(".")
    also = f" with `model=path/file.py:{name}`, the file that defines it" if script == "__main__" else ""
    return ModelError(
        f"the checkpoint '{path}' needs code to be run while it is read ({code}); "
        f"if you trust its source give `allow_pickle=True`{also}, or save model.state_dict() instead",
        path=path,
    )


def _code_needed(message: str) -> str | None:
    """What the restricted unpickler refused to run, if that is why it stopped."""
    if "TorchScript" in message:
        return "a TorchScript archive"
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if named:
        return named[1]
    return "an unknown class" if re.search(r"Can only (build|create)|Trying to call", message) else None


def _reason(error: Exception) -> str:
    # torch wraps the unpickler's own words in paragraphs of advice about its arguments
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return inner[1] if inner else describe(error).partition(". ")[0]
