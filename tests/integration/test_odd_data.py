"""Data as people leave it: what the system left beside it, labels that are missing, bytes of every kind, odd items."""

from __future__ import annotations

import csv
import io
import logging
import textwrap

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from fsdtool.cli.arguments import read_ids
from fsdtool.data.formats.load import load_dataset
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.errors import FsdtoolError
from fsdtool.report.console import Format, render
from fsdtool.util.csv_cells import escaped, known_text, unescaped

RNG = np.random.default_rng(0)
N = 6
LABELS = np.array([0, 1, 2, 0, 1, 2])
BYTES = RNG.integers(0, 256, (N, 12), dtype=np.uint8)
BYTES[0, 0] = 255


def refusal(spec, **options) -> str:
    with pytest.raises(FsdtoolError) as caught:
        everything(load_dataset(str(spec), **options))
    return str(caught.value)


def everything(source):
    parts = list(source.batches(4))
    return torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])


def picture(path, value=0, mode="RGB", size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# --- folders


JUNK = [
    ".ipynb_checkpoints/0-checkpoint.png",
    "__MACOSX/a/._0.png",
    ".DS_Store",
    "Thumbs.db",
    "a/._0.png",
    "a/.DS_Store",
]


@pytest.mark.parametrize(
    "junk", [*JUNK, "a/Thumbs.db", "b/.ipynb_checkpoints/0-checkpoint.png", "@eaDir/x.png", "desktop.ini"]
)
def test_what_a_system_left_is_no_class_and_no_image(tmp_path, caplog, junk):
    caplog.set_level(logging.INFO, "fsdtool")
    for name in ("a/0.png", "b/0.png"):
        picture(tmp_path / name)
    (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / junk).write_bytes(b"no picture")
    source = load_dataset(str(tmp_path))
    assert source.class_names == ["a", "b"]
    assert source.ids.tolist() == ["a/0.png", "b/0.png"]
    assert everything(source)[1].tolist() == [0, 1]
    assert "left out: hidden" in caplog.text


@pytest.mark.parametrize(
    "beside", [["val"], ["dev"], ["valid", ".ipynb_checkpoints"], ["Test", "notes"], ["__MACOSX"], ["extra"], []]
)
def test_splits_are_known_whatever_stands_beside_them(tmp_path, caplog, beside):
    caplog.set_level(logging.INFO, "fsdtool")
    for name in ("a", "b", "c"):
        picture(tmp_path / "train" / name / "0.png")
        for other in {*beside} - {"notes", ".ipynb_checkpoints", "__MACOSX"}:
            picture(tmp_path / other / name / "0.png")
    for other in beside:
        (tmp_path / other).mkdir(exist_ok=True)
    source = load_dataset(str(tmp_path))
    assert source.class_names == ["a", "b", "c"]
    assert source.ids.tolist() == ["a/0.png", "b/0.png", "c/0.png"]
    assert "split train of" in caplog.text
    for other in beside:
        assert other in caplog.text


def test_a_class_named_train_is_a_class(tmp_path):
    for name in ("bus", "car", "train"):
        picture(tmp_path / name / "0.png")
    assert load_dataset(str(tmp_path)).class_names == ["bus", "car", "train"]
    picture(tmp_path / "train/2020/1.png")
    line = refusal(tmp_path)
    assert "has a folder 'train' beside bus, car: a split or a class; give `split=train`" in line
    assert load_dataset(str(tmp_path), split="train").class_names == ["2020"]


def test_splits_with_a_common_prefix_and_splits_without_classes(tmp_path):
    picture(tmp_path / "a/seg_train/cat/0.png")
    picture(tmp_path / "a/seg_test/cat/0.png")
    assert load_dataset(str(tmp_path / "a")).ids.tolist() == ["cat/0.png"]
    picture(tmp_path / "b/train/0.png")
    picture(tmp_path / "b/val/0.png")
    assert "has the splits train, val, but no folders of classes in them" in refusal(tmp_path / "b")
    picture(tmp_path / "b/train/cat/0.png")
    picture(tmp_path / "b/test/0.png")
    assert load_dataset(str(tmp_path / "b")).ids.tolist() == ["cat/0.png"]


def test_images_that_are_not_read_are_told(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fsdtool")
    for name in ("a/0.png", "b/0.png", "a/x.gif", "root.png"):
        picture(tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "b/y.jfif", format="JPEG")
    (tmp_path / "a/readme.txt").touch()
    assert len(load_dataset(str(tmp_path))) == 2
    assert "are left out (1 .gif, 1 .jfif); convert them" in caplog.text
    assert "left out: root.png outside the folders of classes, other files (1 .txt)" in caplog.text


def test_a_folder_of_npy_files_leaves_hidden_ones_out(tmp_path):
    np.save(tmp_path / "x.npy", BYTES)
    np.save(tmp_path / "y.npy", LABELS)
    (tmp_path / "._x.npy").write_bytes(b"Mac OS X")
    assert len(load_dataset(str(tmp_path))) == N


@pytest.mark.parametrize("deep_first", [True, False])
def test_a_16_bit_picture_among_others_has_their_scale(tmp_path, deep_first):
    deep = np.full((6, 6), 65535 // 5, dtype=np.uint16)
    (tmp_path / "a").mkdir()
    Image.fromarray(deep).save(tmp_path / "a" / ("0.png" if deep_first else "9.png"))
    for i in range(1, 4):
        picture(tmp_path / f"a/{i}.png", (51, 102, 255))
    source = load_dataset(str(tmp_path), preprocessing=Preprocessing(channels=3 if deep_first else None))
    x = everything(source)[0]
    assert x.shape == (4, 3, 6, 6)
    expected = torch.tensor([51, 102, 255]).div(255).view(3, 1, 1).expand(3, 6, 6)
    at = 0 if deep_first else 3
    torch.testing.assert_close(x[at], torch.full((3, 6, 6), 13107 / 65535))
    for i in {0, 1, 2, 3} - {at}:
        torch.testing.assert_close(x[i], expected)


# --- the scale of bytes


def bytes_in(kind, folder):
    if kind == "npz":
        np.savez(folder / "d.npz", x=BYTES, y=LABELS)
        return folder / "d.npz"
    if kind == "h5":
        with h5py.File(folder / "d.h5", "w") as file:
            file["x"], file["y"] = BYTES, LABELS
        return folder / "d.h5"
    if kind == "npy":
        np.save(folder / "x.npy", BYTES)
        np.save(folder / "y.npy", LABELS)
        return f"{folder}/x.npy,{folder}/y.npy"
    if kind == "factory":
        np.savez(folder / "d.npz", x=BYTES, y=LABELS)
        code = f"import numpy as np\ndef data():\n    f = np.load({str(folder / 'd.npz')!r})\n"
        (folder / "data.py").write_text(code + "    return [(list(x), y) for x, y in zip(f['x'], f['y'])]\n")
        return f"{folder / 'data.py'}:data"
    if kind.startswith("parquet"):
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        if kind == "parquet columns":
            columns = {f"p{i}": BYTES[:, i] for i in range(12)}
        elif kind == "parquet list":
            columns = {"pixels": pa.array(BYTES.tolist(), type=pa.list_(pa.uint8()))}
        else:
            columns = {"pixels": pa.FixedSizeListArray.from_arrays(pa.array(BYTES.reshape(-1)), 12)}
        parquet.write_table(pa.table(columns | {"label": LABELS}), folder / "d.parquet", row_group_size=4)
        return folder / "d.parquet"
    datasets = pytest.importorskip("datasets")
    from datasets import Array2D, Features, Sequence, Value

    feature, x = Sequence(Value("uint8")), BYTES.tolist()
    if kind == "array":
        feature, x = Array2D((3, 4), "uint8"), BYTES.reshape(-1, 3, 4).tolist()
    features = Features({"x": feature, "label": Value("int64")})
    datasets.Dataset.from_dict({"x": x, "label": LABELS}, features=features).save_to_disk(folder / "hf")
    return folder / "hf"


KINDS = ["npz", "h5", "npy", "factory", "parquet columns", "parquet list", "parquet fixed list", "sequence", "array"]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_scaled_wherever_they_come_from_and_a_note_says_so(tmp_path, caplog, kind):
    caplog.set_level(logging.INFO, "fsdtool")
    spec = str(bytes_in(kind, tmp_path))
    x, y = everything(load_dataset(spec))
    torch.testing.assert_close(x.reshape(N, 12), torch.tensor(BYTES).float() / 255, rtol=0, atol=0)
    assert y.tolist() == LABELS.tolist()
    assert "bytes scaled from 0..255 to 0..1 (`std=0.003921568627` takes them as they are)" in caplog.text
    raw = everything(load_dataset(spec, preprocessing=Preprocessing(std=(0.003921568627,))))[0]
    torch.testing.assert_close(raw.reshape(N, 12), torch.tensor(BYTES).float())


@pytest.mark.parametrize("dtype", [np.int64, np.float32, "csv"])
def test_whole_numbers_up_to_255_stay_and_the_note_gives_the_flag(tmp_path, caplog, dtype):
    caplog.set_level(logging.INFO, "fsdtool")
    if dtype == "csv":
        rows = np.column_stack([LABELS, BYTES]).tolist()
        spec = str(write_csv(tmp_path / "d.csv", ["label", *(f"p{i}" for i in range(12))], rows))
    else:
        np.savez(tmp_path / "d.npz", x=BYTES.astype(dtype), y=LABELS)
        spec = str(tmp_path / "d.npz")
    torch.testing.assert_close(everything(load_dataset(spec))[0], torch.tensor(BYTES).float())
    assert "whole numbers of 0..255 are taken as they are (`std=255` scales them to 0..1)" in caplog.text
    scaled = everything(load_dataset(spec, preprocessing=Preprocessing(std=(255.0,))))[0]
    torch.testing.assert_close(scaled, torch.tensor(BYTES).float() / 255)
    assert "warning" not in caplog.text.lower()


@pytest.mark.parametrize(
    ("x", "mean", "std", "expected"),
    [
        (BYTES, (123.675,), (58.395,), "give `mean=0.485` `std=0.229`"),
        (BYTES / 255, (123.675,), (58.395,), "give `mean=0.485` `std=0.229`"),
        (BYTES, None, (255.0,), "leave `std` out"),
        (BYTES.astype(np.int64), (0.485,), (0.229,), "give `mean=123.675` `std=58.395`"),
        (BYTES, (0.485,), (0.229,), None),
        (BYTES, None, (1 / 255,), None),
        (BYTES.astype(float) - 99, (30.0,), (60.0,), None),
    ],
)
def test_mean_and_std_of_another_scale_are_warned_of(tmp_path, caplog, x, mean, std, expected):
    np.savez(tmp_path / "d.npz", x=x, y=LABELS)
    load_dataset(str(tmp_path / "d.npz"), preprocessing=Preprocessing(mean=mean, std=std))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (expected is not None)
    assert expected is None or expected in warnings[0]


# --- missing labels


def rows_with(label, others=("0", "1", "2", "0", "1")):
    return [[i, label if i == 3 else others[i - (i > 3)]] for i in range(N)]


@pytest.mark.parametrize("others", [("0", "1", "2", "0", "1"), ("cat", "dog", "eel", "cat", "dog")])
@pytest.mark.parametrize("label", ["", "NA", "nan", "NaN", "None", "null", "N/A", "?"])
def test_a_missing_label_in_text_is_named_or_skipped(tmp_path, caplog, label, others):
    path = write_csv(tmp_path / "d.csv", ["a", "label"], rows_with(label, others))
    line = refusal(path)
    assert f"line 5 of '{path}' has " in line
    assert "`skip_bad=True`" in line
    source = load_dataset(str(path), skip_bad=True)
    assert source.ids.tolist() == [0, 1, 2, 4, 5]
    assert everything(source)[1].tolist() == [0, 1, 2, 0, 1]
    assert source.class_names == (None if others[0] == "0" else ["cat", "dog", "eel"])
    assert "skipping 1 of 6 examples" in caplog.text


def test_labels_of_which_many_are_negative_are_classes_to_be_renumbered(tmp_path):
    np.savez(tmp_path / "d.npz", x=BYTES, y=LABELS % 2 * 2 - 1)
    assert "number the classes from 0, or give `skip_bad=True` to leave out 67%" in refusal(tmp_path / "d.npz")
    path = write_csv(tmp_path / "d.csv", ["a", "kind"], [[1, "NA"], [2, ""]])
    line = refusal(path, y_key="kind", skip_bad=True)
    assert "has 'NA' for 'kind'" in line
    assert "so have all the others: give another `y_key`" in line


def test_a_class_may_be_called_na(tmp_path):
    path = write_csv(tmp_path / "d.csv", ["a", "label"], rows_with("NA", ("DE", "FR", "IT", "DE", "FR")))
    assert "or `missing=''` if it is the name of a class" in refusal(path)
    source = load_dataset(str(path), missing=[""])
    assert source.class_names == ["DE", "FR", "IT", "NA"]
    assert everything(source)[1].tolist() == [0, 1, 2, 3, 0, 1]
    again = load_dataset(str(path), class_names=["DE", "FR", "IT", "NA"])  # queries know the names
    assert everything(again)[1].tolist() == [0, 1, 2, 3, 0, 1]
    assert "'FR' for 'label', which says that it is missing" in refusal(path, missing=["FR"])


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("bad", [np.nan, -100.0])
def test_a_missing_label_in_an_array_is_named_or_skipped(tmp_path, bad, task):
    np.savez(tmp_path / "d.npz", x=BYTES, y=np.where(np.arange(N) == 3, bad, LABELS))
    path = str(tmp_path / "d.npz")
    if task == "regression" and bad == -100:
        assert everything(load_dataset(path, task=task))[1][3].item() == -100
        return
    line = refusal(path, task=task)
    assert "example 3" in line
    assert "give `skip_bad=True`" in line
    assert load_dataset(path, task=task, skip_bad=True).ids.tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("values", [[0, 1, 2, None, 0, 1], ["a", "b", "c", None, "a", "b"]])
@pytest.mark.parametrize("kind", ["parquet", "hugging face"])
def test_none_among_labels_is_named_or_skipped(tmp_path, kind, values):
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = tmp_path / "d.parquet"
        parquet.write_table(pa.table({"a": np.arange(N), "label": values}), path)
    else:
        datasets = pytest.importorskip("datasets")
        path = tmp_path / "hf"
        datasets.Dataset.from_dict({"x": BYTES.tolist(), "label": values}).save_to_disk(path)
    line = refusal(path)
    assert f"row 3 of '{path}' has no 'label'" in line
    assert "`skip_bad=True`" in line
    source = load_dataset(str(path), skip_bad=True)
    assert source.ids.tolist() == [0, 1, 2, 4, 5]
    assert everything(source)[1].tolist() == [0, 1, 2, 0, 1]


def test_several_labels_for_one_example_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    from datasets import ClassLabel, Features, Sequence, Value

    names = Sequence(ClassLabel(names=["no", "yes"]))
    for i, labels in enumerate(([[0], [0, 1]] * 3, [[0, 1], [1, 0]] * 3, [[], [1]] * 3, [None, [1]] * 3)):
        features = Features({"x": Sequence(Value("uint8")), "labels": names})
        path = tmp_path / f"hf{i}"
        datasets.Dataset.from_dict({"x": BYTES.tolist(), "labels": labels}, features=features).save_to_disk(path)
        line = refusal(path)
        assert "multi-label" in line or "row 0" in line


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, bool, np.int8, np.uint64])
@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 1, 1, 1)])
def test_labels_of_any_number_and_of_single_cells_are_read_in_silence(tmp_path, dtype, shape):
    labels = LABELS % 2 if dtype is bool else LABELS
    np.savez(tmp_path / "d.npz", x=BYTES, y=labels.astype(dtype).reshape(shape))
    assert everything(load_dataset(str(tmp_path / "d.npz")))[1].tolist() == labels.tolist()


