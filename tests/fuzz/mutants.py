"""Hostile copies of a summary or a safetensors file: bytes flipped and cut, structure edited through h5py.

`mutate(source, target, random)` writes one mutant of `source` to `target` and says what was done to it.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

IMPOSSIBLE = (KeyError, ValueError, TypeError, OSError, RuntimeError, AttributeError, IndexError, OverflowError)
BOMB = 2**24  # bytes of zeros in a compressed chunk
NUMBERS = (0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**70, 0.5, 1e308, float("nan"), float("inf"))
LEAVES = (*NUMBERS, None, True, "", "x", "../../etc/passwd", "\x1b[31m\n", "\ud800", [], {}, [[[]]], [1, 2], {"a": 1})
DTYPES = (
    *("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", ">f4", ">i8", ">u2", "c8", "?"),
    *("S1", "S40", "V8", [("a", "i4"), ("b", "f8")]),
    *(h5py.string_dtype(), h5py.string_dtype(length=9), h5py.vlen_dtype(np.int32), h5py.vlen_dtype(np.float64)),
    *(h5py.ref_dtype, h5py.regionref_dtype, h5py.enum_dtype({"a": 1, "b": 2}), h5py.opaque_dtype("M8[s]")),
)


def mutate(source: Path, target: Path, draw: random.Random) -> str:
    """Write a mutant of the file `source` to `target`; returns what was done."""
    if source.suffix == ".safetensors":
        change = draw.choice([_flip, _flip, _cut, _blocks, _header, _header])
    else:
        change = draw.choice([_flip, _flip, _cut, _blocks, *[_structure] * 8])
    shutil.copy(source, target)
    return change(target, draw)


# Bytes


def _flip(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    # Metadata is a small part of the bytes, much of it at the beginning.
    reach = draw.choice([len(content), len(content), 2048, 16384])
    count = draw.choice([1, 2, 8, 64, 512])
    for _ in range(count):
        content[draw.randrange(min(reach, len(content)))] = draw.choice([0, 0xFF, draw.randrange(256)])
    path.write_bytes(content)
    return f"{count} bytes of the first {reach} overwritten"


def _cut(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    keep = draw.randrange(len(content))
    tail = draw.choice([b"", bytes(len(content) - keep), draw.randbytes(1000)])
    path.write_bytes(content[:keep] + tail)
    return f"cut at {keep}, then {len(tail)} bytes more"


def _blocks(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    size = min(draw.choice([4, 8, 64, 512, 4096]), len(content))
    to, other = (draw.randrange(len(content) - size + 1) for _ in range(2))
    block = draw.choice([bytes(size), b"\xff" * size, draw.randbytes(size), bytes(content[other : other + size])])
    content[to : to + size] = block
    path.write_bytes(content)
    return f"{size} bytes at {to} replaced"


def _header(path: Path, draw: random.Random) -> str:
    """An edit of a safetensors file's JSON header, or of its length."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    done = _edit_json(header, draw)
    text = json.dumps(header).encode(errors="surrogatepass")
    if draw.random() < 0.1:
        text = draw.choice([b"[" * 100_000, text * 2, text[:-1], b"", b" " * 10**6 + text])
    size = draw.choice([len(text)] * 8 + [0, len(text) - 1, len(text) + 1, 2**40, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", max(size, 0)) + text + data)
    return f"header: {done}, length {size}"


# Structure


def _structure(path: Path, draw: random.Random) -> str:
    done: list[str] = []
    with h5py.File(path, "r+") as file:
        for _ in range(draw.choice([1, 1, 1, 2, 4])):
            edit = draw.choice(EDITS)
            with contextlib.suppress(*IMPOSSIBLE):
                done.append(f"{edit.__name__} {edit(file, draw)}")
    return "; ".join(done) or "nothing"


def _names(file: h5py.File, kind: type = h5py.Dataset) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, kind) else None)
    return found


def _content(dataset: h5py.Dataset) -> np.ndarray:
    """Its values, unless an edit before this one made it huge."""
    if np.prod([float(n) for n in dataset.shape]) * dataset.dtype.itemsize > BOMB:
        raise ValueError("too large to be edited")
    return dataset[()]


def _put(file: h5py.File, name: str, **options: Any) -> h5py.Dataset:
    """The dataset `name` made anew, with the attributes it had."""
    attributes = dict(file[name].attrs) if name in file else {}
    if name in file:
        del file[name]
    created = file.create_dataset(name, **options)
    created.attrs.update(attributes)
    return created


