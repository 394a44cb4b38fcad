"""The page of find-mislabeled: what a reader gets, and what a file name cannot do to it."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fsdtool.cli import main
from fsdtool.data.formats.load import load_dataset
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.find import find_mislabeled
from fsdtool.report import charts
from fsdtool.report.html import Page, Picture, render_page, templates, write_page
from fsdtool.report.mislabel_page import LARGEST_PAGE, histogram, pictures_of, review
from fsdtool.report.thumbnails import BATCH, SIDE, thumbnails
from fsdtool.summary.reader import load
from tests.conftest import identity

TEMPLATES = Path(charts.__file__).parent / "templates"
EVIL = [
    "<script>alert(1)</script>.png",
    "</title></style></script><script>alert(2)</script>",
    "\"><img src=x onerror='alert(3)'>",
    "' onmouseover='alert(4)' x='",
    "javascript:alert(5)//https://example.org/x.js",
    "&lt;b&gt; & 'quotes' \"too\"",
    "<!--",
    "]]><svg onload=alert(6)>",
    "{{7*7}}${alert(8)}",
]
VOID = {"meta", "img", "input", "wbr", "link", "br"}


class Reader(HTMLParser):
    """Elements of a page with their attributes, and the text in each, as a browser would see them."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open, "an element is left open"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(len(self.elements) - 1)
            self.texts[self.open[-1]] = []

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        for i in self.open:
            self.texts[i].append(data)

    def of(self, tag: str, kind: str | None = None) -> list[str]:
        """The texts of all elements of a tag, or those with a class too."""
        return [
            "".join(self.texts[i])
            for i, (found, attributes) in enumerate(self.elements)
            if found == tag and i in self.texts and (kind is None or kind in (attributes.get("class") or "").split())
        ]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


def row(rank: int, name: object = "a.png", given: object = "cat", suggested: object = "dog") -> dict[str, object]:
    found = {"id": name, "given_label": given, "suggested_label": suggested}
    return found | {"score": 1 - rank / 100, "confidence": 0.5, "rank": rank}


def page(**changes) -> Page:
    plain = Page(
        title="Suspicious labels in photos",
        lead="Of 10 labels about 2 are wrong.",
        facts=[("Model", "net.py:net")],
        rows=[row(1), row(2, 17, 3, 8)],
        pictures=(),
        remarks=["2 rows."],
        histogram=(np.array([7, 0, 1, 2]), np.linspace(0, 1, 5)),
        cut=0.5,
        matrix=np.array([[4.0, 1.5], [0.5, 4.0]]),
        names=["cat", "dog"],
        weights=[("(input)", 0.25), ("relu", 0.75)],
        reading=[("Score", "Higher is more suspicious.")],
    )
    return replace(plain, **changes)


def evil_page() -> Page:
    rows = [row(i, name, EVIL[i % len(EVIL)], EVIL[-i]) for i, name in enumerate(EVIL, 1)]
    return page(
        title=EVIL[1],
        lead=EVIL[0],
        facts=[(name, name) for name in EVIL],
        rows=rows,
        pictures=[Picture("data:image/png;base64,AAAA")] * len(rows),
        remarks=EVIL,
        matrix=np.ones((len(EVIL), len(EVIL))),
        names=EVIL,
        weights=[(name, 0.1) for name in EVIL],
        reading=[(name, name) for name in EVIL],
    )


# What names can do


def test_names_and_labels_stay_text():
    found = Reader(render_page(evil_page()))
    assert found.of("th", "example") == ["Example", *EVIL]
    assert found.of("td", "given") == [EVIL[i % len(EVIL)] for i in range(1, len(EVIL) + 1)]
    assert found.of("td", "suggested") == [EVIL[-i] for i in range(1, len(EVIL) + 1)]
    assert found.of("title")[0] == found.of("h1")[0] == EVIL[1]