# --- ids


@pytest.mark.parametrize(
    "ids",
    [
        np.array([2**64 - 1, 2**63, 2**63 - 1, 1, 0, 5], dtype=np.uint64),
        np.array([-128, 127, -1, 0, 1, 2], dtype=np.int8),
        np.array([2**63 - 1, 2**53 + 1, -(2**63), 0, 1, 2]),
    ],
)
def test_ids_of_any_integer_are_exact(tmp_path, ids):
    np.savez(tmp_path / "d.npz", x=BYTES, y=LABELS, id=ids)
    assert [str(name) for name in load_dataset(str(tmp_path / "d.npz")).ids.tolist()] == [str(int(i)) for i in ids]


AWKWARD = ["-img", "'-img", "''-img", "=x", "'=x", "+", "-", "@a", "'", "'a", "-5", "'-5", "plain", "\u2212x", "\tq"]


def test_text_in_csv_reads_back_to_the_letter():
    assert len({escaped(text) for text in AWKWARD}) == len(AWKWARD)
    assert [unescaped(escaped(text)) for text in AWKWARD] == AWKWARD
    assert known_text("'-img", {"-img"}) == known_text("-img", {"-img"}) == "-img"
    assert known_text("-img", {"'-img"}) == "'-img"


def test_ids_and_labels_that_the_tool_wrote_are_read_back(tmp_path):
    classes, names = ["+", "-", "'+"], AWKWARD[:N]
    rows = [[name, i, classes[i % 3]] for i, name in enumerate(names)]
    data = str(write_csv(tmp_path / "d.csv", ["id", "a", "label"], rows))
    stream = io.StringIO()
    fixes = [{"id": name, "suggested_label": classes[(i + 1) % 3]} for i, name in enumerate(names)]
    render(fixes[1:], ["id", "suggested_label"], Format.csv, stream)
    (tmp_path / "fixes.csv").write_text(stream.getvalue())
    source = load_dataset(data, labels=tmp_path / "fixes.csv", ids=read_ids(tmp_path / "fixes.csv"))
    assert source.ids.tolist() == names[1:]
    expected = [fix["suggested_label"] for fix in fixes[1:]]
    assert [source.class_names[label] for label in everything(source)[1].tolist()] == expected