def remove(file: h5py.File, draw: random.Random) -> str:
    name = draw.choice(_names(file, h5py.HLObject))
    del file[name]
    return name


def another_dtype(file: h5py.File, draw: random.Random) -> str:
    name, dtype = draw.choice(_names(file)), draw.choice(DTYPES)
    shape = file[name].shape
    values = _content(file[name]) if draw.random() < 0.5 else None
    created = _put(file, name, shape=shape, dtype=dtype)
    if values is not None:
        with contextlib.suppress(*IMPOSSIBLE):
            created[...] = values
    return f"{name} {dtype}"


def another_shape(file: h5py.File, draw: random.Random) -> str:
    name = draw.choice(_names(file))
    shape, dtype = file[name].shape, file[name].dtype
    axis = draw.randrange(len(shape))
    longer = tuple(n + (i == axis) for i, n in enumerate(shape))
    shorter = tuple(max(n - (i == axis), 0) for i, n in enumerate(shape))
    empty = tuple(n * (i != axis) for i, n in enumerate(shape))
    huge = tuple(2**40 if i == axis else n for i, n in enumerate(shape))
    many = tuple(2**28 if i == axis else n for i, n in enumerate(shape))
    new = draw.choice([longer, shorter, empty, huge, many, shape[::-1], (), (1,) * 12, (*shape, 1), shape[1:]])
    # Chunked without values: a huge shape in a few bytes.
    chunks = tuple(min(max(n, 1), 16) for n in new) if new and 0 not in new else None
    _put(file, name, shape=new, dtype=dtype, chunks=chunks, fillvalue=draw.choice([None, 1]))
    return f"{name} {new}"


def values(file: h5py.File, draw: random.Random) -> str:
    name = draw.choice(_names(file))
    dataset = file[name]
    content = _content(dataset)
    if content.dtype.kind == "S":
        replaced = np.frombuffer(draw.randbytes(content.nbytes), content.dtype).reshape(content.shape)
    else:
        limits = np.finfo(content.dtype) if content.dtype.kind == "f" else np.iinfo(content.dtype)
        special = [0, 1, -1, limits.max, limits.min]
        special += [np.nan, np.inf, -np.inf, limits.tiny] if content.dtype.kind == "f" else []
        with np.errstate(all="ignore"):
            replaced = np.full_like(content, draw.choice(special), casting="unsafe")
    if draw.random() < 0.5:
        mask = np.random.default_rng(draw.randrange(2**32)).random(content.shape) < 0.05
        replaced = np.where(mask, replaced, content)
    dataset[...] = replaced
    return name


def link(file: h5py.File, draw: random.Random) -> str:
    name = draw.choice(_names(file, h5py.HLObject))
    kind = draw.choice(["soft", "loop", "external", "itself", "hard", "cycle"])
    other = draw.choice(_names(file, h5py.HLObject))
    if kind == "cycle":  # a group below itself
        file[f"{draw.choice(_names(file, h5py.Group))}/again"] = file["/"]
        return kind
    target = file[other]
    del file[name]
    if kind == "soft":
        file[name] = h5py.SoftLink(f"/{other}")
    elif kind == "loop":
        file[name], file["loop"] = h5py.SoftLink("/loop"), h5py.SoftLink(f"/{name}")
    elif kind == "external":
        file[name] = h5py.ExternalLink(draw.choice(["other.h5", "/etc/passwd", "/dev/zero"]), f"/{other}")
    elif kind == "itself":
        file[name] = h5py.ExternalLink(Path(file.filename).name, f"/{other}")
    else:
        file[name] = target
    return f"{name} {kind}"


def elsewhere(file: h5py.File, draw: random.Random) -> str:
    """A virtual dataset, or one whose bytes lie in another file."""
    name = draw.choice(_names(file))
    shape, dtype = file[name].shape, file[name].dtype
    if draw.random() < 0.5:
        del file[name]
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(draw.choice(["/etc/passwd", ".", file.filename]), "x", shape)
        file.create_virtual_dataset(name, layout)
        return f"virtual {name}"
    size = int(np.prod(shape)) * dtype.itemsize
    _put(file, name, shape=shape, dtype=dtype, external=[(draw.choice(["/etc/passwd", "/dev/zero"]), 0, size)])
    return f"external {name}"


