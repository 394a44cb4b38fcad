"""Data sets of every kind give the same stream of batches; what is wrong with one is one line."""

from __future__ import annotations

import csv
import logging
import pickle
import textwrap

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats import array_keys as array_files
from fsdtool.data.formats import map_style
from fsdtool.data.formats.load import load_dataset
from fsdtool.data.layout import fit_layout
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.data.source import Batch, DataSource, Fingerprint
from fsdtool.errors import FsdtoolError
from fsdtool.model.libraries import import_torchvision
from fsdtool.tasks.task import task_of

N = 7  # divisible by none of the batch sizes used
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
FEATURES = RNG.standard_normal((N, 4))
LABELS = np.array([2, 0, 1, 1, 0, 2, 2])
TARGETS = RNG.standard_normal(N)


def error_line(call, *arguments, **options) -> str:
    """The message of the FsdtoolError that the call raises; it is always one line."""
    with pytest.raises(FsdtoolError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    return message


def everything(source: DataSource, batch_size: int = 3, **options) -> Batch:
    parts = list(source.batches(batch_size, **options))
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in ("index", "x", "y")))


def npz(folder, **arrays):
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def h5(folder, **arrays):
    path = folder / f"data{len(list(folder.iterdir()))}.h5"  # an earlier one may still be open
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return str(path)


def table(folder, text):
    path = folder / "data.csv"
    path.write_text(textwrap.dedent(text).lstrip())
    return str(path)


def image_folder(folder, sizes=((8, 6),) * 6):
    from PIL import Image

    for i, (width, height) in enumerate(sizes):
        directory = folder / ("cat", "dog")[i % 2]
        directory.mkdir(exist_ok=True, parents=True)
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"{i}.png")
    return str(folder)