def test_names_add_no_element_and_no_attribute():
    plain = page(
        rows=[row(i) for i in range(1, len(EVIL) + 1)],
        pictures=[Picture("data:image/png;base64,AAAA")] * len(EVIL),
        facts=[("a", "b")] * len(EVIL),
        remarks=["a"] * len(EVIL),
        matrix=np.ones((len(EVIL), len(EVIL))),
        names=["a name of some length"] * len(EVIL),
        weights=[("a layer with a name that is so long that it has to be shortened", 0.1)] * len(EVIL),
        reading=[("a", "b")] * len(EVIL),
    )
    # Where a long name may be broken, and whether a name is long enough for a tooltip, may differ.
    harmless = {"wbr", "title"}
    expected = [(tag, set(a)) for tag, a in Reader(render_page(plain)).elements if tag not in harmless]
    found = [(tag, set(a)) for tag, a in Reader(render_page(evil_page())).elements if tag not in harmless]
    assert found == expected
    assert not any(name.startswith("on") or name in {"style", "href", "srcset"} for _, a in found for name in a)


def test_script_and_style_hold_no_data_and_the_policy_names_their_hashes():
    plain, evil = Reader(render_page(page())), Reader(render_page(evil_page()))
    assert len(evil.of("script")) == len(evil.of("style")) == 1
    policy = evil.all("meta")[1]["content"]
    for tag in ("script", "style"):
        assert evil.of(tag) == plain.of(tag)
        digest = base64.b64encode(hashlib.sha256(evil.of(tag)[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_control_characters_and_turned_direction_are_made_visible():
    found = Reader(render_page(page(rows=[row(1, "a\x00b\x1b[31m\nc"), row(2, "\u202egnp.exe")])))
    assert found.of("th", "example")[1:] == ["a b [31m c", "\N{REPLACEMENT CHARACTER}gnp.exe"]


def test_a_name_that_is_no_unicode_can_be_written(tmp_path):
    write_page(page(rows=[row(1, "caf\udce9.png")]), tmp_path / "page.html")
    assert "caf" in (tmp_path / "page.html").read_text("utf-8")


# What a page is made of


@pytest.mark.parametrize("made", [page, evil_page])
def test_nothing_is_fetched(made):
    for _, attributes in Reader(render_page(made())).elements:
        for name, value in attributes.items():
            assert name not in {"href", "action", "srcset", "data", "xlink:href", "background", "poster"}
            assert name != "src" or value.startswith("data:image/")
    style, script = ((TEMPLATES / name).read_text() for name in ("page.css", "page.js"))
    assert not re.search(r"url\(|@import|https?:|//\w", style)
    assert not re.search(r"fetch|XMLHttp|import\(|https?:|innerHTML|document\.write|eval", script)


def test_rows_and_values_without_the_script():
    found = Reader(render_page(page()))
    assert found.of("td", "rank") == ["1", "2"]
    assert found.of("th", "example")[1:] == ["a.png", "17"]
    assert found.of("td", "given") == ["cat", "3"]
    assert found.of("td", "score") == ["0.990", "0.980"]
    assert "hidden" in next(a for tag, a in found.elements if a.get("class") == "tools")


def test_no_score_below_one_is_shown_as_certainty():
    found = Reader(render_page(page(rows=[row(1) | {"score": 0.99996, "confidence": 1.0}])))
    assert found.of("td", "score") == ["0.999"]
    assert found.of("td", "confidence") == ["1.000"]


def test_no_rows_no_matrix_no_layers():
    found = Reader(render_page(page(rows=[], matrix=None, weights=[], names=[], remarks=["No label is suspicious."])))
    assert not found.of("table")
    assert len(found.of("figure")) == 1
    assert "No label is suspicious." in found.of("section")[1]


def test_pictures_have_names():
    images = Reader(render_page(evil_page())).all("img")
    assert [image["alt"] for image in images] == [f"picture of {name}" for name in EVIL]


def test_the_same_page_is_the_same_text():
    assert render_page(page()) == render_page(page())


def test_every_picture_of_numbers_has_a_text():
    drawn = [a for a in Reader(render_page(page())).all("svg") if a.get("class") == "chart"]
    assert len(drawn) == 3
    assert all(a["role"] == "img" and a["aria-label"] for a in drawn)


# Writing


def test_a_write_that_fails_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FsdtoolError, match="cannot be written \\(No space left on device\\)"):
        write_page(page(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


# Charts


def drawn_as(chart: charts.Chart) -> Reader:
    return Reader(templates().get_template("chart.html").module.svg(chart))


def test_histogram_has_a_bar_for_every_count_and_splits_at_the_cut():
    drawn = drawn_as(charts.histogram(np.array([1000, 10, 0, 3]), np.array([0, 0.25, 0.4, 0.7, 1]), 0.4, "scores"))
    bars = drawn.all("rect")
    assert [bar["class"] for bar in bars] == ["cool", "cool", "hot"]
    heights = [float(bar["height"]) for bar in bars]
    assert heights[0] > heights[1] > heights[2] > 0
    assert "cut-off 0.40" in drawn.of("text")


def test_an_edge_of_the_histogram_is_the_cut():
    scores = np.random.default_rng(0).random(1000)
    for cut in (0.0, 0.5, 0.4321, 1.0):
        counts, edges = histogram(scores, cut)
        assert counts.sum() == 1000
        assert np.abs(edges - cut).min() < 1e-12
        assert counts[edges[:-1] >= cut].sum() == (scores >= cut).sum()


def test_a_matrix_of_many_classes_shows_those_with_most_errors():
    values = np.eye(100) * 50
    values[71, 3], values[40, 99] = 9, 4
    kept = charts.most_involved(values)
    assert len(kept) == charts.LARGEST_MATRIX
    assert {71, 3, 40, 99} <= set(kept)
    heat = drawn_as(charts.matrix(values, [f"class {i}" for i in range(100)], "")).all("rect")
    assert sum(a["class"] == "heat" for a in heat) == 2


# Thumbnails


def source_of(arrays, x, **preprocessing):
    return load_dataset(str(arrays(x, np.zeros(len(x), dtype=np.int64))), preprocessing=Preprocessing(**preprocessing))


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))))


