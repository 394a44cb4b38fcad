"""Networks that take whole numbers, masks or several inputs, each way of giving these through the command line."""

from __future__ import annotations

import csv
import io
import textwrap

import h5py
import numpy as np
import pytest
import torch

from fsdtool.cli import main
from fsdtool.data.inputs.part import NUMBERS, TRUTH, UNUSED, WHOLE
from fsdtool.model.factory import load_model
from fsdtool.model.libraries import import_torchvision
from fsdtool.summary.reader import load

N, WORDS, LENGTH = 60, 30, 6
RNG = np.random.default_rng(0)
MASK = np.arange(LENGTH) < RNG.integers(2, LENGTH + 1, N)[:, None]
IDS = np.where(MASK, RNG.integers(1, WORDS, (N, LENGTH)), 0)
NUMBERS_OF = RNG.standard_normal((N, 3)).astype(np.float32)
CATEGORY = RNG.integers(0, 5, N)
LABELS = np.arange(N) % 3
NETWORKS = """
    import torch
    from torch import nn

    class Text(nn.Module):
        def __init__(self, words=30, classes=3):
            super().__init__()
            self.embedding = nn.Embedding(words, 8)
            self.hidden, self.relu, self.head = nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, classes)

        def forward(self, input_ids, attention_mask=None):
            mask = input_ids != 0 if attention_mask is None else attention_mask
            weight = mask.to(torch.float32).unsqueeze(-1)
            x = (self.embedding(input_ids) * weight).sum(1) / weight.sum(1)
            return {"logits": self.head(self.relu(self.hidden(x)))}

    class Cast(Text):
        def forward(self, x):
            return super().forward(x.long())

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 4), nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3))

        def forward(self, numbers, category):
            return self.head(torch.cat([numbers, self.embedding(category)], 1))

    class Ages(Table):
        def __init__(self):
            super().__init__()
            self.head = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3))

    class Hidden(Text):
        def forward(self, input_ids, attention_mask=None):
            x = torch.from_numpy(self.embedding(input_ids).sum(1).detach().numpy())
            return self.head(self.relu(self.hidden(x)))

    def numbers():
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

    class Items(torch.utils.data.Dataset):
        def __init__(self, form="dict", data="both.npz", short=0):
            import numpy as np
            self.form, self.data, self.short = form, np.load(data), short

        def __len__(self):
            return 60

        def __getitem__(self, i):
            ids, mask, y = (torch.as_tensor(self.data[key][i]) for key in ("ids", "mask", "y"))
            ids = ids[: 6 - self.short] if i == 7 else ids
            if self.form == "dict":
                return {"input_ids": ids, "attention_mask": mask, "labels": y, "sentence": "as it was", "idx": i}
            if self.form == "dict and label":
                return {"input_ids": ids, "attention_mask": mask}, y
            if self.form == "one":
                return {"words": ids, "target": y, "sentence": "as it was"}
            return (ids, mask, y) if self.form == "tuple" else ((ids, mask), y)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(*words)` runs fsdtool in a folder with the networks, their checkpoints and data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETWORKS))
    for name in ("Text", "Cast", "Table", "Ages", "Hidden", "numbers"):
        torch.manual_seed(3)
        network = load_model(f"nets.py:{name}")
        torch.save(network.state_dict(), f"{name}.pt")
        moved = {key: value + 0.1 * torch.randn_like(value) for key, value in network.state_dict().items()}
        torch.save(moved, f"{name}-moved.pt")
    np.savez("ids.npz", x=IDS, y=LABELS)
    np.savez("both.npz", ids=IDS, mask=MASK, y=LABELS)
    np.savez("tokens.npz", input_ids=IDS, attention_mask=MASK.astype(np.int64), labels=LABELS)
    np.savez("table.npz", numbers=NUMBERS_OF, category=CATEGORY, y=LABELS)
    with h5py.File("both.h5", "w") as file:
        file["ids"], file["mask"], file["y"] = IDS, MASK, LABELS

    def call(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def works(run):
    """Every command works on the summary of a network and data, and the distance is the exact one."""

    def check(network: str, data: str, *more: str) -> str:
        code, _, said = run("summarize", "--model", f"nets.py:{network}", "--checkpoint", f"{network}.pt",
                            "--data", data, "-o", "s.h5", *more)  # fmt: skip
        assert code == 0, said
        again = [more[i : i + 2] for i in range(0, len(more), 2) if more[i] in ("--x-key", "--y-key")]
        keys = [word for pair in again for word in pair]
        code, rows, errors = run("fsd", "s.h5", "--checkpoint", f"{network}-moved.pt", "--data", data, *keys)
        assert code == 0, errors
        (row,) = csv.DictReader(io.StringIO(rows))
        assert float(row["distance"]) == pytest.approx(float(row["exact"]), rel=1e-4)
        assert run("find-mislabeled", "s.h5", "--top", "2")[0] == 0
        code, rows, errors = run("influence", "s.h5", "--queries", data, "--top", "1", *keys)
        assert code == 0, errors
        assert len(rows.splitlines()) > N
        return said

    return check


@pytest.mark.parametrize(
    ("network", "data", "more"),
    [
        ("Text", "ids.npz", ()),
        ("Cast", "ids.npz", ()),
        ("Text", "both.npz", ("--x-key", "ids,mask")),
        ("Text", "both.h5", ("--x-key", "ids,mask")),
        ("Text", "both.npz", ("--x-key", "attention_mask=mask,input_ids=ids")),
        ("Text", "tokens.npz", ()),
        ("Text", "nets.py:Items", ()),
        ("Text", "nets.py:Items", ("--x-key", "input_ids,attention_mask")),
        ("Text", "nets.py:Items?form=dict and label", ()),
        ("Text", "nets.py:Items?form=one", ()),
        ("Text", "nets.py:Items?form=tuple", ()),
        ("Text", "nets.py:Items?form=pair", ()),
        ("Table", "table.npz", ("--x-key", "numbers,category")),
    ],
)
def test_every_command_works(works, network, data, more):
    said = works(network, data, *more)
    assert "traced in full" in said
    assert "the curvature is measured" in said
    summary = load("s.h5")
    assert summary.statistics.input.name == "none"
    assert {c.source for c in summary.curvature} == {"measured"}


def test_ids_are_exact_in_kept_examples(works):
    works("Text", "both.npz", "--x-key", "ids,mask")
    summary = load("s.h5")
    kept = summary.anchors.inputs.numpy()
    assert np.array_equal(kept[:, :LENGTH], IDS)
    assert np.array_equal(kept[:, LENGTH:], MASK)
    assert [part.dtype for part in summary.preprocessing.parts] == [WHOLE, TRUTH]
    with h5py.File("s.h5") as file:
        assert list(file["statistics/input"]) == []


def test_a_table_of_numbers_and_categories(works):
    rows = [f"{a:.3f},{b:.3f},{c:.3f},{k},{y}" for (a, b, c), k, y in zip(NUMBERS_OF, CATEGORY, LABELS, strict=True)]
    with open("table.csv", "w") as file:
        file.write("\n".join(["age,income,debt,city,label", *rows]))
    works("Table", "table.csv", "--x-key", "numbers=age+income+debt,category=city")
    assert [(p.key, p.shape, p.dtype) for p in load("s.h5").preprocessing.parts] == [
        ("age+income+debt", (3,), NUMBERS),
        ("city", (), WHOLE),
    ]


def test_a_whole_number_may_be_a_number_beside_a_category(works):
    rows = [f"{20 + i},{k},{y}" for i, (k, y) in enumerate(zip(CATEGORY, LABELS, strict=True))]
    with open("ages.csv", "w") as file:
        file.write("\n".join(["age,city,label", *rows]))
    works("Ages", "ages.csv", "--x-key", "numbers=age,category=city")
    assert [(p.shape, p.dtype) for p in load("s.h5").preprocessing.parts] == [((1,), NUMBERS), ((), WHOLE)]


def test_what_the_network_has_no_argument_for_is_left_out_and_said(works):
    assert "which takes no idx" in works("Text", "nets.py:Items")
    assert [p.key for p in load("s.h5").preprocessing.parts if p.dtype == UNUSED] == ["idx"]


def test_numbers_that_happen_to_be_whole_stay_numbers(works):
    said = works("numbers", "ids.npz")
    assert "whole numbers (int64)" not in said
    summary = load("s.h5")
    assert summary.statistics.input.name == "gaussian"
    assert summary.preprocessing.parts == ()


def test_a_saved_data_set_of_tokens(works):
    datasets = pytest.importorskip("datasets")
    columns = {"input_ids": IDS.tolist(), "attention_mask": MASK.astype(int).tolist(), "label": LABELS.tolist()}
    datasets.Dataset.from_dict(columns).save_to_disk("saved")
    works("Text", "saved")
    assert [p.name for p in load("s.h5").preprocessing.parts] == ["input_ids", "attention_mask"]
    works("Text", "saved", "--x-key", "input_ids,attention_mask")
    assert [p.name for p in load("s.h5").preprocessing.parts] == ["", ""]


def test_data_of_other_keys_are_read_as_the_summarized_ones(run, works):
    works("Text", "both.npz", "--x-key", "input_ids=ids,attention_mask=mask")
    assert run("influence", "s.h5", "--queries", "nets.py:Items", "--top", "1")[0] == 0
    code, _, errors = run("influence", "s.h5", "--queries", "ids.npz", "--top", "1")
    assert code == 2
    assert "'ids.npz' has no array 'ids'; give --x-key one of" in errors
    code, _, errors = run("influence", "s.h5", "--queries", "both.npz", "--x-key", "ids", "--top", "1")
    assert code == 2
    assert "'both.npz' has one input, the summarized data input_ids=ids (6,) int64" in errors


def refused(run, network: str, data: str, *more: str) -> str:
    """The one line that refuses to summarize."""
    code, _, errors = run("summarize", "--model", f"nets.py:{network}", "--checkpoint", f"{network}.pt",
                          "--data", data, "-o", "s.h5", "-q", *more)  # fmt: skip
    assert code == 2, errors
    (line,) = errors.splitlines()
    return line


def test_refusals(run):
    large = IDS.copy()
    large[5, 2] = 2**24 + 1
    np.savez("large.npz", x=large, y=LABELS)
    assert "example 5 has 16777217, and its network takes whole numbers" in refused(run, "Text", "large.npz")
    np.savez("large2.npz", ids=large, mask=MASK, y=LABELS)
    assert "example 5 has 16777217 in 'ids'" in refused(run, "Text", "large2.npz", "--x-key", "ids,mask")
    assert "has no array 'masks'" in refused(run, "Text", "both.npz", "--x-key", "ids,masks")
    assert "names no inputs; write ids,mask" in refused(run, "Text", "both.npz", "--x-key", "ids,=mask")
    assert "input by position behind one by name" in refused(run, "Text", "both.npz", "--x-key", "input_ids=ids,mask")
    found = refused(run, "Text", "both.npz", "--x-key", "ids,mask", "--mean", "0.5")
    assert "--mean is for one input of numbers" in found
    found = refused(run, "Text", "both.npz", "--x-key", "words=ids,lengths=mask")
    assert "forward takes none of the inputs words=ids (6,) int64, lengths=mask (6,) bool" in found
    assert "example 7 has 'input_ids' of shape (5,), the first of (6,)" in refused(run, "Text", "nets.py:Items?short=1")
    found = refused(run, "Text", "ids.npz", "--curvature", "simulated")
    assert "of which none can be simulated; give --curvature measured" in found
    found = refused(run, "numbers", "both.npz", "--x-key", "ids,mask")
    assert "the model does not take the inputs ids (6,) int64" in found
    found = refused(run, "numbers", "nets.py:Items?form=tuple")
    assert "0 (6,) int64, 1 (6,) bool (the last part of an item is its target): " in found


def test_no_distance_is_simulated(run, works):
    works("Text", "ids.npz")
    for words in (("--form", "sampled"), ("--gates", "moving")):
        code, rows, errors = run("fsd", "s.h5", "--checkpoint", "Text-moved.pt", "-q", *words)
        assert (code, rows) == (2, "")
        assert "of which none can be simulated; use --form examples" in errors
    works_without = ("--model", "nets.py:Text", "--checkpoint", "Text.pt", "--data", "ids.npz", "--no-records")
    assert run("summarize", *works_without, "-o", "few.h5")[0] == 0
    code, _, errors = run("fsd", "few.h5", "--checkpoint", "Text-moved.pt", "-q")
    assert code == 2
    assert "give --data, or summarize with records" in errors
    code, rows, errors = run("fsd", "few.h5", "--checkpoint", "Text-moved.pt", "--data", "ids.npz", "-q")
    assert code == 0, errors
    (row,) = csv.DictReader(io.StringIO(rows))
    assert row["distance"] == ""
    assert float(row["exact"]) > 0
    assert run("inspect", "few.h5")[0] == 0


def test_a_folder_of_transformers(run):
    transformers = pytest.importorskip("transformers")
    import_torchvision()  # which transformers imports, and may not load by itself
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, num_labels=3, **sizes)
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained("bert")
    spec = ("--model", "transformers:AutoModelForSequenceClassification")
    code, _, said = run("summarize", *spec, "--checkpoint", "bert", "--data", "tokens.npz", "-o", "s.h5")
    assert code == 0, said
    assert "traced in full" in said
    code, _, errors = run("summarize", *spec, "--checkpoint", "Text.pt", "--data", "tokens.npz", "-o", "s.h5", "-q")
    assert code == 2
    assert "is built from a config.json, and there is none" in errors


def test_words_that_the_network_does_not_know(run, works):
    works("Text", "ids.npz")
    unknown = IDS.copy()
    unknown[31, 1] = WORDS
    np.savez("unknown.npz", x=unknown, y=LABELS)
    for words in (
        ("influence", "s.h5", "--queries", "unknown.npz", "-q"),
        ("fsd", "s.h5", "--checkpoint", "Text-moved.pt", "--data", "unknown.npz", "-q"),
        ("find-mislabeled", "s.h5", "--data", "unknown.npz", "-q"),
    ):
        code, _, errors = run(*words)
        assert code == 2, errors
        assert "out of range for 'embedding.embedding', which has 30 entries (they are 0 to 30)" in errors
    assert "out of range" in refused(run, "Text", "unknown.npz")


def test_new_labels_and_earlier_checkpoints(run, works):
    works("Text", "ids.npz", "--checkpoint", "Text-moved.pt")
    code, rows, errors = run("find-mislabeled", "s.h5", "--data", "ids.npz", "--top", "3", "-q")
    assert code == 0, errors
    assert len(rows.splitlines()) == 4
    with h5py.File("s.h5") as file:
        layers = [name.decode() for name in file["records/evidence"].attrs["layers"]]
    assert layers[:2] == ["embedding.embedding", "relu"]
    assert "(input)" not in layers


def test_targets_that_are_numbers(run):
    np.savez("targets.npz", x=IDS, y=NUMBERS_OF)
    spec = ("--model", "nets.py:Text", "--checkpoint", "Text.pt", "--data", "targets.npz", "--task", "regression")
    assert run("summarize", *spec, "-o", "s.h5")[0] == 0
    for words in (
        ("find-mislabeled", "s.h5", "--top", "2"),
        ("influence", "s.h5", "--self", "--top", "2"),
        ("fsd", "s.h5", "--checkpoint", "Text-moved.pt", "--data", "targets.npz"),
    ):
        assert run(*words)[0] == 0


@pytest.mark.parametrize(("data", "keys"), [("ids.npz", ()), ("both.npz", ("--x-key", "ids,mask"))])
def test_in_last_layer_mode_the_model_gets_its_inputs_too(run, data, keys):
    spec = ("--model", "nets.py:Hidden", "--checkpoint", "Hidden.pt")
    code, _, said = run("summarize", *spec, "--data", data, *keys, "-o", "s.h5")
    assert code == 0, said
    assert "not traced in full" in said
    code, _, errors = run("influence", "s.h5", "--queries", data, *spec, "--top", "1")
    assert code == 0, errors
    other = ("--checkpoint", "Hidden-moved.pt", "--model", "nets.py:Hidden", "--data", data)
    code, rows, errors = run("fsd", "s.h5", *other, "--reference", "Hidden.pt")
    assert code == 0, errors
    assert float(next(csv.DictReader(io.StringIO(rows)))["exact"]) > 0
