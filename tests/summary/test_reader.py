"""The summary file: what is written is what is read, and nothing else is believed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import fsdtool
from fsdtool.cli import main
from fsdtool.errors import FsdtoolError
from fsdtool.fitting import contents
from fsdtool.fitting import run as summarize_module
from fsdtool.influence.scores import self_influence
from fsdtool.influence.self_scores import recorded_self_influence
from fsdtool.mislabel.class_model_file import read_class_models
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.statistics.component_laws import GateStatistics
from fsdtool.summary.catalogue import open_catalogue
from fsdtool.summary.inspection import part_sizes
from fsdtool.summary.reader import Summary, load
from fsdtool.summary.writer import Writer, encode_ids
from tests.conftest import SAMPLE, gaussian_classes, identity, perceptron


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def spread(n: int, m: int) -> nn.Module:
    """A network with every kind of statistics: two pieces, three pieces, and a smooth activation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(n, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU6(), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, m)
    )


# Written and read


@pytest.fixture
def intercepted(monkeypatch) -> dict:
    """What `summarize` handed to the writer."""
    seen: dict = {}

    class Spy(Writer):
        def write_identity(self, identity):
            seen["identity"] = identity
            super().write_identity(identity)

        def write_statistics(self, statistics, graph, gate_bits):
            seen.update(statistics=statistics, gate_bits=gate_bits)
            super().write_statistics(statistics, graph, gate_bits)

        def write_curvature(self, curvatures):
            seen["curvature"] = curvatures
            super().write_curvature(curvatures)

    monkeypatch.setattr(summarize_module, "Writer", Spy)
    return seen