# --- tables, lists and pairs of files


def test_a_first_line_of_data_is_told(tmp_path):
    for first in (["5.1", "3.5", "0.2", "setosa"], ["7", "0", "3", "255"], ["cats/1.png", "cat"]):
        path = write_csv(tmp_path / "d.csv", first, [first] * 3)
        assert f"the first line of '{path}' is data" in refusal(path)
        assert f"the first line of '{path}' is data" in refusal(path, y_key=first[0])
    write_csv(path, ["0", "1", "2", "3"], [["1", "2", "3", "0"]] * 3)
    assert len(load_dataset(str(path), y_key="3")) == 3
    write_csv(path, ["400.5", "401", "label"], [["1", "2", "0"]] * 3)
    assert len(load_dataset(str(path))) == 3


@pytest.mark.parametrize("word", ["#N/A", "#na", "<NA>", "NaT", "-nan", "-NaN", r"\N"])
def test_words_for_a_missing_label_are_no_class(tmp_path, word):
    path = tmp_path / "d.csv"
    path.write_text(f"a,label\n1,cat\n2,dog\n3,{word}\n4,cat\n")
    source = load_dataset(str(path), skip_bad=True)
    assert source.class_names == ["cat", "dog"]
    assert source.ids.tolist() == [0, 1, 3]
    assert f"'{word}' for 'label', which says that it is missing" in refusal(path)


