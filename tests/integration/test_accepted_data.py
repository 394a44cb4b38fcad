"""The data that `fsdtool docs data` says is accepted, each kind through the command line as a user would type it.

Every run checks the exit code, the line that says what was chosen, and that a run which fails leaves no file.
"""

from __future__ import annotations

import sys
import textwrap

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from fsdtool.cli import main
from fsdtool.data.formats.load import load_dataset
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.model.factory import load_model
from fsdtool.model.libraries import import_torchvision
from fsdtool.summary.reader import load

N = 24
RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((N, 4)).astype(np.float32)
LABELS = np.arange(N) % 2
PICTURES = RNG.integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
MODEL = """
    import torch
    from torch import nn

    def mlp(inputs=4, outputs=2):
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, outputs))

    def conv(channels=3, outputs=2):
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), *pool, nn.Linear(4, outputs))

    class Pairs(torch.utils.data.Dataset):
        def __init__(self, size=12, split="train", die=False):
            self.size, self.start, self.die = size, 0 if split == "train" else 100, die

        def __len__(self):
            return self.size

        def __getitem__(self, i):
            if self.die and i == 7:
                import os
                os._exit(1)
            return torch.linspace(0, 1 + i, 4) + self.start, i % 2

    def halve(x):
        return x / 2

    def build():
        return halve
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's with a space and an umlaut in its name, a model file in it; the current folder."""
    folder = tmp_path / "my däta"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "model.py").write_text(textwrap.dedent(MODEL))
    return folder


@pytest.fixture
def summarize(here, capsys):
    """`summarize(data, network, *flags, **arguments)`: the summary and what was said."""

    def run(data, network="mlp", *flags, **arguments):
        code, err = type_summarize(capsys, data, network, *flags, **arguments)
        assert code == 0, err
        return load(here / "s.h5"), err

    return run


@pytest.fixture
def refused(here, capsys):
    """`refused(data, *flags, network=, **arguments)`: the error of a run that leaves the files as they were."""

    def run(data, *flags, network="mlp", **arguments):
        (here / "s.h5").write_bytes(b"an older summary")
        code, err = type_summarize(capsys, data, network, *flags, **arguments)
        assert code == 2, err
        assert (here / "s.h5").read_bytes() == b"an older summary"
        assert not list(here.glob(".*"))
        last = err.splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


def type_summarize(capsys, data, network, *flags, **arguments):
    """Exit code and stderr of `fsdtool summarize`, with new weights for the network."""
    model = load_model(f"model.py:{network}", {key: str(value) for key, value in arguments.items()})
    torch.save(model.state_dict(), "weights.pt")
    given = [part for key, value in arguments.items() for part in ("--model-arg", f"{key}={value}")]
    spec = ["--model", f"model.py:{network}", "--checkpoint", "weights.pt", *given]
    capsys.readouterr()
    code = main(["summarize", *spec, "--data", str(data), "-o", "s.h5", *flags])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def picture_folder(folder, count=12, form="png"):
    for i in range(count):
        (folder / ("cat", "dog")[i % 2]).mkdir(exist_ok=True, parents=True)
        Image.fromarray(PICTURES[i]).save(folder / ("cat", "dog")[i % 2] / f"bild {i} ü.{form}")
    return folder


# --- the rows of the document's table


def test_npz(summarize):
    np.savez("train.npz", x=FEATURES, y=LABELS)
    summary, err = summarize("train.npz")
    assert len(summary.records) == N
    line = "note: 'train.npz': inputs 'x' float32 (24, 4) (--x-key), targets 'y' int64 (24,) (--y-key)"
    assert f"{line}, ids are row numbers (--id-key)\n" in err


def test_npz_with_splits_as_keras_saves_them(summarize, refused):
    np.savez("mnist.npz", x_train=FEATURES, y_train=LABELS, x_test=FEATURES[:5] + 1, y_test=LABELS[:5])
    summary, err = summarize("mnist.npz")
    assert len(summary.records) == N
    assert "split train of train, test (--split)" in err
    summary, _ = summarize("mnist.npz", "mlp", "--split", "test")
    assert len(summary.records) == 5
    assert "has the splits train, test, not 'val'" in refused("mnist.npz", "--split", "val")