@pytest.mark.parametrize("rank", [None, 3])
def test_statistics_come_back_to_within_their_quantisation(summarized, intercepted, rank):
    summary = summarized(spread(6, 3), *gaussian_classes(200, 6, 3), input_rank=rank)
    written, read = intercepted["statistics"], summary.statistics
    assert (read.kind, read.names) == (written.kind, written.names)
    assert torch.equal(read.count, written.count.double())
    for name in ("mean", "core", "diagonal"):
        expected = getattr(written.input, name).float()
        torch.testing.assert_close(getattr(read.input, name), expected, rtol=0, atol=0)
    if rank is None:
        assert read.input.basis is None
    else:
        torch.testing.assert_close(read.input.basis, written.input.basis.float(), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(read.output_hessian, written.output_hessian.float(), rtol=0, atol=0)
    torch.testing.assert_close(read.outputs.values, written.outputs.values, rtol=1e-3, atol=1e-4)
    assert torch.equal(read.outputs.component, written.outputs.component)
    assert intercepted["gate_bits"] == 16
    assert list(read.gates) == list(written.gates)
    for i, gates in written.gates.items():
        assert_same_gates(read.gates[i], gates)


def assert_same_gates(found: GateStatistics, expected: GateStatistics) -> None:
    assert found.pieces == expected.pieces
    if expected.pieces is None:
        torch.testing.assert_close(found.moments, expected.moments.float(), rtol=0, atol=0)
    else:
        error = (found.probabilities - expected.probabilities).abs().max()
        assert float(error) <= 0.51 / (2**16 - 1)


def test_curvature_identity_and_weights_come_back_as_they_were(summarized, intercepted):
    network = spread(6, 3)
    options = {"model_spec": "net.py:f", "model_arguments": {"width": "3"}, "command_line": "fsdtool x"}
    summary = summarized(network, *gaussian_classes(200, 6, 3), **options)
    assert summary.identity == intercepted["identity"]
    assert summary.identity.model_arguments == {"width": "3"}
    for name, value in network.state_dict().items():
        assert torch.equal(summary.parameters[name], value)
    for found, expected in zip(summary.curvature, intercepted["curvature"], strict=True):
        assert (found.weight, found.bias) == (expected.weight, expected.bias)
        assert found.mean_eigenvalue == pytest.approx(expected.mean_eigenvalue)
        for name in ("input_basis", "output_basis", "eigenvalues"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_records_come_back_whole_and_in_row_ranges(summarized):
    network = spread(6, 3)
    x, y = gaussian_classes(200, 6, 3)
    records = summarized(network, x, y).records
    logits = network(torch.from_numpy(x)).detach()
    np.testing.assert_array_equal(records.ids, np.arange(200))
    np.testing.assert_array_equal(records.read("target"), y)
    np.testing.assert_array_equal(records.read("prediction"), logits.argmax(1))
    np.testing.assert_allclose(records.read("logits"), logits, rtol=2e-3, atol=1e-4)
    expected = nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none")
    np.testing.assert_allclose(records.read("loss"), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(records.read("loss", slice(7, 19)), records.read("loss")[7:19])
    assert len(records) == 200
    assert "loss" in records
    assert "colour" not in records


def test_names_and_ids_may_be_any_text(summarized, arrays):
    x, y = gaussian_classes(40, 4, 2)
    ids = np.array([f"bild/ä{i}.png" for i in range(40)])
    names = np.array(["Käse", "日本"])
    torch.manual_seed(0)
    network = perceptron(4, 8, 2)
    data = arrays(x, names[y], "named.npz", ids=ids)
    path = data.parent / "named.h5"
    torch.save(network.state_dict(), data.parent / "n.pt")
    summarize_module.summarize(
        model=network,
        checkpoint=fsdtool.model.checkpoint.read_checkpoint(data.parent / "n.pt"),
        data=fsdtool.data.formats.load.load_dataset(str(data)),
        output=path,
        command_line="fsdtool --data caf\udce9",  # a file name that is not UTF-8
    )
    summary = fsdtool.load(path)
    assert summary.records.ids.tolist() == ids.tolist()
    assert summary.class_names == tuple(names)
    assert [summary.label_name(c) for c in (0, 1, 2)] == ["Käse", "日本", 2]


def test_a_text_too_long_for_an_attribute_comes_back(summarized):
    reason = "日本" * 20_000
    summary = summarized(perceptron(4, 8, 2), *gaussian_classes(40, 4, 2), model_arguments={"note": reason})
    assert summary.identity.model_arguments == {"note": reason}


def test_ids_are_kept_as_numbers_or_as_text():
    assert encode_ids(np.arange(3)).dtype == np.int64
    assert encode_ids(np.array(["a", "bcd"])).tolist() == [b"a", b"bcd"]
    assert encode_ids(np.array(["\udcff"])).tolist() == [b"\\udcff"]


# As a plain HDF5 file


FACTORS = re.compile("records/gradients/.*/(output|input)")


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_every_dataset_says_what_it_holds_and_is_compressed_if_there_is_enough_of_it(sample_paths, network):
    with h5py.File(sample_paths[network]) as file:
        for name, dataset in datasets(file).items():
            assert dataset.attrs["description"], name
            assert "units" in dataset.attrs, name
            assert dataset.dtype.kind in "iufS", name
            if not name.startswith("model/parameters") and not FACTORS.fullmatch(name):
                assert (dataset.compression == "gzip") is (dataset.nbytes > 2048), name
        assert file.attrs["format"] == b"fsdtool summary"
        assert file.attrs["schema"] == 2
        assert json.loads(file["model"].attrs["reasons"]) == []


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_what_was_summarized_reads_as_text_in_h5py(sample_paths, network):
    with h5py.File(sample_paths[network]) as file:
        told = {**file["model"].attrs, **file["data"].attrs}
        assert told["mode"] == "full"
        assert told["spec"] == str(file["data"].attrs["spec"])
        assert {key for key, value in told.items() if not isinstance(value, (str, np.number, np.bool_))} == set()
        parts = json.loads(bytes(file["identity"][:]))
        for name, values in parts.items():
            for key, value in values.items():
                found = file[name].attrs[key]
                assert (json.loads(found) if isinstance(value, (dict, list)) else found) == value, key
        everything = [file, *(file[name] for name in datasets(file))]
        assert all(isinstance(item.attrs["description"], str) for item in everything[1:])


def test_any_text_can_be_an_attribute(summarized):
    odd = "\udcff \0 日本"
    summary = summarized(perceptron(4, 8, 2), *gaussian_classes(40, 4, 2), model_spec=odd)
    assert summary.identity.model_spec == "\\udcff \0 日本"
    with h5py.File(summary.path) as file:
        assert file["model"].attrs["spec"] == "\\udcff \\x00 日本"


def test_a_summary_closes_its_file(sample_paths):
    with fsdtool.load(sample_paths["mlp"]) as summary:
        file = summary.file
        assert len(summary.records.read("loss")) == summary.examples
    assert not file
    for use in (
        lambda: summary.records.read("loss"),
        lambda: "loss" in summary.records,
        lambda: read_class_models(summary),
    ):
        with pytest.raises(FsdtoolError, match=r"mlp.h5' was closed; open it again"):
            use()
    summary.close()
    assert summary.statistics.count.sum() == summary.examples
    with open_catalogue(sample_paths["mlp"]) as catalogue:
        assert catalogue.records.read("loss").shape == (1437,)
    assert not catalogue.file


def test_part_sizes_are_those_of_the_datasets(sample_paths):
    sizes = part_sizes(sample_paths["mlp"])
    with h5py.File(sample_paths["mlp"]) as file:
        assert sizes == {name: d.id.get_storage_size() for name, d in datasets(file).items()}


def test_the_same_inputs_give_the_same_bytes(summarized, monkeypatch):
    class Noon(contents.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2020, 1, 1, 12, tzinfo=tz)

    monkeypatch.setattr(contents, "datetime", Noon)
    data = gaussian_classes(300, 6, 3)
    first, second = (summarized(spread(6, 3), *data).path.read_bytes() for _ in range(2))
    assert first == second
    other_seed = summarized(spread(6, 3), *data, seed=1)
    assert other_seed.path.read_bytes() != first


# What is refused


def replaced(name: str, value) -> object:
    def change(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = value
        file[name].attrs.update(attributes)

    return change


def set_values(name: str, index, value) -> object:
    def change(file: h5py.File) -> None:
        file[name][index] = value

    return change


def removed(name: str) -> object:
    return lambda file: file.__delitem__(name)


def linked(name: str, link: h5py.SoftLink | h5py.ExternalLink) -> object:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def virtual(file: h5py.File) -> None:
    shape, dtype = file["statistics/input/mean"].shape, file["statistics/input/mean"].dtype
    del file["statistics/input/mean"]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource("/etc/hostname", "x", shape)
    file["statistics"].create_virtual_dataset("input/mean", layout)


def external(file: h5py.File) -> None:
    shape = file["statistics/input/mean"].shape
    del file["statistics/input/mean"]
    file.create_dataset("statistics/input/mean", shape, "f4", external=[("/etc/hostname", 0, 10**6)])


def objects(file: h5py.File) -> None:
    del file["records/id"]
    file.create_dataset("records/id", data=["a"] * 1437, dtype=h5py.string_dtype())


def refiltered(file: h5py.File) -> None:
    content = file[GATES][:]
    del file[GATES]
    file.create_dataset(GATES, data=content, compression="lzf")


def attribute(group: str, name: str, value) -> object:
    return lambda file: file[group].attrs.__setitem__(name, value)


def steps(change) -> object:
    def edit(file: h5py.File) -> None:
        content = json.loads(bytes(file["model/graph"][:]))
        change(content)
        replaced("model/graph", np.frombuffer(json.dumps(content).encode(), np.uint8))(file)

    return edit


GATES = "statistics/gates/2"
EIGENVALUES = "curvature/1.weight/eigenvalues"
DIAGONAL = "statistics/input/diagonal"
BIAS = "model/parameters/5.bias"
DAMAGE = {
    "another schema": (
        attribute("/", "schema", 99),
        r"is a summary of schema 99, and fsdtool \S+ reads schema 2; update fsdtool, or write it again with",
    ),
    "an older schema": (
        attribute("/", "schema", 1),
        r"is a summary of schema 1, and fsdtool \S+ reads schema 2; write it",
    ),
    "text in a heap": (attribute("/", "format", "fsdtool summary"), "'format' of '/' is not plain"),
    "an object in an attribute": (
        lambda file: file["statistics"].attrs.__setitem__("kind", file.ref),
        "'kind' of '/statistics' is not plain",
    ),
    "an array for a schema": (
        attribute("/", "schema", np.arange(3)),
        "of schema array.*reads schema 2; write it again",
    ),
    "no summary": (attribute("/", "format", np.bytes_("photographs")), "is no fsdtool summary"),
    "a missing attribute": (lambda file: file["statistics"].attrs.__delitem__("kind"), "'kind' is missing"),
    "a missing part of the identity": (identity(lambda parts: parts.pop("model")), "'spec' is missing"),
    "a missing value of the identity": (identity(lambda parts: parts["/"].pop("task")), "'task' is missing"),
    "a number for text": (
        identity(lambda parts: parts["data"].update(spec=7)),
        "'/identity' of 'data': 'spec' holds 7, expected text",
    ),
    "a number that is too large": (identity(lambda parts: parts["/"].update(seed=2**70)), "expected a whole number"),
    "an identity that is a list": (identity(lambda parts: [1]), "'task' is missing"),
    "a missing group": (removed("statistics"), "'/statistics' is missing"),
    "a missing dataset": (removed("statistics/input/core"), "'/statistics/input/core' is missing"),
    "missing gates": (removed(GATES), f"'/{GATES}' is missing"),
    "missing curvature": (removed("curvature/3.weight"), "'/curvature/3.weight' is missing"),
    "a missing weight": (removed("model/parameters/3.weight"), "'/model/parameters/3.weight' is missing"),
    "missing records": (removed("records/loss"), "'/records/loss' is missing"),
    "factors without curvature": (removed("curvature"), "'/curvature' is missing"),
    "missing factors": (removed("records/gradients/1.weight/scale"), "1.weight/scale' is missing"),
    "another shape": (
        replaced(GATES, np.zeros((10, 1, 5), "u2")),
        r"shape \(10, 1, 5\), expected \(10, 1, 128\)",
    ),
    "a weight of another shape": (replaced("model/parameters/5.bias", np.zeros(3, "f4")), r"expected \(10\)"),
    "too few records": (replaced("records/loss", np.zeros(7, "f4")), "'records/loss' has 7 rows for 1437"),
    "a scalar for records": (replaced("records/loss", np.float32(0)), "'records/loss' has no rows"),
    "factors of another width": (
        replaced("records/gradients/1.weight/output", np.zeros((1437, 2), "f2")),
        r"has shape \(1437, 2\), expected",
    ),
    "not a number": (set_values("statistics/input/mean", (0, 0), np.nan), "values that are not finite"),
    "infinity": (set_values(EIGENVALUES, (0, 0), np.inf), "values that are not finite"),
    "a negative eigenvalue": (
        set_values(EIGENVALUES, (0, 0), -1.0),
        "negative eigenvalues",
    ),
    "components that do not add up": (set_values("statistics/count", 0, 5), "do not add up to 1437 examples"),
    "a class out of range": (set_values("records/target", 3, 10), "classes outside 0..9"),
    "a negative candidate": (set_values("records/candidates", (3, 4), -1), "classes outside 0..9"),
    "a soft link": (linked(DIAGONAL, h5py.SoftLink("/x")), "is a link, which is never followed"),
    "an external link": (linked(BIAS, h5py.ExternalLink("other.h5", "/x")), "is a link"),
    "a link for a group": (linked("records", h5py.SoftLink("/statistics")), "is a link"),
    "a virtual dataset": (virtual, "not a plain dataset"),
    "an external dataset": (external, "not a plain dataset"),
    "an object type": (objects, "not a plain dataset"),
    "an empty dataset": (replaced("statistics/input/mean", h5py.Empty("f4")), "not a plain dataset"),
    "text for numbers": (replaced("statistics/input/core", np.full((10, 64, 64), b"x")), "holds text"),
    "a group for a dataset": (
        lambda file: (removed(GATES)(file), file.create_group(GATES)),
        "not a plain dataset",
    ),
    "names that are no text": (replaced("statistics/names", np.full(10, b"\xff")), "is damaged"),
    "steps that are no JSON": (replaced("model/graph", np.zeros(4, "u1")), "is damaged"),
    "no steps": (steps(lambda content: content.clear()), "not a well-formed list of steps"),
    "an unknown step": (steps(lambda content: content[1].update(operation="exec")), "well-formed"),
    "a step without a shape": (steps(lambda content: content[1].pop("shape")), "cannot be read"),
    "a step of another shape": (steps(lambda content: content[1].update(shape=[7])), "gives shape"),
    "a step with other options": (
        steps(lambda content: content[3]["options"].update(settings={"k": 1})),
        "step '2' of its network does not run",
    ),
    "two steps of one name": (
        steps(lambda content: content[2].update(name=content[1]["name"])),
        "two steps have the same name",
    ),
    "a step that is not used": (steps(lambda content: content[-1].update(inputs=[2])), "is never used"),
    "a network too large for the file": (
        steps(lambda content: content[0].update(shape=[2**40])),
        "units, too many for a file of",
    ),
    "an object under two names": (
        lambda file: file.__setitem__("records/again", file["records/loss"]),
        "'/records/loss' is in the file under another name too",
    ),
    "a group within itself": (
        lambda file: file.__setitem__("statistics/gates/again", file["statistics"]),
        "under another name too",
    ),
    "a shape that nothing was written for": (
        lambda file: file.create_dataset("records/huge", (1437, 2**30), "f4", chunks=(1, 1024)),
        r"'/records/huge' brings it to [\d,]+ bytes, too many for a file of",
    ),
    "compressed zeros": (
        lambda file: file.create_dataset("more", (2**29,), "u1", chunks=(2**24,), compression="gzip"),
        "'/more' brings it to",
    ),
    "a filter that the tool does not use": (
        refiltered,
        "not a plain dataset",
    ),
    "the byte order of another machine": (
        replaced("records/loss", np.zeros(1437, ">f4")),
        "'/records/loss' is not a plain dataset",
    ),
    "floats for classes": (replaced("records/target", np.zeros(1437, "f4")), "holds float32, expected other numbers"),
    "complex numbers": (replaced("statistics/count", np.ones(10, "c8")), "not a plain dataset"),
    "long doubles": (replaced("statistics/count", np.ones(10, np.longdouble)), "not a plain dataset"),
    "values that float32 cannot hold": (
        replaced(DIAGONAL, np.full((10, 64), 1e300)),
        "holds values too large for torch.float32",
    ),
    "an unknown task": (identity(lambda parts: parts["/"].update(task="ranking")), "task 'ranking'"),
    "no examples": (identity(lambda parts: parts["data"].update(examples=0)), "no examples"),
    "deeply nested JSON": (replaced("identity", np.frombuffer(b"[" * 200_000, np.uint8)), "'/identity' is damaged"),
    "a weight that is not there": (
        steps(lambda content: content[-1]["parameters"].update(weight="9.weight")),
        "'/model/shapes' has none for '9.weight'",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line_that_names_it(sample_paths, edited, kind):
    change, message = DAMAGE[kind]
    path = edited(sample_paths["mlp"], change)
    with pytest.raises(FsdtoolError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert "again" in str(error.value) or "give a file" in str(error.value)


QUERIES = ("influence", "--queries", str(SAMPLE / "test.npz"))
# Where a fault of the tool may lie while a summary is read, and a command that comes there.
FAULTS = {
    "the catalogue": ("summary.catalogue.Records.check", ("find-mislabeled",)),
    "the identity": ("data.preprocessing.Preprocessing.from_json", QUERIES),
    "the network": ("network.graph.Graph.parameter_names", QUERIES),
    "the statistics": ("summary.reader.GateStatistics", QUERIES),
    "the curvature": ("summary.reader.BlockCurvature", QUERIES),
    "the sizes": ("summary.inspection.hdf5.stored_bytes", ("inspect",)),
    "the class models": (
        "mislabel.class_model_file.Discriminant",
        ("find-mislabeled", "--data", str(SAMPLE / "test.npz")),
    ),
}


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, ZeroDivisionError])
@pytest.mark.parametrize("where", FAULTS)
def test_a_fault_of_the_tool_while_a_summary_is_read_is_no_damage(sample_paths, monkeypatch, capsys, where, error):
    place, (command, *options) = FAULTS[where]

    def broken(*arguments, **more):
        raise error("a fault")

    monkeypatch.setattr(f"fsdtool.{place}", broken)
    assert main([command, str(sample_paths["mlp"]), *options, "-q"]) == 3
    message = capsys.readouterr().err
    assert message.startswith(f"internal error: {error.__name__}: ")
    assert "damaged" not in message


def test_a_file_of_an_older_schema_is_told_so_whatever_it_lacks(sample_paths, edited, capsys):
    def older(file: h5py.File) -> None:
        file.attrs["schema"] = 1
        for name in ("identity", "evidence", "records/self_influence", "statistics/outputs"):
            del file[name]

    path = edited(sample_paths["mlp"], older)
    for command in (["inspect"], ["find-mislabeled"], ["influence", "--self"], ["fsd", "--checkpoint", "x.pt"]):
        assert main([command[0], str(path), *command[1:], "-q"]) == 2
        assert capsys.readouterr().err == (
            f"error: '{path}' is a summary of schema 1, and fsdtool {fsdtool.__version__} reads schema 2; "
            "write it again with 'fsdtool summarize'\n"
        )


IN_THE_CATALOGUE = (
    *(
        "another schema",
        "no summary",
        "a missing value of the identity",
        "missing records",
        "too few records",
        "no steps",
    ),
    *("a class out of range", "a negative candidate", "a link for a group", "an object type", "compressed zeros"),
    *("an object under two names", "floats for classes", "an unknown task", "no examples", "steps that are no JSON"),
)


@pytest.mark.parametrize("kind", IN_THE_CATALOGUE)
def test_the_catalogue_alone_refuses_the_damage_of_what_it_reads(sample_paths, edited, kind):
    change, message = DAMAGE[kind]
    with pytest.raises(FsdtoolError, match=message):
        open_catalogue(edited(sample_paths["mlp"], change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed("records/self_influence"), r"'/records/self_influence' is missing; write the summary again"),
        (set_values("records/self_influence", 3, np.nan), "'/records/self_influence' holds values that are not finite"),
        (removed("records/gradients"), "written with `records=False`; give the training data by `data`"),
        (removed("records"), "written with `records=False`; give the training data by `data`"),
    ],
)
def test_self_influence_that_is_not_there_or_damaged_is_refused(sample_paths, edited, change, message):
    path = edited(sample_paths["mlp"], change)
    with pytest.raises(FsdtoolError, match=message):
        recorded_self_influence(open_catalogue(path))


def test_self_influence_of_another_shape_is_refused(sample_paths, edited):
    path = edited(sample_paths["mlp"], replaced("records/self_influence", np.zeros((1437, 2), "f4")))
    with pytest.raises(FsdtoolError, match=r"self_influence' has shape \(1437, 2\), expected \(1437\)"):
        open_catalogue(path)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_the_catalogue_is_what_the_whole_summary_says_of_its_examples(sample_paths, network):
    catalogue, summary = open_catalogue(sample_paths[network]), load(sample_paths[network])
    for name in ("path", "task", "examples", "outputs", "class_names"):
        assert getattr(catalogue, name) == getattr(summary, name), name
    assert catalogue.outputs == summary.identity.graph.outputs
    np.testing.assert_array_equal(catalogue.records.ids, summary.records.ids)
    np.testing.assert_array_equal(catalogue.records.read("loss"), summary.records.read("loss"))


def test_records_that_are_not_finite_are_refused_when_they_are_read(mlp_summary, edited):
    def change(file: h5py.File) -> None:
        file["records/evidence"][100, 0, 1] = np.nan
        file["records/self_influence"][100] = np.inf

    summary = load(edited(mlp_summary.path, change))
    with pytest.raises(FsdtoolError, match="'/records/evidence' holds values that are not finite"):
        find_mislabeled(summary)
    with pytest.raises(FsdtoolError, match="self_influence' holds values that are not finite"):
        self_influence(summary)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_numbers_of_another_width_are_read_as_their_own(sample_paths, edited, capsys, dtype):
    """Records of any float answer as they are; what the width does not change is answered alike."""

    def widen(file: h5py.File) -> None:
        for name, item in datasets(file["records"]).items():
            if item.dtype.kind == "f":
                values, attributes = item[()], dict(item.attrs)
                del file[f"records/{name}"]
                file[f"records/{name}"] = values.astype(dtype)
                file[f"records/{name}"].attrs.update(attributes)

    changed = str(edited(sample_paths["mlp"], widen))
    for words in (
        ["find-mislabeled", "--all"],
        ["influence", "--self"],
        ["influence", "--queries", str(SAMPLE / "test.npz"), "--misclassified", "--top", "5"],
    ):
        answers = []
        for path in (str(sample_paths["mlp"]), changed):
            assert main([words[0], path, *words[1:], "--format", "csv", "-q"]) == 0
            answers.append(capsys.readouterr().out)
        if dtype != "f2":
            assert answers[0] == answers[1]


@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(sample_paths, tmp_path, part):
    content = sample_paths["mlp"].read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: int(part * len(content))])
    with pytest.raises(FsdtoolError, match=r"cut.h5' is truncated or not a summary"):
        load(tmp_path / "cut.h5")


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", bytes(range(256)) * 100])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(FsdtoolError, match="truncated or not a summary"):
        load(tmp_path / "x.h5")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FsdtoolError, match=r"no summary at .*write one with 'fsdtool summarize"):
        load(tmp_path / "none.h5")
    with pytest.raises(FsdtoolError, match="truncated or not a summary"):
        load(tmp_path)


def test_flipped_bytes_never_end_in_anything_but_a_summary_or_a_users_error(sample_paths, tmp_path):
    content = np.frombuffer(sample_paths["mlp"].read_bytes(), np.uint8)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = content.copy()
        where = generator.integers(0, len(content), 200)
        damaged[where] ^= generator.integers(1, 256, 200).astype(np.uint8)
        (tmp_path / "x.h5").write_bytes(damaged.tobytes())
        try:
            summary = load(tmp_path / "x.h5")
            find_mislabeled(summary)
            self_influence(summary)
        except FsdtoolError:
            refused += 1
    assert refused > 30


# Killed while writing


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "summary.h5"
    path.write_bytes(b"the old one")

    def write() -> None:
        with Writer(path) as writer:
            writer.put("records/loss", np.zeros(1000), "loss")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write()
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.h5"]


def test_a_commit_replaces_the_old_file_and_tells_the_size(tmp_path):
    path = tmp_path / "summary.h5"
    path.write_bytes(b"the old one")
    with Writer(path) as writer:
        writer.put("x", np.arange(10), "numbers")
        assert path.read_bytes() == b"the old one"
        size = writer.commit()
    assert size == path.stat().st_size
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"], np.arange(10))
    assert [p.name for p in tmp_path.iterdir()] == ["summary.h5"]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
KILLED = """
    import time
    from pathlib import Path
    from fsdtool.model.checkpoint import read_checkpoint
    from fsdtool.data.formats.load import load_dataset
    from fsdtool.model.factory import load_model
    from fsdtool.fitting.run import summarize
    from fsdtool.summary.writer import Writer

    sample, output, where = Path({sample!r}), Path({output!r}), {where!r}
    original = getattr(Writer, where)

    def slow(self, *arguments, **options):
        result = original(self, *arguments, **options) if where != "commit" else None
        print("now", flush=True)
        time.sleep(60)
        return result

    setattr(Writer, where, slow)
    summarize(
        model=load_model(f"{{sample}}/model.py:mlp"), checkpoint=read_checkpoint(sample / "mlp.pt"),
        data=load_dataset(str(sample / "train.npz")), output=output,
    )
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_any_moment_the_old_file_stays_whole(tmp_path):
    running = []
    for where in ("write_identity", "reserve", "commit"):
        output = tmp_path / f"{where}.h5"
        output.write_bytes(b"the old one")
        script = textwrap.dedent(KILLED.format(sample=str(SAMPLE), output=str(output), where=where))
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=SAMPLE.parent, env=ONE_THREAD
        )
        running.append((process, output))
    for process, output in running:
        with process.stdout:
            assert process.stdout.readline() == b"now\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert output.read_bytes() == b"the old one"


def test_a_summary_that_is_open_survives_its_replacement(summarized):
    data = gaussian_classes(60, 4, 3)
    first: Summary = summarized(perceptron(4, 8, 3), *data)
    expected = first.records.read("loss")
    summarized(perceptron(4, 8, 3, seed=1), *data)
    np.testing.assert_array_equal(first.records.read("loss"), expected)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("statistics/names", np.full((300_000, 1, 1), b"a"), r"'/statistics/names' has shape \(300000, 1, 1\)"),
        ("statistics/count", np.ones(2000), "2000 components are too many for 1437 examples"),
        ("statistics/count", np.ones(0), "0 components are too many for 1437 examples, or too few"),
        ("data/class_names", np.full((4, 2), b"a"), r"'/data/class_names' has shape \(4, 2\), expected \(any\)"),
    ],
)
def test_names_and_components_are_counted_before_they_are_read(mlp_summary, edited, name, values, message):
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = values

    with pytest.raises(FsdtoolError, match=message):
        load(edited(mlp_summary.path, change))


def test_a_network_without_the_bias_of_its_curvature_is_refused(mlp_summary, edited):
    def change(file: h5py.File) -> None:
        steps = json.loads(bytes(file["model/graph"][()]))
        next(step for step in steps if "bias" in step["parameters"])["parameters"].pop("bias")
        del file["model/graph"]
        file["model/graph"] = np.frombuffer(json.dumps(steps).encode(), np.uint8)

    with pytest.raises(FsdtoolError, match="is of other parameters than the network's"):
        load(edited(mlp_summary.path, change))