@pytest.mark.parametrize("shape", [(9, 7), (1, 9, 7), (9, 7, 1), (3, 9, 7), (9, 7, 3)])
def test_a_small_picture_is_exact(arrays, shape):
    x = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    layout = "one channel" if len(shape) == 2 else None
    mean = 0.4 if len(shape) == 2 else 0.2
    source = source_of(arrays, x, layout=layout, mean=(mean,), std=(0.3,))
    found = thumbnails(source, [2, 0])
    for i, picture in zip([2, 0], found, strict=True):
        image = x[i].transpose(1, 2, 0) if shape[0] in (1, 3) else x[i]
        assert picture.tiny
        assert np.array_equal(pixels(picture), image.squeeze())


def test_a_large_picture_is_made_small(arrays):
    x = np.full((1, 300, 600, 3), 128, dtype=np.uint8)
    (picture,) = thumbnails(source_of(arrays, x), [0])
    assert not picture.tiny
    assert pixels(picture).shape == (SIDE // 2, SIDE, 3)


def test_values_beyond_zero_and_one_are_mapped_onto_them(arrays):
    x = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    (picture,) = thumbnails(source_of(arrays, x), [0])
    assert pixels(picture).min() == 0
    assert pixels(picture).max() == 255


@pytest.mark.parametrize("constant", [0.0, -2.0, 5.0])
def test_a_constant_first_batch_does_not_set_the_scale(arrays, constant):
    x = np.full((BATCH + 2, 1, 8, 8), constant, dtype=np.float32)
    x[-2:] = np.linspace(-2, 2, 64, dtype=np.float32).reshape(8, 8)
    *_, first, last = thumbnails(source_of(arrays, x), range(len(x)))
    assert np.array_equal(pixels(first), pixels(last))
    assert len(np.unique(pixels(last))) == 64
    assert (pixels(last).min(), pixels(last).max()) == (0, 255)


@pytest.mark.parametrize(("constant", "shown"), [(0.0, 0), (1.0, 255), (0.2, 51), (-2.0, 128), (7.0, 128)])
def test_pictures_of_one_constant_have_a_shade(arrays, constant, shown):
    (picture,) = thumbnails(source_of(arrays, np.full((1, 3, 8, 8), constant, dtype=np.float32)), [0])
    assert np.all(pixels(picture) == shown)


def test_pictures_end_where_the_budget_ends(arrays):
    x = np.random.default_rng(0).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    source = source_of(arrays, x, layout="one channel")
    sizes = [len(picture.uri) for picture in thumbnails(source, range(100))]
    found = thumbnails(source, range(100), budget=sum(sizes[:70]))
    assert [picture is None for picture in found] == [False] * 70 + [True] * 30


@pytest.mark.parametrize("shape", [(20,), (6, 5, 7), (1, 28, 1), (2, 3, 4, 5)])
def test_what_has_not_the_shape_of_a_picture_is_refused(arrays, shape):
    with pytest.raises(FsdtoolError, match="are no pictures"):
        thumbnails(source_of(arrays, np.zeros((2, *shape), dtype=np.float32)), [0])


# With a summary


@pytest.fixture(scope="module")
def here(sample_paths, sample_data, tmp_path_factory) -> Path:
    """A folder with a summary whose data set is at hand."""
    folder = tmp_path_factory.mktemp("review")
    shutil.copy(sample_data / "train.npz", folder)
    command = f"summarize -q --no-weights --model {sample_data}/model.py:mlp --checkpoint {sample_data}/mlp.pt"
    assert main([*command.split(), "--data", f"{folder}/train.npz", "-o", f"{folder}/mlp.h5"]) == 0
    return folder


def run(here: Path, *arguments: str) -> Reader:
    assert main(["find-mislabeled", "-q", f"{here}/mlp.h5", "--report", f"{here}/page.html", *arguments]) == 0
    return Reader((here / "page.html").read_text("utf-8"))


def test_the_report_shows_the_rows_asked_for_with_pictures(here, capsys):
    found = run(here, "--top", "7")
    listed = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert found.of("th", "example")[1:] == [line[0] for line in listed]
    assert found.of("td", "given") == [line[1] for line in listed]
    images = np.load(here / "train.npz")["x"]
    for line, image in zip(listed, found.all("img"), strict=True):
        assert np.array_equal(pixels(Picture(image["src"])), images[int(line[0])])


def test_the_report_lists_what_is_flagged(here):
    summary = load(here / "mlp.h5")
    expected = find_mislabeled(summary)
    found = run(here)
    assert len(found.of("td", "rank")) == expected.flagged
    assert f"{expected.flagged} score above the cut-off" in found.of("p", "lead")[0]
    text = found.of("header")[0]
    for part in (summary.identity.checkpoint_sha256[:12], "1,437", "model.py:mlp", "train.npz"):
        assert part in text


def test_a_huge_list_is_cut_and_says_so(here, monkeypatch):
    monkeypatch.setattr("fsdtool.report.mislabel_page.LARGEST_PAGE", 5)
    made = review(find_mislabeled(load(here / "mlp.h5"), everything=True))
    assert [row["rank"] for row in made.rows] == [1, 2, 3, 4, 5]
    assert made.remarks[0].startswith("The 5 most suspicious of the 1,437 rows asked for")
    assert LARGEST_PAGE == 2000


def no_pictures(folder: Path, spec: str | None = None) -> str:
    pictures, remarks = pictures_of(load(folder / "mlp.h5"), [0, 1], report_data=spec)
    assert pictures == []
    (remark,) = remarks
    return remark


def test_without_the_data_the_page_says_why_there_are_no_pictures(here, tmp_path):
    shutil.copy(here / "mlp.h5", tmp_path)
    data = here / "train.npz"
    data.rename(tmp_path / "away.npz")
    try:
        assert "does not exist" in no_pictures(tmp_path)
        found = run(here, "--top", "3")
        assert not found.all("img")
        assert "; name the data by --report-data." in found.of("main")[0]
        assert len(run(here, "--top", "3", "--report-data", f"{tmp_path}/away.npz").all("img")) == 3
    finally:
        (tmp_path / "away.npz").rename(data)


def test_data_that_has_changed_since_is_not_shown(here, tmp_path):
    shutil.copy(here / "mlp.h5", tmp_path)
    data = dict(np.load(here / "train.npz"))
    shutil.copy(here / "train.npz", tmp_path / "kept.npz")
    data["x"] = data["x"].copy()
    data["x"][1400, 0, 0] ^= 1
    np.savez(here / "train.npz", **data)
    try:
        assert "is no longer the data that was summarized; name the data by `report_data`" in no_pictures(tmp_path)
    finally:
        shutil.copy(tmp_path / "kept.npz", here / "train.npz")


@pytest.mark.parametrize("spec", ["evil.py:data", "package.module:data", "torchvision:MNIST?root=/tmp/x"])
def test_a_summary_never_makes_the_report_run_code(here, edited, monkeypatch, tmp_path, spec):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    edited(here / "mlp.h5", identity(lambda parts: parts["data"].update(spec=spec)), "mlp.h5")
    assert "is opened by code or with arguments; name the data by `report_data`" in no_pictures(tmp_path)


def test_other_data_given_for_the_pictures_is_refused(here, sample_data, capsys):
    page = here / "none.html"
    arguments = ["--report", str(page), "--report-data", f"{sample_data}/test.npz"]
    assert main(["find-mislabeled", f"{here}/mlp.h5", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "has 360 examples and the summary 1437; give the data summarized" in err
    assert not page.exists()


def test_report_data_needs_report(here, capsys):
    assert main(["find-mislabeled", f"{here}/mlp.h5", "--report-data", "x.npz"]) == 2
    assert "--report-data x.npz is given without --report" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["page.txt", "missing/page.html"])
def test_a_report_that_cannot_be_written_is_refused_first(here, name, capsys):
    assert main(["find-mislabeled", f"{here}/mlp.h5", "--report", f"{here}/{name}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"--report '{here}/{name}'" in err


def test_a_folder_of_images_with_evil_names(tmp_path, capsys):
    random = np.random.default_rng(0)
    classes = ['cat "tabby" & friends', "<b>dog's", "חתול"]
    for number, name in enumerate(classes):
        (tmp_path / "photos" / name / "<script>alert(1)<").mkdir(parents=True)
        for i in range(12):
            image = random.integers(0, 80, (6, 6, 3), dtype=np.uint8)
            image[:, :, number] += 120
            file = "<script>alert(1)</script>.png" if i == 0 else f"{i}.png"
            Image.fromarray(image).save(tmp_path / "photos" / name / file)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(108, 9), nn.ReLU(), nn.Linear(9, 3))\n"
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 9), nn.ReLU(), nn.Linear(9, 3))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    command = f"summarize -q --model {tmp_path}/net.py:net --checkpoint {tmp_path}/net.pt --data {tmp_path}/photos"
    assert main([*command.split(), "-o", f"{tmp_path}/mlp.h5"]) == 0
    found = run(tmp_path, "--all")
    assert len(found.all("img")) == 36
    names = found.of("th", "example")[1:]
    assert {f"{name}/<script>alert(1)</script>.png" for name in classes} <= set(names)
    assert set(found.of("td", "given")) == set(classes)
    assert len(found.of("script")) == 1
