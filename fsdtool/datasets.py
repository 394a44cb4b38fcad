"""Data sets: arrays, tables, image folders or a user's own code, all read as one stream of batches.

The rest of the tool sees `DataSource.batches`: row numbers, float32 inputs (B, *input_shape) and targets.
What is stored becomes an input in three fixed steps: uint8 is scaled to [0, 1]; the mean is taken off and the
standard deviation divided out, where given; the dimensions are put in the layout that the model takes, which
`fit_layout` finds by asking the model.

Nothing is downloaded, no pickled or object array is read, and no link out of an HDF5 file is followed.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fsdtool.arrays import open_arrays
from fsdtool.errors import FsdtoolError, describe, some
from fsdtool.items import image_folder, open_items, torchvision_dataset, user_dataset
from fsdtool.readers import ArrayReader, Found, ItemReader, Request, as_targets
from fsdtool.tables import open_table

log = logging.getLogger("fsdtool")
LAYOUTS = ("as is", "channels first", "one channel", "flat")
TASKS = ("classification", "regression")
_FILES = {".npz": open_arrays, ".h5": open_arrays, ".hdf5": open_arrays, ".csv": open_table}


@dataclass(frozen=True)
class Preprocessing:
    """What the user asked to be done to the inputs, and the layout once it is known.

    `mean` and `std` have one value, or one per channel (per feature for tables), in the scale after uint8 has
    become [0, 1]. `image_size` (pixels) resizes the shorter side of images and crops the centre. `layout` is
    one of LAYOUTS.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    layout: str | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and not (values and all(math.isfinite(v) for v in values)):
                raise FsdtoolError(f"the {name} {values} is not a list of finite numbers; give one, or one per channel")
        if self.std is not None and min(self.std) <= 0:
            raise FsdtoolError(f"the std {self.std} has a value that is not positive; give positive numbers")
        if self.image_size is not None and self.image_size < 1:
            raise FsdtoolError(f"the image size {self.image_size} is not positive; give a number of pixels")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise FsdtoolError(f"there is no layout '{self.layout}'; give one of {', '.join(LAYOUTS)}")

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that `to_json` wrote. Raises FsdtoolError for anything else."""
        try:
            numbers = {
                key: tuple(float(v) for v in value[key]) for key in ("mean", "std") if value.get(key) is not None
            }
            size = value.get("image_size")
            return cls(**numbers, image_size=None if size is None else int(size), layout=value.get("layout"))
        except (AttributeError, TypeError, ValueError) as error:
            raise FsdtoolError(
                f"the stored preprocessing cannot be read ({describe(error)}); write it again"
            ) from error


@dataclass
class Batch:
    """Some examples in the order asked for.

    index: (B,) int64, row numbers. x: (B, *input_shape) float32, finite. y: (B,) int64 class numbers, not
    negative, for classification; (B, O) float32, finite, for regression.
    """

    index: Tensor
    x: Tensor
    y: Tensor


class Fingerprint:
    """SHA-256 over inputs and targets in order, the same however they are cut into batches."""

    def __init__(self) -> None:
        self._x, self._y = hashlib.sha256(), hashlib.sha256()
        self._shapes: tuple[object, ...] | None = None

    def update(self, batch: Batch) -> None:
        """Take in the next batch."""
        self._shapes = (tuple(batch.x.shape[1:]), tuple(batch.y.shape[1:]), str(batch.y.dtype))
        self._x.update(batch.x.contiguous().numpy())
        self._y.update(batch.y.contiguous().numpy())

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        parts = repr(self._shapes).encode() + self._x.digest() + self._y.digest()
        return hashlib.sha256(parts).hexdigest()


class DataSource:
    """A data set opened for reading, made by `load_dataset`.

    spec, task: as given. ids: (N,) int64 or fixed-width text. class_names: the name of each class number, or
    None. preprocessing: what is done to the inputs. input_shape: the shape of one input as the model gets it.
    """

    def __init__(
        self,
        *,
        spec: str,
        task: str,
        reader: ArrayReader | ItemReader,
        ids: np.ndarray,
        class_names: list[str] | None,
        relabelling: np.ndarray | None,
        preprocessing: Preprocessing,
    ) -> None:
        self.spec = spec
        self.task = task
        self.ids = ids
        self.class_names = class_names
        self._reader = reader
        self._relabelling = relabelling  # class number in the data -> class number in class_names
        self._prepare(preprocessing)

    def __len__(self) -> int:
        return len(self.ids)

    def layouts(self) -> list[str]:
        """The layouts that the stored shape allows, the likeliest first."""
        shape = self._reader.shape
        if len(shape) == 3:
            last = _channels_last(shape)
            return ["channels first", "as is", "flat"] if last else ["as is", "channels first", "flat"]
        if len(shape) == 2:
            return ["one channel", "as is", "flat"]
        return ["as is"] if len(shape) == 1 else ["as is", "flat"]

    def with_layout(self, name: str) -> DataSource:
        """The same data in the layout `name`; raises FsdtoolError where its shape does not allow that."""
        source = copy.copy(self)
        source._prepare(replace(self.preprocessing, layout=name))
        return source

    def as_stored(self) -> DataSource:
        """The same data in its stored shape, without mean and std, for looking at it; uint8 is scaled to [0, 1]."""
        source = copy.copy(self)
        source._prepare(replace(self.preprocessing, mean=None, std=None, layout="as is"))
        return source

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | np.ndarray | None = None, workers: int = 0
    ) -> Iterator[Batch]:
        """Every example in order, or those at `indices` in the order given, `batch_size` at a time.

        `workers` processes read examples that come one by one (images, a user's code); arrays need none.
        Raises FsdtoolError naming the first example that cannot be read, is not finite or has a wrong target.
        """
        rows = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        if not workers or isinstance(self._reader, ArrayReader):
            yield from map(self._batch, chunks)
            return
        loader = DataLoader(
            _InWorker(self),
            sampler=chunks,
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # the global one stays as the caller seeded it
        )
        for result in loader:
            if isinstance(result, FsdtoolError):
                raise result
            yield result

    def _prepare(self, preprocessing: Preprocessing) -> None:
        allowed, shape = self.layouts(), self._reader.shape
        self._layout = preprocessing.layout or allowed[0]
        if self._layout not in allowed:
            raise FsdtoolError(
                f"inputs of shape {shape} have no layout '{self._layout}'; it can be {' or '.join(allowed)}"
            )
        last = self._layout == "channels first" or (len(shape) == 3 and _channels_last(shape))
        self._channel_axis = len(shape) if last else 1  # of a batch as it is stored
        has_channels = len(shape) != 2 or self._layout == "as is"  # (H, W) is one channel
        channels = (1, *shape)[self._channel_axis] if has_channels else 1
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            if values is not None and len(values) not in (1, channels):
                raise FsdtoolError(
                    f"the {name} has {len(values)} values for inputs of shape {shape}; "
                    + ("give 1" if channels == 1 else f"give 1 or {channels}, one per channel")
                )
        self.preprocessing = preprocessing
        self.input_shape = tuple(self._arranged(torch.empty(1, *shape, device="meta")).shape[1:])

    def _batch(self, rows: np.ndarray) -> Batch:
        x, y = self._reader.read(rows)
        ids = self.ids[rows]
        return Batch(torch.from_numpy(rows.copy()), self._inputs(x, ids), self._labels(y, ids))

    def _inputs(self, stored: np.ndarray, ids: np.ndarray) -> Tensor:
        """Stored (B, *shape) to float32 (B, *input_shape), never sharing memory with the stored array."""
        if stored.dtype == np.uint8:
            x = torch.from_numpy(np.ascontiguousarray(stored)).to(torch.float32).div_(255)
        else:
            with np.errstate(over="ignore"):
                x = torch.from_numpy(np.array(stored, dtype=np.float32))
            finite = torch.isfinite(x).flatten(1).all(dim=1)
            if not finite.all():
                row = int(finite.logical_not().nonzero()[0])
                raise FsdtoolError(
                    f"the inputs of example {ids[row]} hold NaN or infinity; remove it or fill in the value"
                )
        per_channel = [1] * x.ndim
        per_channel[self._channel_axis] = -1
        if self.preprocessing.mean is not None:
            x -= torch.tensor(self.preprocessing.mean).view(per_channel)
        if self.preprocessing.std is not None:
            x /= torch.tensor(self.preprocessing.std).view(per_channel)
        return self._arranged(x)

    def _arranged(self, x: Tensor) -> Tensor:
        if self._layout == "channels first":
            return x.permute(0, 3, 1, 2).contiguous()  # (B, H, W, C) -> (B, C, H, W)
        if self._layout == "one channel":
            return x.unsqueeze(1)  # (B, H, W) -> (B, 1, H, W)
        return x.flatten(1) if self._layout == "flat" else x

    def _labels(self, stored: np.ndarray, ids: np.ndarray) -> Tensor:
        y = torch.from_numpy(as_targets(stored, self.task, ids))
        if self._relabelling is None:
            return y
        classes = len(self._relabelling)
        _check_range(y, ids, classes, f"the data names {classes} classes")
        return torch.from_numpy(self._relabelling)[y]


def fit_layout(source: DataSource, model: nn.Module) -> DataSource:
    """The source in the first layout that the model takes; one in its preprocessing is the only candidate.

    The model (in eval mode) takes a layout if it returns one row of outputs for each of the first two
    examples, a floating tensor (2, O). Raises FsdtoolError with the model's own complaint when none works.
    """
    layouts = [source.preprocessing.layout] if source.preprocessing.layout else source.layouts()
    complaints = []
    for layout in layouts:
        try:
            arranged = source.with_layout(layout)
        except FsdtoolError as error:  # the mean has one value per channel of another layout
            complaints.append(str(error))
            continue
        batch = next(arranged.batches(2, indices=range(min(2, len(source)))))
        complaint = _complaint(model, batch.x)
        if complaint is None:
            if layout != "as is":
                log.info(f"the model takes the inputs as shape {arranged.input_shape} (layout: {layout})")
            return arranged
        complaints.append(f"{complaint} (inputs of shape {arranged.input_shape}, layout: {layout})")
    others = f"; other layouts tried: {', '.join(layouts[1:])}" if len(layouts) > 1 else ""
    raise FsdtoolError(
        f"the model does not take the inputs: {complaints[0]}{others}; "
        "give the data set and the preprocessing it was trained with"
    )


def check_labels(y: Tensor, index: Tensor, ids: np.ndarray, num_classes: int) -> None:
    """Raise FsdtoolError unless each label y (B,) of the rows index (B,) is one of the model's outputs.

    `ids` are those of the whole data set; the first offending example is named by its id.
    """
    _check_range(y, ids[index.numpy()], num_classes, f"the model has {num_classes} outputs")


def _check_range(y: Tensor, ids: np.ndarray, count: int, limit: str) -> None:
    outside = (y >= count).nonzero()
    if len(outside):
        row = int(outside[0])
        raise FsdtoolError(
            f"label {int(y[row])} of example {ids[row]} is out of range: {limit} (0..{count - 1}); "
            "correct the label or give the model that knows this class"
        )


def _complaint(model: nn.Module, x: Tensor) -> str | None:
    """Why `model(x)` is not one row of outputs per example, or None if it is."""
    device = next((p.device for p in model.parameters()), x.device)
    try:
        with torch.no_grad():
            output = model(x.to(device))
    except Exception as error:  # whatever a user's forward may raise
        return describe(error)
    if not isinstance(output, Tensor):
        return f"it returned a {type(output).__name__}, not a tensor of shape (examples, outputs)"
    if output.ndim != 2 or len(output) != len(x) or not output.is_floating_point():
        kind = str(output.dtype).removeprefix("torch.")
        return f"it returned {kind} of shape {tuple(output.shape)}, not floating ({len(x)}, outputs)"
    return None


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)


class _InWorker(torch.utils.data.Dataset):
    """Batches by row numbers. Errors come back as values: DataLoader would bury them in a traceback."""

    def __init__(self, source: DataSource) -> None:
        self._source = source

    def __getitem__(self, rows: np.ndarray) -> Batch | FsdtoolError:
        try:
            return self._source._batch(rows)
        except FsdtoolError as error:
            return error


def _unchanged(result: Any) -> Any:
    return result


def load_dataset(
    spec: str,
    *,
    task: str = "classification",
    preprocessing: Preprocessing | None = None,
    x_key: str | None = None,
    y_key: str | None = None,
    class_names: Sequence[str] | None = None,
) -> DataSource:
    """Open `file.npz`, `file.h5`, `file.csv`, `folder/`, `torchvision:NAME` or `path/file.py:factory`.

    `x_key` and `y_key` name the arrays (columns of a table, separated by commas) where the usual names do not
    lead to one of each. `class_names` fixes the number of each class: labels that the data gives as names
    (text, folders) are numbered by it instead of in sorted order. Raises FsdtoolError for a spec that cannot
    be opened, an empty data set, inputs and targets of different length, or targets that do not fit the task.
    """
    if task not in TASKS:
        raise FsdtoolError(f"there is no task '{task}'; give one of {', '.join(TASKS)}")
    preprocessing = preprocessing or Preprocessing()
    wanted = None if class_names is None else [str(name) for name in class_names]
    request = Request(task, x_key, y_key, wanted, preprocessing.image_size)
    found = _open(spec, request)
    if 0 in found.reader.shape or not found.reader.shape:
        raise FsdtoolError(
            f"the inputs of '{spec}' have shape {(len(found.ids), *found.reader.shape)}; "
            "give at least one number per example, in two or more dimensions"
        )
    if len(found.ids) > len(np.unique(found.ids)):
        log.warning(f"some of the {len(found.ids)} ids of '{spec}' occur more than once")
    names, relabelling = _relabelling(found.class_names, wanted, spec)
    return DataSource(
        spec=spec,
        task=task,
        reader=found.reader,
        ids=found.ids,
        class_names=names if task == "classification" else None,
        relabelling=relabelling if task == "classification" else None,
        preprocessing=preprocessing,
    )


def _open(spec: str, request: Request) -> Found:
    path = Path(spec)
    if spec.startswith("torchvision:"):
        return open_items(functools.partial(torchvision_dataset, spec), spec, request)
    if re.search(r"(\.py|^[\w.]+):\w", spec) and not path.exists():
        return open_items(functools.partial(user_dataset, spec), spec, request)
    if path.is_dir():
        if request.task == "regression":
            raise FsdtoolError(f"the folder '{spec}' holds classes of images; leave --task regression out")
        return open_items(functools.partial(image_folder, spec), spec, request)
    if not path.is_file() or path.suffix not in _FILES:
        raise FsdtoolError(
            f"the data '{spec}' {'is of an unknown kind' if path.exists() else 'does not exist'}; give a "
            ".npz, .h5 or .csv file, a folder of images, torchvision:NAME or path/file.py:factory"
        )
    if request.image_size is not None:
        raise FsdtoolError(f"--image-size is for images, and '{spec}' holds arrays; leave it out")
    return _FILES[path.suffix](path, request)


def _relabelling(
    found: list[str] | None, wanted: list[str] | None, spec: str
) -> tuple[list[str] | None, np.ndarray | None]:
    """The class names to use, and the number among them of each class that the data numbers itself."""
    if wanted is None or found is None or found == wanted:
        return wanted or found, None
    unknown = [name for name in found if name not in wanted]
    if unknown:
        raise FsdtoolError(
            f"'{spec}' has classes that are not among the class names {some(wanted)}: {some(unknown)}; "
            "rename or remove them"
        )
    return wanted, np.array([wanted.index(name) for name in found], dtype=np.int64)