def bomb(file: h5py.File, draw: random.Random) -> str:
    """Gigabytes of zeros in a few kilobytes."""
    name = draw.choice(_names(file))
    dtype = draw.choice([file[name].dtype, np.dtype("u1"), np.dtype("S4096")])
    inner = tuple(min(n, 64) for n in file[name].shape[1:])
    rows = max(BOMB // max(int(np.prod(inner, initial=1)) * dtype.itemsize, 1), 1)
    chunks = draw.choice([2, 64, 256])
    created = _put(
        file, name, shape=(rows * chunks, *inner), dtype=dtype, chunks=(rows, *inner), compression="gzip", shuffle=True
    )
    compressed = zlib.compress(bytes(rows * int(np.prod(inner, initial=1)) * dtype.itemsize), 9)
    for chunk in range(chunks):
        created.id.write_direct_chunk((chunk * rows, *[0] * len(inner)), compressed)
    return f"{name} {created.shape} {dtype}"


def filters(file: h5py.File, draw: random.Random) -> str:
    name = draw.choice(_names(file))
    content = _content(file[name])
    options = [{"compression": "lzf"}, {"fletcher32": True}, {"scaleoffset": 2}, {"compression": "szip"}, {}]
    _put(file, name, data=content, chunks=True, **draw.choice(options))
    return name


def attribute(file: h5py.File, draw: random.Random) -> str:
    target = file[draw.choice(["/", "model", "data", "statistics", "curvature", *_names(file, h5py.HLObject)])]
    key = draw.choice([*target.attrs, "new"])
    if draw.random() < 0.2:
        del target.attrs[key]
        return f"{target.name} without {key}"
    choices: list[Any] = [leaf for leaf in LEAVES if isinstance(leaf, (int, float, str))]
    choices += [np.bytes_(str(leaf).encode(errors="replace")) for leaf in LEAVES]
    choices += [np.arange(3), np.zeros((0,)), h5py.Empty("f4"), h5py.Empty("S4"), file.ref, np.bytes_(b"\xff\xfe")]
    choices += [np.zeros(7000), "x" * 60_000, np.array([b"a", b"\xff"]), np.array(["a", "b"], h5py.string_dtype())]
    choices += [np.array([file.ref], h5py.ref_dtype), np.void(b"\0\1"), np.zeros(1, [("a", "i4")]), "[" * 50_000]
    target.attrs[key] = draw.choice(choices)
    return f"{target.name} {key}"


def steps(file: h5py.File, draw: random.Random) -> str:
    """An edit of the JSON in the file."""
    name = draw.choice(["model/graph", "model/graph", "model/shapes", "identity"])
    content = json.loads(bytes(file[name][:]))
    done = _edit_json(content, draw)
    _put(file, name, data=np.frombuffer(json.dumps(content).encode(), np.uint8))
    return f"{name}: {done}"


def examples(file: h5py.File, draw: random.Random) -> str:
    content = json.loads(bytes(file["identity"][:]))
    content["data"]["examples"] = draw.choice([0, -1, 1, 2**31, 2**62, 39, 41])
    _put(file, "identity", data=np.frombuffer(json.dumps(content).encode(), np.uint8))
    return "changed"


def swap(file: h5py.File, draw: random.Random) -> str:
    one, other = (draw.choice(_names(file, h5py.HLObject)) for _ in range(2))
    file.move(one, "aside")
    file.move(other, one)
    file.move("aside", other)
    return f"{one} {other}"


EDITS: list[Callable[[h5py.File, random.Random], str]] = [
    remove,
    another_dtype,
    another_dtype,
    another_shape,
    another_shape,
    values,
    values,
    link,
    elsewhere,
    bomb,
    filters,
    attribute,
    attribute,
    steps,
    steps,
    steps,
    examples,
    swap,
]


def _edit_json(content: Any, draw: random.Random) -> str:
    """Change one place of nested lists and objects."""
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        if isinstance(node, (list, dict)):
            for key in range(len(node)) if isinstance(node, list) else list(node):
                places.append((node, key))
                collect(node[key])

    collect(content)
    if not places:
        return "nothing"
    node, key = draw.choice(places)
    how = draw.choice(["replace", "replace", "remove", "double"])
    if how == "remove":
        del node[key]
    elif how == "double" and isinstance(node, list):
        node.insert(key, json.loads(json.dumps(node[key])))
    else:
        node[key] = draw.choice(LEAVES) if draw.random() < 0.7 else json.loads(json.dumps(draw.choice(places)[0]))
    return f"{how} {key!r}"