def test_lists_of_images_say_what_is_missing_and_where_it_lies(tmp_path):
    for i in range(3):
        picture(tmp_path / f"train/{i}.png")
    path = write_csv(tmp_path / "d.csv", ["id", "breed"], [[i, "ab"[i % 2]] for i in range(3)])
    assert "has no column for the inputs beside 'id', 'breed'" in refusal(path, y_key="breed")
    write_csv(path, ["name", "label"], [[f"{i}.png", 0] for i in range(3)])
    assert "give `x_key=name` to read these images" in refusal(path)
    assert "do not exist below" in refusal(path, x_key="name")
    assert "there is 'train/0.png'); correct the paths" in refusal(path, x_key="name", skip_bad=True)
    write_csv(path, ["name", "label"], [[f"train\\{i}.png", 0] for i in range(3)])
    assert len(everything(load_dataset(str(path), x_key="name"))[0]) == 3


def test_inputs_and_targets_may_lie_in_two_files(tmp_path):
    for name, key, values in (("a", "x", BYTES), ("b", "y", LABELS.reshape(-1, 1, 1, 1)), ("c", "x", LABELS)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file[key] = values
    np.save(tmp_path / "y.npy", LABELS)
    np.savez(tmp_path / "both.npz", x=LABELS, names=np.array(["a"] * N))
    for other in ("b.h5", "c.h5", "y.npy"):
        x, y = everything(load_dataset(f"{tmp_path}/a.h5,{tmp_path}/{other}"))
        assert y.tolist() == LABELS.tolist()
        assert x.shape == BYTES.shape
    line = refusal(tmp_path / "a.h5")
    assert "has no array of targets beside the inputs 'x'" in line
    assert "two files as inputs.h5,targets.h5" in line


def test_lists_of_different_lengths_in_parquet_name_the_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "d.parquet"
    parquet.write_table(pa.table({"e": [[1.0, 2.0], None, [3.0, 4.0]], "label": [0, 1, 0]}), path)
    assert f"row 1 of '{path}' has 0 numbers in column 'e'" in refusal(path)
    assert load_dataset(str(path), skip_bad=True).ids.tolist() == [0, 2]
    parquet.write_table(pa.table({"e": [[1.0, 2.0], [3.0]], "label": [0, 1]}), path)
    assert f"row 1 of '{path}' has 1 numbers in column 'e', the first row has 2" in refusal(path)
    write_csv(tmp_path / "d.csv", ["e", "label"], [["[1.0, 2.0]", 0]])
    assert "write each number of such a list into a column of its own" in refusal(tmp_path / "d.csv")


# --- a user's own data set

ITEMS = """
    import torch
    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])
    pairs = list(zip(x, y))

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(pairs)

    def dicts(): return [{"pixel_values": a, "kind": b} for a, b in pairs]
    def alone(): return [(a,) for a, b in pairs]
    def loader(): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y))
    def inner(): return loader().dataset
    def listed(): return list(Stream())
    def arrays(): return {"x": x, "y": y}
    def both(): return x, y
    def zipped(): return list(zip(*both()))
    def words(): return [(a, "cat") for a, _ in pairs]
    def nolabel(): return [*pairs, (x[0], None)]
"""


@pytest.mark.parametrize(
    ("name", "expected", "works"),
    [
        ("dicts", "is a dict with the keys pixel_values, kind, not a pair (x, y)", None),
        ("alone", "is a tuple of 1 parts, not a pair (x, y)", None),
        ("Stream", "gives a Stream that can only be read in order", "listed"),
        ("loader", "gives a DataLoader; return the data set in it (its attribute 'dataset')", "inner"),
        ("arrays", "gives a dict with the keys x, y; return a data set of (x, y), such as list(zip(x, y))", "zipped"),
        ("both", "gives a tuple of 2 parts; return a data set of (x, y)", "zipped"),
        ("words", "example 0 has a target that is a str; give a number", None),
        ("nolabel", "example 4 has no label", None),
    ],
)
def test_items_of_another_kind_are_told_and_the_remedy_works(tmp_path, name, expected, works):
    (tmp_path / "data.py").write_text(textwrap.dedent(ITEMS))
    assert expected in refusal(f"{tmp_path}/data.py:{name}")
    if works:
        assert everything(load_dataset(f"{tmp_path}/data.py:{works}"))[1].tolist() == [0, 1, 0, 1]


def test_a_hidden_class_of_ones_own_data_set_is_warned_of(tmp_path, caplog):
    picture(tmp_path / "images/a/0.png")
    picture(tmp_path / "images/.cache/0.png")
    load_dataset(f"torchvision:ImageFolder?root={tmp_path}/images")
    assert "hold .cache, a hidden folder, which shifts the numbers" in caplog.text


def test_text_of_hugging_face_is_no_input(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["one", "two"], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "d"))
    line = refusal(tmp_path / "d", x_key="text")
    assert "column 'text' of" in line
    assert "holds text, and inputs must be numbers or images; give another `x_key`" in line
    assert "skip_bad" not in line


def test_text_in_a_column_that_was_asked_for_is_refused_with_what_would_do(tmp_path):
    (tmp_path / "list.csv").write_text("id,breed\n000bec,pug\n00a1f3,boxer\n")
    with pytest.raises(FsdtoolError, match=r"column 'id'; a column of `x_key` must hold numbers, or paths of images"):
        load_dataset(str(tmp_path / "list.csv"), x_key="id", y_key="breed")
    (tmp_path / "list.csv").write_text("id,breed,size\n000bec,pug,1\n00a1f3,boxer,2\n")
    assert len(load_dataset(str(tmp_path / "list.csv"), x_key="size", y_key="breed")) == 2