USER_FILE = """
    import torch

    class Pairs(torch.utils.data.Dataset):
        classes = ["no", "yes"]

        def __init__(self, size=7, start=0.0, item=None):
            self.size, self.start, self.item = size, start, item

        def __len__(self):
            return self.size

        def __getitem__(self, i):
            if self.item is not None:
                return self.item(i)
            return torch.full((4,), self.start + i), i % 2

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    def images():
        from PIL import Image
        return Pairs(item=lambda i: (Image.new("L", (6, 5), i), i % 2))

    def half(): return Pairs(item=lambda i: (torch.full((4,), i, dtype=torch.bfloat16), torch.tensor(i % 2)))
    def vectors(): return Pairs(item=lambda i: (torch.zeros(4), torch.tensor([i, -i])))
    def uneven(): return Pairs(item=lambda i: (torch.zeros(4 + i // 5), 0))
    def mixed(): return Pairs(item=lambda i: (torch.zeros(4).to(torch.uint8 if i == 5 else torch.float32), 0))
    def single(): return Pairs(item=lambda i: torch.zeros(4))
    def words(): return Pairs(item=lambda i: (["a", "b"], 0))
    def scalars(): return Pairs(item=lambda i: (1.0, 0))
    def fails(): return Pairs(item=lambda i: ([1 / (5 - i)], 0))
    def holes(): return Pairs(item=lambda i: (torch.tensor([0.0, float("nan") if i == 5 else 1.0]), 0))
    def empty(): return Pairs(size=0)
    def number(): return 3
    def raises(): raise RuntimeError("no disk")
    def needs(root): return Pairs()
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "data.py"
    path.write_text(textwrap.dedent(USER_FILE))
    return path


@pytest.fixture(params=["npz", "h5", "csv", "folder", "factory"])
def any_source(request, tmp_path, user_file):
    """A data set of 7 (6) examples of each kind."""
    spec = {
        "npz": lambda: npz(tmp_path, x=IMAGES, y=LABELS),
        "h5": lambda: h5(tmp_path, x=FEATURES, y=LABELS),
        "csv": lambda: table(tmp_path, "a,y,b\n" + "".join(f"{i / 3},{i % 2},{i}\n" for i in range(N))),
        "folder": lambda: image_folder(tmp_path / "images"),
        "factory": lambda: f"{user_file}:Pairs",
    }[request.param]()
    return load_dataset(spec)


# --- every kind


def test_batches_do_not_depend_on_their_size(any_source):
    whole = everything(any_source, 100)
    assert whole.index.tolist() == list(range(len(any_source)))
    assert (whole.index.dtype, whole.x.dtype, whole.y.dtype) == (torch.int64, torch.float32, torch.int64)
    assert whole.x.shape == (len(any_source), *any_source.input_shape)
    for batch_size in (1, 2, 3):
        sizes = [len(batch.y) for batch in any_source.batches(batch_size)]
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
        for name in ("index", "x", "y"):
            assert torch.equal(getattr(everything(any_source, batch_size), name), getattr(whole, name))


def test_any_rows_come_in_the_order_asked_for(any_source):
    whole = everything(any_source)
    for rows in ([4, 1, 1, 3], [5], [2, 3, 4], np.array([5, 4]), []):
        batches = list(any_source.batches(2, indices=rows))
        assert [int(i) for batch in batches for i in batch.index] == list(rows)
        for batch in batches:
            assert torch.equal(batch.x, whole.x[batch.index])
            assert torch.equal(batch.y, whole.y[batch.index])


def test_the_fingerprint_depends_on_the_content_and_not_on_the_batches(any_source):
    def fingerprint(batches, ids=any_source.ids):
        digest = Fingerprint(ids)
        for batch in batches:
            digest.update(batch)
        return digest.hexdigest()

    expected = fingerprint(any_source.batches(100))
    assert len(expected) == 64
    assert {fingerprint(any_source.batches(size)) for size in (1, 2, 3)} == {expected}
    changed = [everything(any_source) for _ in range(3)]
    changed[0].x[1] += 1e-3
    changed[1].y[1] += 1
    changed[2].x, changed[2].y = changed[2].x.flip(0), changed[2].y.flip(0)
    renamed = np.array([f"other {name}" for name in any_source.ids])
    assert (
        len({expected, *(fingerprint([batch]) for batch in changed), fingerprint(any_source.batches(3), renamed)}) == 5
    )


def test_the_fingerprint_shows_preprocessing_and_corrected_labels(tmp_path):
    spec, fixes = npz(tmp_path, x=FEATURES, y=LABELS), tmp_path / "fixes.csv"
    fixes.write_text("id,label\n3,0\n")
    digests = set()
    for options in ({}, {"preprocessing": Preprocessing(mean=(0.1,))}, {"labels": fixes}, {"ids": {"0", "1"}}):
        source = load_dataset(spec, **options)
        digest = Fingerprint(source.ids)
        for batch in source.batches(3):
            digest.update(batch)
        digests.add(digest.hexdigest())
    assert len(digests) == 4


def test_a_network_that_changes_its_inputs_does_not_change_the_data(any_source):
    before = everything(any_source).x
    for batch in any_source.batches(3):
        batch.x.zero_()
    assert torch.equal(everything(any_source).x, before)


# --- inputs


def test_uint8_is_scaled_as_torchvision_scales_it(tmp_path):
    source = load_dataset(npz(tmp_path, x=IMAGES, y=LABELS))
    to_tensor = import_torchvision().transforms.ToTensor()
    assert source.input_shape == (3, 6, 5)
    assert torch.equal(everything(source).x, torch.stack([to_tensor(image) for image in IMAGES]))


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i2", "i8", "u2", "?"])
def test_other_numbers_are_taken_as_they_are(tmp_path, dtype):
    values = (10 * FEATURES).astype(dtype)
    for spec in (npz(tmp_path, x=values, y=LABELS), h5(tmp_path, x=values, y=LABELS)):
        assert np.array_equal(everything(load_dataset(spec)).x.numpy(), values.astype(np.float32))


def test_mean_and_std_apply_per_channel_before_the_layout(tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    spec = npz(tmp_path, x=IMAGES, y=LABELS)
    source = load_dataset(spec, preprocessing=Preprocessing(mean=mean, std=std))
    expected = (IMAGES / 255 - np.array(mean)) / np.array(std)  # (N, H, W, C)
    for layout in source.layouts():
        x = everything(source.with_layout(layout)).x.numpy()
        arranged = expected.transpose(0, 3, 1, 2) if layout == "channels first" else expected
        np.testing.assert_allclose(x, arranged.reshape(x.shape), atol=1e-6)
    first = npz(tmp_path, x=IMAGES.transpose(0, 3, 1, 2), y=LABELS)
    x = everything(load_dataset(first, preprocessing=Preprocessing(mean=mean, std=std))).x.numpy()
    np.testing.assert_allclose(x, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_one_mean_applies_to_everything(tmp_path):
    for x, scale in ((IMAGES, 255), (IMAGES[..., 0], 255), (FEATURES, 1)):
        source = load_dataset(npz(tmp_path, x=x, y=LABELS), preprocessing=Preprocessing(mean=(0.5,), std=(2.0,)))
        stored = source.with_layout("as is")
        np.testing.assert_allclose(everything(stored).x.numpy(), (x / scale - 0.5) / 2, atol=1e-6)


def test_a_mean_of_the_wrong_length_is_one_line(tmp_path):
    pair = Preprocessing(mean=(0.1, 0.2))
    for x, advice in ((IMAGES, "give 1 or 3"), (IMAGES[..., 0], "give 1"), (FEATURES, "give 1 or 4")):
        line = error_line(load_dataset, npz(tmp_path, x=x, y=LABELS), preprocessing=pair)
        assert "the mean has 2 values" in line
        assert advice in line


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_inputs_that_are_not_finite_name_the_example(tmp_path, bad):
    x = FEATURES.copy()
    x[5, 2] = bad
    source = load_dataset(npz(tmp_path, x=x, y=LABELS, ids=np.array([f"row{i}" for i in range(N)])))
    assert "the inputs of example row5 hold NaN or infinity" in error_line(everything, source)
    assert len(everything(source, indices=[0, 1, 2, 3, 4, 6]).y) == 6


# --- preprocessing


@pytest.mark.parametrize(
    "given", [Preprocessing(), Preprocessing((0.5,), (0.1,), 32, "flat"), Preprocessing(mean=(1.0, 2.0, 3.0))]
)
def test_preprocessing_survives_json(given):
    assert Preprocessing.from_json(given.to_json()) == given


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mean": ()}, "mean () is not a list of finite numbers"),
        ({"mean": (float("nan"),)}, "mean (nan,) is not"),
        ({"std": (1.0, 0.0)}, "not positive"),
        ({"image_size": 0}, "image size 0"),
        (
            {"layout": "sideways"},
            "no layout 'sideways'; give one of as is, channels first, one channel, flat",
        ),
    ],
)
def test_impossible_preprocessing_is_one_line(options, expected):
    assert expected in error_line(Preprocessing, **options)


@pytest.mark.parametrize("value", [3, {"mean": 3}, {"mean": ["x"]}, {"image_size": "big"}, {"layout": 5}, []])
def test_stored_preprocessing_that_was_tampered_with_is_one_line(value):
    assert error_line(Preprocessing.from_json, value)


# --- layouts


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 4), [("as is", (4,))]),
        ((5, 8, 7), [("one channel", (1, 8, 7)), ("as is", (8, 7)), ("flat", (56,))]),
        ((5, 8, 7, 3), [("channels first", (3, 8, 7)), ("as is", (8, 7, 3)), ("flat", (168,))]),
        ((5, 3, 8, 7), [("as is", (3, 8, 7)), ("channels first", (7, 3, 8)), ("flat", (168,))]),
        ((5, 3, 8, 4), [("as is", (3, 8, 4)), ("channels first", (4, 3, 8)), ("flat", (96,))]),
        ((5, 2, 3, 4, 2), [("as is", (2, 3, 4, 2)), ("flat", (48,))]),
    ],
)
def test_layouts_in_order_of_likelihood(tmp_path, shape, expected):
    source = load_dataset(npz(tmp_path, x=RNG.standard_normal(shape), y=np.zeros(5, int)))
    assert source.layouts() == [name for name, _ in expected]
    assert [source.with_layout(name).input_shape for name, _ in expected] == [shape for _, shape in expected]
    assert source.input_shape == expected[0][1]


FITTING = [
    (IMAGES, lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(3)), "channels first"),
    (
        IMAGES.transpose(0, 3, 1, 2),
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(3)),
        "as is",
    ),
    (IMAGES, lambda: nn.Linear(90, 3), "flat"),
    (IMAGES[..., 0], lambda: nn.Linear(30, 3), "flat"),
    (
        IMAGES[..., 0],
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(3)),
        "one channel",
    ),
    (IMAGES[..., 0], lambda: nn.Sequential(nn.Conv1d(6, 2, 3), nn.Flatten(), nn.LazyLinear(3)), "as is"),
    (FEATURES, lambda: nn.Linear(4, 3), "as is"),
]


@pytest.mark.parametrize(("x", "build", "layout"), FITTING)
def test_the_layout_that_the_model_takes_is_found_and_said(tmp_path, caplog, x, build, layout):
    caplog.set_level(logging.INFO, "fsdtool")
    source = load_dataset(npz(tmp_path, x=x, y=LABELS))
    fitted = fit_layout(source, build().eval())
    assert fitted.preprocessing.layout == layout
    assert source.preprocessing.layout is None
    assert (f"(layout: {layout}; `layout`)" in caplog.text) == (layout != "as is")
    again = load_dataset(source.spec, preprocessing=Preprocessing.from_json(fitted.preprocessing.to_json()))
    assert torch.equal(everything(again).x, everything(fitted).x)


def test_a_layout_that_was_named_is_the_only_one_tried(tmp_path):
    spec = npz(tmp_path, x=IMAGES, y=LABELS)
    source = load_dataset(spec, preprocessing=Preprocessing(layout="flat"))
    assert fit_layout(source, nn.Linear(90, 2)).input_shape == (90,)
    line = error_line(fit_layout, source, nn.Conv2d(3, 2, 3))
    assert "layout: flat" in line
    assert "tried" not in line
    assert "no layout 'one channel'" in error_line(source.with_layout, "one channel")


def test_a_model_that_takes_no_layout_is_quoted(tmp_path):
    source = load_dataset(npz(tmp_path, x=IMAGES[..., 0], y=LABELS))
    line = error_line(fit_layout, source, nn.Linear(31, 2))
    assert "the model does not take the inputs: its layer 'Linear' takes 31 features and gets 5 " in line
    assert "inputs of shape (1, 6, 5), layout: one channel" in line
    assert "other layouts tried: as is, flat" in line
    assert "(3, 4, 3, 2)" not in line


def test_outputs_that_are_not_one_row_per_example_are_named(tmp_path):
    source = load_dataset(npz(tmp_path, x=FEATURES, y=LABELS))

    class Returns(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.change = change

        def forward(self, x):
            return self.change(x)

    for change, found in (
        (lambda x: {"logits": x}, "returned a dict"),
        (lambda x: x[:, 0], "returned float32 of shape (2,)"),
        (lambda x: x.long(), "returned int64 of shape (2, 4)"),
        (lambda x: x[:1], "returned float32 of shape (1, 4)"),
    ):
        assert found in error_line(fit_layout, source, Returns(change))


def test_means_per_channel_do_not_hide_what_the_model_says(tmp_path):
    spec = npz(tmp_path, x=IMAGES.transpose(0, 3, 1, 2), y=LABELS)
    source = load_dataset(spec, preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3)))
    assert fit_layout(source, nn.Linear(90, 2)).preprocessing.layout == "flat"
    assert "layer 'Conv2d' takes 5 channels and gets 3 (inputs" in error_line(fit_layout, source, nn.Conv2d(5, 1, 3))


def test_a_data_set_of_one_example_fits_too(tmp_path):
    source = load_dataset(npz(tmp_path, x=IMAGES[:1], y=LABELS[:1]))
    assert fit_layout(source, nn.Linear(90, 2)).input_shape == (90,)


# --- targets


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.astype(np.uint8), LABELS.astype(float), LABELS[:, None], LABELS.astype(">i4")]
)
def test_labels_are_class_numbers_however_they_are_stored(tmp_path, labels):
    assert everything(load_dataset(npz(tmp_path, x=FEATURES, y=labels))).y.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.where(np.arange(N) == 4, -1, LABELS), "label -1 of example 4 is not a class number"),
        (np.where(np.arange(N) == 4, 1.5, LABELS), "label 1.5 of example 4"),
        (
            np.where(np.arange(N) == 4, np.nan, LABELS),
            "example 4 has no label (NaN); fill it in, or give `skip_bad=True`",
        ),
        (np.eye(3)[LABELS] * 0.9 + 0.03, "shape (7, 3) and that of example 0 is not one-hot; give one class number"),
        (np.minimum(np.eye(3)[LABELS] + np.eye(3)[0], 1), "example 0 is not one-hot"),
        (IMAGES, "the labels have shape (7, 6, 5, 3); give one class number"),
        (LABELS.astype(complex), "dtype complex128"),
    ],
)
def test_labels_that_are_no_class_numbers_are_named(tmp_path, labels, expected):
    assert expected in error_line(load_dataset, npz(tmp_path, x=FEATURES, y=labels), task="classification")


@pytest.mark.parametrize("kind", ["text", "bytes", "h5 text"])
def test_labels_in_text_are_numbered_and_kept_as_names(tmp_path, kind, caplog):
    caplog.set_level(logging.INFO, "fsdtool")
    words = np.array(["bee", "ant", "cat", "cat", "ant", "bee", "bee"])
    if kind == "h5 text":
        spec = h5(tmp_path, x=FEATURES, y=[str(word) for word in words])
    else:
        spec = npz(tmp_path, x=FEATURES, y=words.astype("S") if kind == "bytes" else words)
    source = load_dataset(spec)
    assert source.class_names == ["ant", "bee", "cat"]
    assert everything(source).y.tolist() == [1, 0, 2, 2, 0, 1, 1]
    assert "numbered in sorted order: ant, bee, cat" in caplog.text
    other = load_dataset(spec, class_names=["cat", "dog", "bee", "ant"])
    assert other.class_names == ["cat", "dog", "bee", "ant"]
    assert everything(other).y.tolist() == [2, 3, 0, 0, 3, 2, 2]
    line = error_line(load_dataset, spec, class_names=["ant", "cat"])
    assert "label 'bee' in row 0" in line
    assert "(ant, cat)" in line


def test_targets_of_regression_are_float_columns(tmp_path):
    for stored, shape in ((TARGETS, (N, 1)), (FEATURES[:, :2], (N, 2)), (LABELS, (N, 1))):
        y = everything(load_dataset(npz(tmp_path, x=FEATURES, y=stored), task="regression")).y
        assert y.dtype == torch.float32
        np.testing.assert_allclose(y.numpy(), stored.reshape(shape), rtol=1e-6)
    bad = np.where(np.arange(N) == 2, np.inf, TARGETS)
    line = error_line(load_dataset, npz(tmp_path, x=FEATURES, y=bad), task="regression")
    assert "the target of example 2 is NaN or infinite" in line
    line = error_line(load_dataset, npz(tmp_path, x=FEATURES, y=IMAGES), task="regression")
    assert "the targets have shape (7, 6, 5, 3)" in line
    assert "no task 'ranking'" in error_line(load_dataset, npz(tmp_path, x=FEATURES, y=LABELS), task="ranking")


def test_a_label_beyond_the_outputs_is_named():
    task, y, ids = task_of("classification"), torch.tensor([3, 12, 11]), np.array(["img4", "img17", "img2"])
    task.check_targets(y, ids, 13)
    line = error_line(task.check_targets, y, ids, 10)
    assert line.startswith("label 12 of example img17 is out of range: the model has 10 outputs (0..9); ")


# --- arrays in files


@pytest.mark.parametrize("write", [npz, h5])
@pytest.mark.parametrize("x_name", array_files.INPUT_KEYS)
def test_the_usual_names_are_found(tmp_path, write, x_name):
    for y_name in array_files.TARGET_KEYS:
        source = load_dataset(write(tmp_path, **{y_name: LABELS, x_name: FEATURES, "extra": FEATURES, "n": LABELS}))
        assert everything(source).y.tolist() == LABELS.tolist()
        assert source.input_shape == (4,)


@pytest.mark.parametrize("write", [npz, h5])
def test_the_only_candidates_are_found_and_others_must_be_named(tmp_path, write, caplog):
    caplog.set_level(logging.INFO, "fsdtool")
    source = load_dataset(write(tmp_path, pixels=IMAGES, kind=LABELS, ids=np.arange(N) + 5, scale=2.0))
    assert source.input_shape == (3, 6, 5)
    assert source.ids.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert "inputs 'pixels' uint8 (7, 6, 5, 3) (`x_key`), targets 'kind' int64 (7,) (`y_key`)" in caplog.text
    assert "ids 'ids' (`id_key`)" in caplog.text
    spec = write(tmp_path, x=FEATURES, y_clean=LABELS, y_noisy=LABELS[::-1].copy())
    line = error_line(load_dataset, spec)
    assert "cannot tell which array" in line
    assert "targets; give `y_key` one of: x (7, 4), y_clean (7,), y_noisy (7,)" in line
    assert everything(load_dataset(spec, y_key="y_noisy")).y.tolist() == LABELS[::-1].tolist()
    assert "has no array 'y_dirty'; give `y_key` one of" in error_line(load_dataset, spec, y_key="y_dirty")
    spec = write(tmp_path, left=FEATURES, right=FEATURES, y=LABELS)
    assert "holds the inputs; give `x_key` one of: left" in error_line(load_dataset, spec)
    assert load_dataset(spec, x_key="right").input_shape == (4,)
    assert "give `x_key` one of: nothing" in error_line(load_dataset, write(tmp_path))


@pytest.mark.parametrize("write", [npz, h5])
def test_arrays_that_do_not_go_together_are_one_line(tmp_path, write):
    cases = [
        ({"x": FEATURES, "y": LABELS[:5]}, "inputs 'x' (7, 4) but targets 'y' (5,)"),
        ({"x": FEATURES[:0], "y": LABELS[:0]}, "is empty: 'x' has shape (0, 4)"),
        ({"x": FEATURES[:, :0], "y": LABELS}, "inputs of"),
        ({"x": TARGETS, "y": LABELS}, "two or more dimensions"),
        ({"x": FEATURES, "y": LABELS, "ids": np.arange(3)}, "ids of shape (3,) for 7 examples"),
        ({"x": FEATURES, "y": LABELS, "id": TARGETS}, "ids of dtype float64"),
        ({"x": FEATURES.astype(complex), "y": LABELS}, "dtype complex128; give numbers"),
    ]
    for arrays, expected in cases:
        assert expected in error_line(load_dataset, write(tmp_path, **arrays))


@pytest.mark.parametrize("write", [npz, h5])
def test_ids_and_class_names_come_along(tmp_path, write, caplog):
    names = np.array([b"zero", b"one", b"two"])
    ids = np.array([f"p{i}".encode() for i in range(N)])
    spec = write(tmp_path, x=FEATURES, y=LABELS, id=ids, class_names=names)
    source = load_dataset(spec)
    assert source.ids.tolist() == [f"p{i}" for i in range(N)]
    assert source.ids.dtype.kind == "U"
    assert source.class_names == ["zero", "one", "two"]
    assert load_dataset(spec, task="regression").class_names is None
    other = load_dataset(spec, class_names=["two", "three", "one", "zero"])
    assert [other.class_names[y] for y in everything(other).y] == [source.class_names[y] for y in LABELS]
    assert "not among the class names one, two: zero" in error_line(load_dataset, spec, class_names=["one", "two"])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    spec = write(tmp_path, x=FEATURES, y=LABELS, id=ids[[0, 0, 1, 2, 3, 4, 5]])
    assert "1 ids of" in (line := error_line(load_dataset, spec))
    assert "more than one example (p0); make them unique, or give `id_key=row`" in line
    assert load_dataset(spec, id_key="row").ids.tolist() == list(range(N))


def test_a_label_beyond_the_named_classes_is_found_when_they_are_renumbered(tmp_path):
    spec = npz(tmp_path, x=FEATURES, y=LABELS, class_names=np.array(["zero", "one"]))
    source = load_dataset(spec, class_names=["one", "zero"])
    assert "label 2 of example 0 is out of range: the data names 2 classes (0..1)" in error_line(everything, source)


def test_h5_reads_only_the_rows_asked_for_and_finds_nested_arrays(tmp_path):
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("train/x", data=IMAGES, chunks=(2, 6, 5, 3), compression="gzip")
        file["train/y"] = LABELS
        file["train/y"].attrs["class_names"] = ["zero", "one", "two"]
    source = load_dataset(str(path))
    assert source.class_names == ["zero", "one", "two"]
    assert isinstance(source.examples.reader._x, h5py.Dataset)
    whole = everything(load_dataset(npz(tmp_path, x=IMAGES, y=LABELS)))
    assert torch.equal(everything(source).x, whole.x)
    assert torch.equal(everything(source, indices=[6, 0, 6]).x, whole.x[[6, 0, 6]])


def test_h5_links_and_other_files_are_not_followed(tmp_path):
    secret = h5(tmp_path, x=FEATURES, y=LABELS)
    for link in (h5py.ExternalLink(secret, "x"), h5py.SoftLink("/y")):
        spec = h5(tmp_path, y=LABELS)
        with h5py.File(spec, "a") as file:
            file["x"] = link
        assert f"'x' in '{spec}' is a link" in error_line(load_dataset, spec)
    layout = h5py.VirtualLayout((N, 4), "f8")
    layout[:] = h5py.VirtualSource(secret, "x", (N, 4))
    spec = h5(tmp_path, y=LABELS)
    with h5py.File(spec, "a") as file:
        file.create_virtual_dataset("x", layout)
    assert "lies in other files" in error_line(load_dataset, spec)
    spec = h5(tmp_path, y=LABELS)
    with h5py.File(spec, "a") as file:
        file.create_dataset("x", (N, 4), "f8", external=[(secret, 0, N * 32)])
    assert "lies in other files" in error_line(load_dataset, spec)
    spec = h5(tmp_path, y=LABELS)
    with h5py.File(spec, "a") as file:
        file["group/deep"] = h5py.ExternalLink(secret, "x")
    assert "one of: y (7,)" in error_line(load_dataset, spec)


def test_objects_are_never_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    for name, arrays in {
        "x": {"x": np.array([[Harmful()]], dtype=object), "y": LABELS[:1]},
        "y": {"x": FEATURES[:1], "y": np.array([Harmful()], dtype=object)},
    }.items():
        line = error_line(load_dataset, npz(tmp_path, **arrays))
        assert name in line
        assert "dtype object" in line or "Object arrays cannot be loaded" in line
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_damaged_files_are_one_line(tmp_path, suffix):
    write = npz if suffix == ".npz" else h5
    with open(write(tmp_path, x=FEATURES, y=LABELS), "rb") as file:
        content = file.read()
    path = tmp_path / f"damaged{suffix}"
    for damaged in (b"", b"nonsense", content[: len(content) // 2], content[:-20]):
        path.write_bytes(damaged)
        line = error_line(load_dataset, str(path))
        assert "is damaged or not a" in line


def test_an_array_damaged_in_the_middle_is_one_line(tmp_path):
    path = npz(tmp_path, x=np.ones((N, 10_000)), y=LABELS)
    with open(path, "r+b") as file:
        file.seek(400_000)
        file.write(b"\xff" * 8)
    assert "'x' in" in error_line(load_dataset, path)
    path = tmp_path / "chunked.h5"
    with h5py.File(path, "w") as file:
        file["y"] = LABELS
        chunked = file.create_dataset("x", data=FEATURES, chunks=(N, 4), compression="gzip")
        offset = chunked.id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)
    assert "the inputs of rows 0 to 2 cannot be read" in error_line(everything, load_dataset(str(path)))


def test_what_is_no_data_set_is_one_line(tmp_path):
    (tmp_path / "data.txt").touch()
    assert f"the data '{tmp_path}/data.txt' is of an unknown kind" in error_line(load_dataset, f"{tmp_path}/data.txt")
    line = error_line(load_dataset, f"{tmp_path}/data.npz")
    assert (
        "does not exist; give a .npz, .h5, .hdf5, .csv, .tsv or .parquet file, x.npy,y.npy (or .h5), a folder" in line
    )
    line = error_line(load_dataset, npz(tmp_path, x=FEATURES, y=LABELS), preprocessing=Preprocessing(image_size=8))
    assert "`image_size` is for images" in line


# --- tables


def test_a_table_of_numbers_ids_and_words(tmp_path):
    text = """
        age,id,label,height
        30,a7, yes,1.5
        40,b1,no,1.25

        50,"c,2",yes,-1e3
        """
    source = load_dataset(table(tmp_path, text))
    assert source.ids.tolist() == ["a7", "b1", "c,2"]
    assert source.class_names == ["no", "yes"]
    batch = everything(source)
    assert batch.x.tolist() == [[30, 1.5], [40, 1.25], [50, -1000]]
    assert batch.y.tolist() == [1, 0, 1]
    named = load_dataset(table(tmp_path, text), class_names=["yes", "maybe", "no"])
    assert everything(named).y.tolist() == [0, 2, 0]


def test_columns_can_be_named(tmp_path):
    spec = table(tmp_path, "y,a,b,c\n1,2,3,4\n5,6,7,8\n")
    assert everything(load_dataset(spec, y_key="c", x_key="b,a")).x.tolist() == [[3, 2], [7, 6]]
    batch = everything(load_dataset(spec, y_key="c,a", task="regression"))
    assert batch.x.tolist() == [[1, 3], [5, 7]]
    assert batch.y.tolist() == [[4, 2], [8, 6]]
    assert "`y_key` names 2 columns (c, a); classification takes one" in error_line(load_dataset, spec, y_key="c,a")


def test_ids_that_would_not_read_back_stay_text(tmp_path):
    for ids, expected in ((("7", "-3", "0"), [7, -3, 0]), (("007", "8", "9"), ["007", "8", "9"])):
        spec = table(tmp_path, "id,a,y\n" + "".join(f"{i},1,0\n" for i in ids))
        assert load_dataset(spec).ids.tolist() == expected


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a,y\n1,0\nx,1\n", {}, "line 3 of"),
        ("a,y\n1,0\nx,1\n", {}, "has 'x' in column 'a'; features must be numbers"),
        ("a,y\n,0\n", {}, "has '' in column 'a'"),
        ("a,y\n1,0\n2\n", {}, "line 3 of"),
        ("a,y\n1,0\n2\n", {}, "has 1 cells, its header 2"),
        ("a,y\n1,\n", {}, "line 2 of"),
        ("a,y\n1,\n", {}, "has no 'y'; fill it in"),
        ("a,y\n", {}, "has a header and no rows"),
        ("", {}, "it has no bytes"),
        ("a,b\n1,2\n", {}, "which column of"),
        ("a,y,label\n1,2,3\n", {}, "give `y_key` one of: a, y, label"),
        (",a,y\n0,1,2\n", {}, "without a name or twice the same"),
        ("a,a,y\n0,1,2\n", {}, "without a name or twice the same"),
        ("a,y\n0,1\n", {"y_key": "z"}, "no column 'z'; it has a, y"),
        ("id,y\n0,1\n", {}, "no column"),
        ("a,y\n0,1.5\n", {}, "label 1.5 of example 0"),
        ("a,y\n0,b\n", {"task": "regression"}, "target 'y' of"),
        ("a,y\n0,b\n", {"task": "regression"}, "is text; give numbers"),
        ('a,y\n0,"b\n', {}, "not a UTF-8 CSV table"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, text, options, expected):
    assert expected in error_line(load_dataset, table(tmp_path, text), **options)


def test_a_table_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "data.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    assert "not a UTF-8 CSV table" in error_line(load_dataset, f"{tmp_path}/data.csv")


def test_a_missing_value_names_its_line_and_column_or_is_skipped(tmp_path):
    for missing in ("nan", "NA", " ", "null", "?"):
        spec = table(tmp_path, f"a,y\n1,0\n{missing},1\n")
        assert "line 3 of" in (line := error_line(load_dataset, spec))
        assert f"has '{missing}' in column 'a'" in line
        assert load_dataset(spec, skip_bad=True).ids.tolist() == [0]


def test_a_regression_table_reads_as_numpy_reads_it(tmp_path):
    values = RNG.standard_normal((N, 4))
    path = tmp_path / "data.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c", "y"], *values.tolist()])
    batch = everything(load_dataset(str(path), task="regression"))
    np.testing.assert_array_equal(batch.x.numpy(), values[:, :3].astype(np.float32))
    np.testing.assert_array_equal(batch.y.numpy(), values[:, 3:].astype(np.float32))


# --- folders of images


def test_a_folder_gives_paths_as_ids_and_folders_as_classes(tmp_path):
    spec = image_folder(tmp_path / "images")
    source = load_dataset(spec)
    assert source.ids.tolist() == [
        "cat/0.png",
        "cat/2.png",
        "cat/4.png",
        "dog/1.png",
        "dog/3.png",
        "dog/5.png",
    ]
    assert source.class_names == ["cat", "dog"]
    assert everything(source).y.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.input_shape == (3, 6, 8)
    renumbered = load_dataset(spec, class_names=["dog", "bird", "cat"])
    assert everything(renumbered).y.tolist() == [2, 2, 2, 0, 0, 0]
    assert "not among the class names cat, fox: dog" in error_line(load_dataset, spec, class_names=["cat", "fox"])


@pytest.mark.parametrize("size", [5, 6, 9])
def test_images_are_resized_and_cropped_as_torchvision_does(tmp_path, size):
    spec = image_folder(tmp_path / "images", sizes=[(8, 6), (6, 11), (13, 13), (7, 20)])
    source = load_dataset(spec, preprocessing=Preprocessing(image_size=size))
    vision = import_torchvision()
    transform = vision.transforms.Compose(
        [vision.transforms.Resize(size), vision.transforms.CenterCrop(size), vision.transforms.ToTensor()]
    )
    expected = torch.stack([x for x, _ in vision.datasets.ImageFolder(spec, transform)])
    assert source.input_shape == (3, size, size)
    assert torch.equal(everything(source).x, expected)


def test_images_of_different_sizes_need_a_size(tmp_path):
    source = load_dataset(image_folder(tmp_path / "images", sizes=[(8, 6), (8, 6), (8, 7)]))
    line = error_line(everything, source)
    assert "example cat/2.png has inputs (7, 8, 3) uint8" in line
    assert "`image_size`" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(tmp_path, workers):
    spec = image_folder(tmp_path / "images")
    (tmp_path / "images" / "dog" / "3.png").write_bytes(b"no image")
    line = error_line(everything, load_dataset(spec), workers=workers)
    assert line.startswith("example dog/3.png cannot be read: UnidentifiedImageError")
    assert "Traceback" not in line


def test_a_folder_without_classes_is_one_line(tmp_path):
    (tmp_path / "images").mkdir()
    assert "not a folder of images" in error_line(load_dataset, f"{tmp_path}/images")
    (tmp_path / "images" / "cat").mkdir()
    assert "not a folder of images" in error_line(load_dataset, f"{tmp_path}/images")
    assert "`task=regression`" in error_line(load_dataset, f"{tmp_path}/images", task="regression")


# --- data sets of torchvision and of the user


def test_a_torchvision_data_set_is_read_from_a_local_root(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 5), ("t10k", 3)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">i4").tobytes() + images.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([count], ">i4").tobytes() + bytes(range(count))
        )
    source = load_dataset(f"torchvision:MNIST?root={tmp_path}&train=false")
    assert (len(source), source.input_shape, source.class_names[2]) == (3, (1, 28, 28), "2 - two")
    np.testing.assert_allclose(everything(source).x[:, 0].numpy(), images / 255, atol=1e-6)
    monkeypatch.setenv(map_style.DATA_ROOT_VARIABLE, str(tmp_path))
    assert everything(load_dataset("torchvision:MNIST")).y.tolist() == [0, 1, 2, 3, 4]


def test_torchvision_errors_are_one_line(tmp_path):
    line = error_line(load_dataset, f"torchvision:MNIST?root={tmp_path}")
    assert f"cannot be opened under '{tmp_path}'" in line
    assert "never downloads" in line
    assert not list(tmp_path.iterdir())
    assert "asks for a download" in error_line(load_dataset, "torchvision:MNIST?download=true")
    assert "no data set 'mnist'" in error_line(load_dataset, "torchvision:mnist")
    assert "needs the argument split; give torchvision:EMNIST?split=VALUE" in error_line(
        load_dataset, "torchvision:EMNIST"
    )
    assert "takes no argument 'size'" in error_line(load_dataset, "torchvision:MNIST?size=3")


def test_torchvision_data_without_a_root_works_too():
    source = load_dataset("torchvision:FakeData?size=4&image_size=(3, 8, 8)&num_classes=5")
    assert len(source) == 4
    assert source.input_shape == (3, 8, 8)


def test_a_factory_takes_arguments_and_gives_class_names(user_file):
    source = load_dataset(f"{user_file}:Pairs?size=3&start=2")
    assert source.class_names == ["no", "yes"]
    assert everything(source).x[:, 0].tolist() == [2, 3, 4]
    assert everything(source).y.tolist() == [0, 1, 0]
    assert source.ids.tolist() == [0, 1, 2]


def test_items_may_be_images_small_floats_or_vectors(user_file):
    images = load_dataset(f"{user_file}:images")
    assert images.input_shape == (1, 5, 6)
    np.testing.assert_allclose(everything(images).x[:, 0, 0, 0].numpy(), np.arange(7) / 255, rtol=1e-6)
    assert everything(load_dataset(f"{user_file}:half")).x[:, 0].tolist() == list(range(7))
    y = everything(load_dataset(f"{user_file}:vectors", task="regression")).y
    assert y.tolist() == [[i, -i] for i in range(7)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uneven", "example 5 has inputs (5,) float32, the first has (4,) float32"),
        ("mixed", "example 5 has inputs (4,) uint8"),
        ("single", "example 0 is a Tensor of shape (4,), not a pair (x, y)"),
        ("words", "its inputs have dtype <U1, not numbers"),
        ("scalars", "have shape (7,); give"),
        ("fails", "example 5 cannot be read: ZeroDivisionError"),
        ("holes", "the inputs of example 5 hold NaN"),
        ("empty", "is empty"),
        ("number", "gives a int; return a data set that has a length"),
        ("Stream", "gives a Stream"),
        ("raises", "raised RuntimeError: no disk"),
        ("needs", "needs the argument root; give"),
        ("lost", "has no factory 'lost'"),
        ("Pairs?pace=3", "takes no argument 'pace'; it takes size, start, item"),
        ("vectors", "the labels have shape (3, 2)"),
    ],
)
def test_what_a_factory_gives_wrongly_is_one_line(user_file, name, expected):
    def read_all():
        everything(load_dataset(f"{user_file}:{name}"))

    assert expected in error_line(read_all)


def test_an_image_size_for_what_is_no_image_is_one_line(user_file):
    preprocessing = Preprocessing(image_size=8)
    assert "`image_size` is for images" in error_line(load_dataset, f"{user_file}:Pairs", preprocessing=preprocessing)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(user_file, tmp_path, workers):
    for spec in (f"{user_file}:Pairs", npz(tmp_path, x=IMAGES, y=LABELS)):
        source = load_dataset(spec)
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        alone, shared = everything(source), everything(source, workers=workers)
        assert torch.rand(1) == expected
        for name in ("index", "x", "y"):
            assert torch.equal(getattr(alone, name), getattr(shared, name))


def test_a_source_opens_again_in_another_process(user_file):
    source = load_dataset(f"{user_file}:Pairs?size=5")
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(everything(again).x, everything(source).x)