def test_npy_pair_and_folder(summarize, here, refused):
    np.save("inputs.npy", FEATURES)
    np.save("targets.npy", LABELS)
    assert "inputs 'x' float32 (24, 4)" in summarize("inputs.npy,targets.npy")[1]
    (here / "arrays").mkdir()
    for name, values in (("images", PICTURES), ("labels", LABELS), ("ids", np.arange(N) + 100)):
        np.save(here / "arrays" / f"{name}.npy", values)
    summary, err = summarize("arrays", "conv")
    assert "inputs 'images' uint8 (24, 6, 5, 3)" in err
    assert summary.records.ids[0] == 100
    assert "'missing.npy' does not exist" in refused("inputs.npy,missing.npy")


def test_hdf5_channels_last(summarize):
    with h5py.File("train.h5", "w") as file:
        file["images"], file["labels"] = PICTURES, LABELS
    summary, err = summarize("train.h5", "conv")
    assert "the model takes the inputs as shape (3, 6, 5) (layout: channels first; --layout)" in err
    assert summary.preprocessing.layout == "channels first"
    with h5py.File("grouped.h5", "w") as file:
        for split, part in (("train", slice(0, 16)), ("test", slice(16, N))):
            file[f"{split}/x"], file[f"{split}/y"] = PICTURES[part], LABELS[part]
    assert len(summarize("grouped.h5", "conv", "--split", "test")[0].records) == 8


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_with_a_byte_order_mark_quotes_and_any_separator(summarize, here, separator):
    rows = [
        ["id", "größe", "b", "label"],
        *([f'"k{separator}{i}"', i / 3, -i, "ja" if i % 2 else "nein"] for i in range(N)),
    ]
    text = "\n".join(separator.join(map(str, row)) for row in rows)
    (here / "träin.csv").write_text("\ufeff" + text, encoding="utf-8")
    summary, err = summarize("träin.csv", inputs=2)
    assert "2 features: größe, b (--x-key), target label (--y-key), ids are 'id' (--id-key)" in err
    assert ("separated by" in err) == (separator != ",")
    assert list(summary.class_names) == ["ja", "nein"]
    assert summary.records.ids[3] == f"k{separator}3"
    (here / "träin.csv").write_text(text.replace("id", "name", 1), encoding="utf-8")
    assert load_dataset("träin.csv", id_key="name").ids[3] == f"k{separator}3"


def test_csv_regression_with_a_split_column(summarize, here):
    rows = "".join(f"{i},{i * i},{'test' if i % 3 == 0 else 'train'},{i / 2}\n" for i in range(N))
    (here / "train.csv").write_text("a,b,split,price\n" + rows)
    flags = ("--task", "regression", "--y-key", "price")
    summary, err = summarize("train.csv", "mlp", *flags, "--split", "train", inputs=2, outputs=1)
    assert len(summary.records) == N - N // 3
    assert "2 features: a, b (--x-key), target price (--y-key)" in err
    assert "rows of every split (--split)" in summarize("train.csv", "mlp", *flags, inputs=2, outputs=1)[1]


def test_parquet(summarize, refused):
    arrow = pytest.importorskip("pyarrow", reason="the extra fsdtool[parquet] is not installed")
    from pyarrow import parquet

    columns = {"id": [f"r{i}" for i in range(N)], "a": FEATURES[:, 0], "b": FEATURES[:, 1].astype(np.float64)}
    columns |= {"flag": LABELS == 0, "label": LABELS}
    parquet.write_table(arrow.table(columns), "train.parquet", row_group_size=7)
    summary, err = summarize("train.parquet", inputs=3)
    assert "3 features: a, b, flag (--x-key), target label" in err
    assert "4 row groups" in err
    assert summary.records.ids[23] == "r23"
    x = np.column_stack([columns["a"], columns["b"], columns["flag"]]).astype(np.float32)
    source = load_dataset("train.parquet")
    for rows in (np.arange(N), np.array([20, 3, 3, 11])):
        read = torch.cat([batch.x for batch in source.batches(5, indices=rows)])
        np.testing.assert_array_equal(read.numpy(), x[rows])
    columns["a"] = [None if i == 9 else float(i) for i in range(N)]
    parquet.write_table(arrow.table(columns), "holes.parquet", row_group_size=7)
    line = refused("holes.parquet", inputs=3)
    assert "row 9 of 'holes.parquet' has '' in column 'a'; features must be numbers" in line
    assert len(summarize("holes.parquet", "mlp", "--skip-bad", inputs=3)[0].records) == N - 1
    parquet.write_table(arrow.table(columns | {"colour": ["red"] * N}), "text.parquet")
    assert "column 'colour'" in refused("text.parquet", inputs=4)


