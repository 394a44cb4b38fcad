"""The page about suspicious labels or targets: one HTML file that needs nothing but itself.

A `Page` holds plain text, numbers and pictures as data URIs.  This module prepares what is shown, as plain values
still; Jinja's templates beside it, in templates/, lay it out.  Names, ids and labels come from other people's files:
the templates escape whatever they are given, none of it enters the script or the style sheet, and a content security
policy lets only these two run, by their hashes.  Without the script the page is whole; it adds sorting and a filter.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fsdtool.report import charts
from fsdtool.report.page_text import count, pieces, share, shorten, visible
from fsdtool.util.atomic_files import write_whole

LARGEST_LIST = 40  # bars in one picture
PAIRS = 8  # the largest entries of the matrix, given as text
SHORT_NAME, LONGEST_NAME = 8, 24


@dataclass(frozen=True)
class Picture:
    """A picture of one example: a data URI, and whether it has so few pixels that they should stay sharp."""

    uri: str
    tiny: bool = False


@dataclass(frozen=True)
class Page:
    """What the page says.  rows: mappings with the columns of find-mislabeled, most suspicious first.

    pictures: one per row, or None where there is none; empty for a page without pictures.  remarks: sentences on
    the rows and pictures, such as why some are missing.  histogram: counts (B,) and edges (B + 1,) of all scores;
    cut: the score above which a label is flagged.  matrix: estimated numbers (classes, classes) of labels by given
    and true class, with the names of the classes, or None.  weights: name and weight of each layer.  reading: terms
    and what they mean.  kind: 'label', or 'target' for rows with the columns of a regression.
    """

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    rows: Sequence[Mapping[str, Any]]
    pictures: Sequence[Picture | None]
    remarks: Sequence[str]
    histogram: tuple[np.ndarray, np.ndarray]
    cut: float
    matrix: np.ndarray | None
    names: Sequence[str]
    weights: Sequence[tuple[str, float]]
    reading: Sequence[tuple[str, str]]
    kind: str = "label"


@dataclass(frozen=True)
class Pair:
    """A given and a true class, and for how many labels they stand."""

    given: str
    true: str
    count: str


@dataclass(frozen=True)
class Figure:
    """A picture with its words, and below it the largest entries as text."""

    title: str
    caption: str
    chart: charts.Chart
    pairs: Sequence[Pair] = ()
    short_pairs: bool = False


@dataclass(frozen=True)
class Column:
    """name: of its cells' class.  first_order: how a first click sorts it; empty for one that is not sorted by."""

    name: str
    title: str
    first_order: str = ""


@dataclass(frozen=True)
class Sureness:
    """How sure the suggestion is: the class of the cell, the number to sort by, and what is shown."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class Row:
    """One example as the page shows it.  bar: its score in percent of the bar's width."""

    rank: int
    picture: Picture | None
    id: str
    given: str
    suggested: str
    score: float
    bar: float
    sureness: Sureness


def write_page(page: Page, path: Path) -> int:
    """Write the page to `path`, which appears when it is complete; its size in bytes.

    Raises FsdtoolError where the file cannot be written.
    """
    content = render_page(page).encode("utf-8", "xmlcharrefreplace")
    write_whole(path, content, "the report")
    return len(content)


def render_page(page: Page) -> str:
    """The page as HTML.  The same page gives the same text."""
    folder = files("fsdtool.report").joinpath("templates")
    style, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src {_hash(style)}; "
    policy += f"script-src {_hash(script)}"
    pictured = any(page.pictures)
    pictures = page.pictures if pictured else [None] * len(page.rows)
    return (
        templates()
        .get_template("page.html")
        .render(
            page=page,
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            figures=_figures(page),
            pictured=pictured,
            columns=_columns(page.kind, pictured),
            rows=[_row(row, picture, page.kind) for row, picture in zip(page.rows, pictures, strict=True)],
        )
    )


def templates() -> Environment:
    """The templates, in which every value becomes visible text before it is escaped; an unknown one is an error."""
    found = Environment(
        loader=PackageLoader("fsdtool.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(pieces=pieces, share=share, short=_short)
    return found


def _short(name: str) -> str:
    return shorten(name, LONGEST_NAME)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _figures(page: Page) -> list[Figure]:
    counts, edges = page.histogram
    above = int(counts[edges[:-1] >= page.cut - 1e-9].sum())
    label = f"Histogram of {int(counts.sum()):,} scores; about {above:,} lie above the cut-off {page.cut:.2f}"
    found = [
        Figure(
            f"Scores of all {page.kind}s",
            f"How many {page.kind}s have which score, on a logarithmic axis.",
            charts.histogram(counts, edges, page.cut, label),
        )
    ]
    if page.matrix is not None:
        found.append(_wrong_by_class(page.matrix, page.names))
    if page.weights:
        found.append(_layer_weights(page.weights))
    return found


def _wrong_by_class(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """The noise matrix (K, K) as a picture, and its largest entries as text."""
    wrong = matrix * (1 - np.eye(len(matrix)))
    largest = [divmod(i, len(matrix)) for i in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS].tolist()]
    kept = len(charts.most_involved(matrix))
    part = f" The {kept} classes with most of them, of {len(matrix)}." if kept < len(matrix) else ""
    total = count(float(wrong.sum()))
    label = f"Estimated wrong labels by given and true class, {total} in all; the largest follow as text"
    return Figure(
        "Wrong labels by class",
        f"Estimated number of wrong labels, given class by true class.{part}",
        charts.matrix(matrix, names, label),
        [Pair(names[i], names[j], count(float(wrong[i, j]))) for i, j in largest if wrong[i, j] >= 0.5],
        max(map(len, names), default=0) <= SHORT_NAME,
    )


def _layer_weights(weights: Sequence[tuple[str, float]]) -> Figure:
    shown, caption = weights, "How much the evidence of each layer counts, first layer on top."
    if len(weights) > LARGEST_LIST:
        shown = sorted(weights, key=lambda pair: -pair[1])[:LARGEST_LIST]
        caption = f"How much the evidence of each layer counts; the {LARGEST_LIST} heaviest of {len(weights)}."
    names, values = [name for name, _ in shown], [value for _, value in shown]
    label = "Weights of layers: " + ", ".join(f"{name} {value:.2f}" for name, value in shown)
    return Figure("Layer weights", caption, charts.bars(values, names, label))


def _columns(kind: str, pictured: bool) -> list[Column]:
    return [
        Column("rank", "Rank", "ascending"),
        *([Column("picture", "Picture")] if pictured else []),
        Column("example", "Example", "ascending"),
        Column("given", f"Given {kind}", "ascending"),
        Column("suggested", f"Suggested {kind}", "ascending"),
        Column("score", "Score", "descending"),
        Column("confidence", "Confidence", "descending")
        if kind == "label"
        else Column("error", "Standard error", "ascending"),
    ]


def _row(row: Mapping[str, Any], picture: Picture | None, kind: str) -> Row:
    score = float(row["score"])
    if kind == "label":
        confidence = float(row["confidence"])
        sureness = Sureness("confidence", confidence, share(confidence))
    else:
        error = float(row["standard_error"])
        sureness = Sureness("error", error, f"{error:.3g}")
    return Row(
        rank=int(row["rank"]),
        picture=picture,
        id=str(row["id"]),
        given=_label(row[f"given_{kind}"]),
        suggested=_label(row[f"suggested_{kind}"]),
        score=score,
        bar=100 * min(max(score, 0.0), 1.0),
        sureness=sureness,
    )


def _label(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