def test_parquet_without_pyarrow_says_what_to_install(summarize, here, monkeypatch, refused):
    (here / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'fsdtool[parquet]'" in refused("train.parquet")


def test_image_folder_and_its_splits(summarize, here):
    picture_folder(here / "pets")
    summary, err = summarize("pets", "conv")
    assert "12 images in 2 folders as classes, ids are paths, read with 3 channels (--channels)" in err
    assert summary.records.ids[0] == "cat/bild 0 ü.png"
    assert list(summary.class_names) == ["cat", "dog"]
    picture_folder(here / "all" / "train", 8)
    picture_folder(here / "all" / "val", 4)
    summary, err = summarize("all", "conv")
    assert len(summary.records) == 8
    assert "split train of train, val (--split)" in err
    assert len(summarize("all", "conv", "--split", "val")[0].records) == 4


def test_csv_of_image_paths(summarize, here, refused):
    picture_folder(here / "pets")
    names = sorted(path.relative_to(here).as_posix() for path in here.glob("pets/*/*.png"))
    (here / "list.csv").write_text("path,label\n" + "".join(f'"{name}",{name[5:8]}\n' for name in names))
    summary, err = summarize("list.csv", "conv")
    assert "12 images by column 'path' (--x-key)" in err
    assert summary.records.ids.tolist() == names
    assert list(summary.class_names) == ["cat", "dog"]
    (here / "ages.csv").write_text("foto;alter\n" + "".join(f"{name};{i / 2}\n" for i, name in enumerate(names)))
    flags = ("--x-key", "foto", "--y-key", "alter", "--task", "regression")
    assert summarize("ages.csv", "conv", *flags, outputs=1)[0].task.name == "regression"
    (here / "list.csv").write_text("path,label\npets/no.png,cat\n")
    assert "1 of 1 images in column 'path' do not exist below" in refused("list.csv", network="conv")


def test_torchvision_from_a_local_root(summarize, here, refused):
    raw = here / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 6)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">i4").tobytes() + images.tobytes()
        )
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + np.array([count], ">i4").tobytes() + labels
        )
    summary, _err = summarize("torchvision:MNIST", inputs=784, outputs=10)
    assert len(summary.records) == 20
    assert summarize("torchvision:MNIST", "mlp", "--split", "test", inputs=784, outputs=10)[0].identity.examples == 6
    line = refused("torchvision:MNIST", "--split", "val", inputs=784, outputs=10)
    assert "has only train and test, and --split says 'val'" in line


def test_python_factory(summarize):
    assert len(summarize("model.py:Pairs?size=9")[0].records) == 9
    assert len(summarize("model.py:Pairs", "mlp", "--split", "test", "--workers", "1")[0].records) == 12


def test_hugging_face_folder(summarize, refused):
    datasets = pytest.importorskip("datasets", reason="the extra fsdtool[huggingface] is not installed")

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "id": datasets.Value("string")}
    )
    rows = {"image": [Image.fromarray(p) for p in PICTURES], "label": LABELS, "id": [f"h{i}" for i in range(N)]}
    train = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": train, "test": train.select(range(5))}).save_to_disk("pets")
    summary, err = summarize("pets", "conv")
    assert "inputs 'image' (6, 5, 3) (--x-key), targets 'label' (--y-key), split train of train, test (--split)" in err
    assert list(summary.class_names) == ["cat", "dog"]
    assert summary.records.ids[2] == "h2"
    assert len(summarize("pets", "conv", "--split", "test", "--workers", "2")[0].records) == 5
    table = datasets.Dataset.from_dict({"a": FEATURES[:, 0], "b": FEATURES[:, 1], "y": LABELS})
    table.save_to_disk("numbers")
    assert len(summarize("numbers", "mlp", "--x-key", "a,b", inputs=2)[0].records) == N
    assert "give --x-key one of: a, b, y" in refused("numbers", inputs=2)


def test_hugging_face_folder_without_the_package_says_what_to_install(summarize, here, monkeypatch, refused):
    (here / "saved").mkdir()
    (here / "saved" / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'fsdtool[huggingface]'" in refused("saved")


# --- preprocessing, labels and ids


def test_a_torchvision_transform_is_what_torchvision_does_and_queries_get_it_too(summarize, here, capsys, refused):
    picture_folder(here / "pets")
    spec = "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    _summary, err = summarize("pets", "conv", "--transform", spec)
    assert f"through {spec}" in err
    transform = import_torchvision().models.get_weight("ResNet18_Weights.IMAGENET1K_V1").transforms()
    source = load_dataset("pets", preprocessing=Preprocessing(transform=spec))
    x, _ = import_torchvision().datasets.ImageFolder("pets", transform)[5]
    assert torch.equal(next(source.batches(1, indices=[5])).x[0], x)
    assert main(["influence", "s.h5", "--queries", "pets", "--top", "1", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("query_id,")
    assert "leave out --mean" in refused("pets", "--transform", spec, "--mean", "0.5", network="conv")
    assert "torchvision has no weights 'ResNet9'" in refused(
        "pets", "--transform", "torchvision:ResNet9", network="conv"
    )


@pytest.mark.parametrize("name", ["halve", "build"])
def test_a_transform_of_ones_own_runs_only_when_it_is_named(summarize, here, capsys, name):
    np.savez("train.npz", x=FEATURES, y=LABELS)
    summary, _ = summarize("train.npz", "mlp", "--transform", f"model.py:{name}")
    source = load_dataset("train.npz", preprocessing=summary.preprocessing)
    np.testing.assert_array_equal(next(source.batches(N)).x.numpy(), FEATURES / 2)
    capsys.readouterr()
    assert main(["influence", "s.h5", "--queries", "train.npz"]) == 2
    assert f"made with --transform model.py:{name}, which is code; give --transform again" in capsys.readouterr().err
    command = ["influence", "s.h5", "--queries", "train.npz", "--top", "1", "--transform", f"model.py:{name}"]
    assert main(command) == 0


def test_labels_are_overridden_by_id_also_as_find_mislabeled_writes_them(summarize, here, refused):
    names = np.array(["ant", "bee"])[LABELS]
    np.savez("train.npz", x=FEATURES, y=names, id=np.array([f"p{i}" for i in range(N)]))
    (here / "fixes.csv").write_text("id,given_label,suggested_label,score\np3,bee,ant,0.9\np4,ant,bee,0.8\n")
    summary, err = summarize("train.npz", "mlp", "--labels", "fixes.csv")
    expected = LABELS.copy()
    expected[[3, 4]] = [0, 1]
    assert summary.records.read("target").tolist() == expected.tolist()
    assert "the labels of 2 examples are those of 'fixes.csv' (--labels)" in err
    for text, expected in (
        ("id,label\np99,ant\n", "--labels has ids that the data does not have: p99"),
        ("id,label\np3,wasp\n", "gives example p3 the label 'wasp'; give one of ant, bee"),
        ("id,label\np3,ant\np3,bee\n", "gives 'p3' the labels 'ant' and 'bee'"),
        ("name,label\np3,ant\n", "has columns name, label; it needs id and label"),
    ):
        (here / "fixes.csv").write_text(text)
        assert expected in refused("train.npz", "--labels", "fixes.csv")


def test_ids_restrict_a_run(summarize, here, monkeypatch, refused):
    np.savez("train.npz", x=FEATURES, y=LABELS)
    (here / "ids.txt").write_text("3\n17\n4\n5\n")
    assert summarize("train.npz", "mlp", "--ids", "ids.txt")[0].records.ids.tolist() == [3, 4, 5, 17]
    (here / "ids.csv").write_text('rank,id,"a, b"\n1,6,x\n2,9,y\n')
    assert summarize("train.npz", "mlp", "--ids", "ids.csv")[0].records.ids.tolist() == [6, 9]
    (here / "ids.txt").write_text("3\n99\n")
    assert "'train.npz' has no example 99; its ids are like 0, 1" in refused("train.npz", "--ids", "ids.txt")
    (here / "ids.txt").write_text("\n")
    assert "restricted to no ids at all" in refused("train.npz", "--ids", "ids.txt")


# --- what is wrong with data is one line, and no file is touched


def test_a_damaged_image_is_named_or_skipped_and_listed(summarize, refused, here):
    (picture_folder(here / "pets") / "cat" / "bild 4 ü.png").write_bytes(b"no image")
    content = (here / "pets" / "dog" / "bild 7 ü.png").read_bytes()
    (here / "pets" / "dog" / "bild 7 ü.png").write_bytes(content[: len(content) // 2])
    line = refused("pets", network="conv")
    assert "example cat/bild 4 ü.png cannot be read: UnidentifiedImageError" in line
    assert line.endswith("repair or remove it, or give --skip-bad")
    summary, err = summarize("pets", "conv", "--skip-bad")
    assert "skipping 2 of 12 examples of 'pets': cat/bild 4 ü.png, dog/bild 7 ü.png (example cat/bild 4" in err
    assert len(summary.records) == 10
    assert "cat/bild 4 ü.png" not in summary.records.ids


def test_a_worker_that_dies_is_one_line(refused):
    line = refused("model.py:Pairs?die=true", "--workers", "1", "--batch-size", "4")
    assert "a process that reads 'model.py:Pairs?die=true' died (" in line
    assert "--workers 0" in line


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_as_it_hands_over_a_batch_is_one_line(refused, monkeypatch, error):
    def broken(*arguments, **options):
        raise error
        yield

    monkeypatch.setattr("fsdtool.data.source.DataLoader", broken)
    line = refused("model.py:Pairs", "--workers", "1", "--batch-size", "4")
    assert f"a process that reads 'model.py:Pairs' died ({type(error).__name__}" in line


def test_inputs_that_are_not_finite(summarize, refused):
    x = FEATURES.copy()
    x[5, 1] = np.inf
    np.savez("train.npz", x=x, y=LABELS)
    assert "the inputs of example 5 hold NaN or infinity" in refused("train.npz")
    summary, err = summarize("train.npz", "mlp", "--skip-bad")
    assert "skipping 1 of 24 examples of 'train.npz': 5" in err
    assert 5 not in summary.records.ids


def test_classes_without_examples_and_a_single_class_run(summarize, here):
    np.savez("train.npz", x=FEATURES, y=LABELS)
    assert len(summarize("train.npz", outputs=5)[0].statistics.names) == 2
    np.savez("train.npz", x=FEATURES, y=np.ones(N, int))
    assert len(summarize("train.npz")[0].statistics.names) == 1
    (picture_folder(here / "pets") / "emu").mkdir()
    summary, err = summarize("pets", "conv", outputs=3)
    assert list(summary.class_names) == ["cat", "dog", "emu"]
    assert "1 of 3 classes have no image (emu)" in err


def test_labels_of_every_wrong_kind(summarize, refused):
    np.savez("train.npz", x=FEATURES, y=np.eye(2)[LABELS])
    summary, err = summarize("train.npz")
    assert "one-hot labels read as 2 classes" in err
    assert summary.records.read("target").tolist() == LABELS.tolist()
    for y, expected in (
        (np.eye(2)[LABELS] * 0.8 + 0.1, "that of example 0 is not one-hot; give one class number per example"),
        (LABELS + 0.5, "label 0.5 of example 0 is not a class number (0, 1, 2, ...); correct it, or use --task regres"),
        (LABELS * 7, "label 7 of example 1 is out of range: the model has 2 outputs (0..1)"),
        (LABELS[:20], "has inputs 'x' (24, 4) but targets 'y' (20,); give one target each"),
        (np.array([object()] * N), "Object arrays cannot be loaded"),
    ):
        np.savez("train.npz", x=FEATURES, y=y)
        assert expected in refused("train.npz")
    np.savez("train.npz", x=FEATURES, y=LABELS.astype(float))
    assert summarize("train.npz")[0].records.read("target").tolist() == LABELS.tolist()


def test_a_constant_feature_changes_nothing_but_itself(summarize):
    np.savez("train.npz", x=np.column_stack([FEATURES, np.full(N, 3.0)]), y=LABELS)
    summary, _ = summarize("train.npz", inputs=5)
    assert np.isfinite(summary.records.read("evidence")).all()


def test_ids_that_are_not_unique(summarize, refused):
    np.savez("train.npz", x=FEATURES, y=LABELS, id=np.arange(N) // 2)
    assert "12 ids of 'train.npz' stand for more than one example (0, 1, 2, 3 and 8 more)" in refused("train.npz")
    assert len(summarize("train.npz", "mlp", "--id-key", "row")[0].records) == N


def test_empty_files(refused, here):
    for suffix in ("npz", "h5", "csv", "parquet"):
        (here / f"empty.{suffix}").touch()
        assert f"'empty.{suffix}' is damaged or not a .{suffix} file: it has no bytes" in refused(f"empty.{suffix}")
    (here / "empty").mkdir()
    assert "'empty' is not a folder of images" in refused("empty", network="conv")


def test_a_wrong_number_of_channels_or_features_is_told_by_layer(summarize, refused, here):
    picture_folder(here / "pets")
    line = refused("pets", network="conv", channels=1)
    assert "its layer '0' takes 1 channel and gets 3; --channels 1 converts image files (inputs of shape (3, 6" in line
    assert summarize("pets", "conv", "--channels", "1", channels=1)[0].preprocessing.channels == 1
    np.savez("train.npz", x=FEATURES, y=LABELS)
    assert "its layer '1' takes 7 features and gets 4 (inputs of shape (4,)" in refused("train.npz", inputs=7)


def test_pictures_of_every_mode_become_what_torchvision_makes_of_them(here):
    folder = here / "pets" / "cat"
    folder.mkdir(parents=True)
    picture = Image.fromarray(PICTURES[0])
    modes = ("RGB", "L", "RGBA", "P", "LA", "CMYK", "1")
    for mode in modes:
        picture.convert(mode).save(folder / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=turned)
    vision = import_torchvision()
    expected = torch.stack([x for x, _ in vision.datasets.ImageFolder("pets", vision.transforms.ToTensor())])
    source = load_dataset("pets")
    assert torch.equal(next(source.batches(10)).x, expected)
    grey = next(load_dataset("pets", preprocessing=Preprocessing(channels=1)).batches(10)).x
    assert grey.shape == (8, 1, 6, 5)
    alpha = next(load_dataset("pets", preprocessing=Preprocessing(channels=4)).batches(10)).x
    assert alpha.shape == (8, 4, 6, 5)


def test_16_bit_pictures_keep_their_depth(summarize, refused, here):
    (here / "scans" / "a").mkdir(parents=True)
    deep = RNG.integers(0, 65536, (3, 6, 5), dtype=np.uint16)
    for i, values in enumerate(deep):
        Image.fromarray(values).save(here / "scans" / "a" / f"{i}.png")
    x = next(load_dataset("scans").batches(3)).x
    np.testing.assert_allclose(x[:, 0].numpy(), deep / 65535, rtol=1e-6)
    colour = next(load_dataset("scans", preprocessing=Preprocessing(channels=3)).batches(3)).x
    assert torch.equal(colour, x.expand(3, 3, 6, 5))
    small = next(load_dataset("scans", preprocessing=Preprocessing(image_size=4)).batches(3)).x
    assert small.shape == (3, 1, 4, 4)
    assert float(small.max()) <= 1
    np.savez("scans.npz", x=deep, y=np.zeros(3, int))
    assert "16-bit inputs stay as they are (--std 65535 scales them to 0..1)" in summarize("scans.npz", inputs=30)[1]
    Image.fromarray(deep[0].astype(np.int32)).save(here / "scans" / "a" / "3.tif")
    assert "32-bit pixels (mode I) of unknown scale" in refused("scans", network="conv", channels=1)


def test_text_features_and_missing_values_are_named_by_line_and_column(refused, here):
    for text, expected in (
        ("who,b,y\nAnn,2,0\n", "or give --id-key who if it names the examples"),
        ("a,b,y\n1,2,0\n3,red,1\n", "line 3 of 'train.csv' has 'red' in column 'b'; features must be numbers"),
        ("a;b;y\n1;2,5;0\n", "line 2 of 'train.csv' has '2,5' in column 'b'"),
        ("a,b,y\n1,,0\n", "line 2 of 'train.csv' has '' in column 'b'"),
        ("a,b,y\n1,2,\n", "line 2 of 'train.csv' has no 'y'; fill it in"),
        ("a,b,y\n1,2\n", "line 2 of 'train.csv' has 2 cells, its header 3"),
    ):
        (here / "train.csv").write_text(text)
        assert expected in refused("train.csv", inputs=2)


def test_large_members_of_npz_are_mapped_and_damage_is_found(refused, here, monkeypatch):
    monkeypatch.setattr("fsdtool.data.formats.numpy_files.SMALL", 0)
    for save in (np.savez, np.savez_compressed):
        save("train.npz", x=np.asfortranarray(FEATURES), y=LABELS)
        source = load_dataset("train.npz")
        assert isinstance(source.examples.reader._x, np.memmap)
        np.testing.assert_array_equal(next(source.batches(N)).x.numpy(), FEATURES)
        content = bytearray((here / "train.npz").read_bytes())
        content[300] ^= 255  # within x, the first member
        (here / "train.npz").write_bytes(content)
        assert "is damaged" in refused("train.npz")
