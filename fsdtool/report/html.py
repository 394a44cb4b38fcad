"""The page of `find-mislabeled --report`: one HTML file that needs nothing but itself.

A `Page` holds plain text, numbers and pictures as data URIs; `write_page` lays them out.  Names, ids and labels come
from other people's files: everywhere they are escaped, none enters the script or the style sheet, and a content
security policy lets only these two run, by their hashes.  Without the script the page is whole; it adds sorting and a
filter.  page.css and page.js, beside this module, are put into the page as they are.
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

from fsdtool.report import charts
from fsdtool.report.markup import count, escape, isolated, shorten
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


def write_page(page: Page, path: Path) -> int:
    """Write the page to `path`, which appears when it is complete; its size in bytes.

    Raises FsdtoolError where the file cannot be written.
    """
    content = render_page(page).encode("utf-8", "xmlcharrefreplace")
    write_whole(path, content, "the report")
    return len(content)


def render_page(page: Page) -> str:
    """The page as HTML.  The same page gives the same text."""
    style, script = (files("fsdtool.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src {_hash(style)}; "
    policy += f"script-src {_hash(script)}"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(page.title)}</title>",
            f'<style>{style}</style>\n</head>\n<body class="still">',
            _header(page),
            f"<main>\n{_figures(page)}\n{_examples(page)}\n</main>",
            _footer(page),
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _header(page: Page) -> str:
    facts = "\n".join(f"<div><dt>{escape(term)}</dt><dd>{isolated(value)}</dd></div>" for term, value in page.facts)
    return (
        f'<header>\n<h1>{isolated(page.title)}</h1>\n<p class="lead">{escape(page.lead)}</p>\n'
        f'<dl class="facts">\n{facts}\n</dl>\n</header>'
    )


def _figures(page: Page) -> str:
    counts, edges = page.histogram
    above = int(counts[edges[:-1] >= page.cut - 1e-9].sum())
    label = f"Histogram of {int(counts.sum()):,} scores; about {above:,} lie above the cut-off {page.cut:.2f}"
    found = [
        _figure(
            f"Scores of all {page.kind}s",
            f"How many {page.kind}s have which score, on a logarithmic axis.",
            charts.histogram(counts, edges, page.cut, label),
        )
    ]
    if page.matrix is not None:
        found.append(_noise(page.matrix, page.names))
    if page.weights:
        shown = sorted(page.weights, key=lambda pair: -pair[1])[:LARGEST_LIST] if _long(page) else page.weights
        caption = "How much the evidence of each layer counts, first layer on top."
        if _long(page):
            caption = f"How much the evidence of each layer counts; the {LARGEST_LIST} heaviest of {len(page.weights)}."
        names, values = [name for name, _ in shown], [value for _, value in shown]
        label = "Weights of layers: " + ", ".join(f"{name} {value:.2f}" for name, value in shown)
        found.append(_figure("Layer weights", caption, charts.bars(values, names, label)))
    return '<section class="figures" aria-label="Overview">\n' + "\n".join(found) + "\n</section>"


def _long(page: Page) -> bool:
    return len(page.weights) > LARGEST_LIST


def _noise(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The matrix as a picture, and its largest entries as text."""
    wrong = matrix * (1 - np.eye(len(matrix)))
    largest = [divmod(i, len(matrix)) for i in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS].tolist()]
    pairs = "\n".join(
        f'<li><span title="{escape(f"{names[i]} → {names[j]}")}">{_short(names[i])} → {_short(names[j])}</span>'
        f'<span class="count">{count(float(wrong[i, j]))}</span></li>'
        for i, j in largest
        if wrong[i, j] >= 0.5
    )
    kept = len(charts.most_involved(matrix))
    part = f" The {kept} classes with most of them, of {len(matrix)}." if kept < len(matrix) else ""
    total = count(float(wrong.sum()))
    label = f"Estimated wrong labels by given and true class, {total} in all; the largest follow as text"
    body = charts.matrix(matrix, names, label)
    if pairs:
        short = " short" if max(map(len, names)) <= SHORT_NAME else ""
        body += f'\n<ol class="pairs{short}" aria-label="Most frequent errors: given and true label">\n{pairs}\n</ol>'
    return _figure("Wrong labels by class", f"Estimated number of wrong labels, given class by true class.{part}", body)


def _short(name: str) -> str:
    return isolated(shorten(name, LONGEST_NAME))


def _figure(title: str, caption: str, body: str) -> str:
    return f"<figure>\n<h2>{escape(title)}</h2>\n<figcaption>{escape(caption)}</figcaption>\n{body}\n</figure>"


def _examples(page: Page) -> str:
    pictured = any(page.pictures)
    picture = '<th scope="col" role="columnheader" class="picture">Picture</th>' if pictured else ""
    columns = [
        ("rank", "ascending", "Rank"),
        ("example", "ascending", "Example"),
        ("given", "ascending", f"Given {page.kind}"),
        ("suggested", "ascending", f"Suggested {page.kind}"),
        ("score", "descending", "Score"),
        ("confidence", "descending", "Confidence")
        if page.kind == "label"
        else ("error", "ascending", "Standard error"),
    ]
    heads = [
        f'<th scope="col" role="columnheader" class="{name}" data-sort="{first}">{title}</th>'
        for name, first, title in columns
    ]
    pictures = page.pictures if pictured else [None] * len(page.rows)
    rows = "\n".join(_row(row, shown, pictured, page.kind) for row, shown in zip(page.rows, pictures, strict=True))
    remarks = "".join(f'<p class="soft">{escape(text)}</p>\n' for text in page.remarks)
    kind = ' class="pictured"' if pictured else ""
    if not page.rows:
        return f'<section aria-labelledby="examples">\n<h2 id="examples">Examples</h2>\n{remarks}</section>'
    return (
        f'<section aria-labelledby="examples">\n<h2 id="examples">Examples</h2>\n{remarks}'
        '<div class="tools" hidden><label for="filter">Filter</label>'
        '<input id="filter" type="search" placeholder="a name, a label, or 4 -> 9" '
        'autocomplete="off" spellcheck="false">'
        '<output for="filter" class="soft" aria-live="polite"></output></div>\n'
        f'<table role="table"{kind} aria-labelledby="examples">\n'
        f'<thead role="rowgroup"><tr role="row">{heads[0]}{picture}{"".join(heads[1:])}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{rows}\n</tbody>\n</table>\n</section>'
    )


def _row(row: Mapping[str, Any], picture: Picture | None, pictured: bool, kind: str) -> str:
    cells = [f'<td role="cell" class="rank" data-value="{int(row["rank"])}">{int(row["rank"])}</td>']
    if pictured:
        cells.append(f'<td role="cell" class="picture">{_image(picture, row["id"])}</td>')
    score = float(row["score"])
    cells += [
        f'<th scope="row" role="rowheader" class="example mono">{isolated(row["id"])}</th>',
        f'<td role="cell" class="given">{isolated(_label(row[f"given_{kind}"]))}</td>',
        f'<td role="cell" class="suggested">{isolated(_label(row[f"suggested_{kind}"]))}</td>',
        f'<td role="cell" class="score" data-value="{score:.7g}"><span class="value">{_share(score)}</span>'
        f"{charts.bar(score)}</td>",
        _sureness(row, kind),
    ]
    return f'<tr role="row">{"".join(cells)}</tr>'


def _sureness(row: Mapping[str, Any], kind: str) -> str:
    """The cell that says how sure the suggestion is."""
    if kind == "label":
        name, value = "confidence", float(row["confidence"])
        text = _share(value)
    else:
        name, value = "error", float(row["standard_error"])
        text = f"{value:.3g}"
    return f'<td role="cell" class="{name}" data-value="{value:.7g}">{text}</td>'


def _label(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _share(value: float) -> str:
    """Three digits, of which the last is never rounded up to certainty."""
    return f"{min(value, 0.999):.3f}" if value < 1 else "1.000"


def _image(picture: Picture | None, name: Any) -> str:
    if picture is None:
        return ""
    tiny = ' class="tiny"' if picture.tiny else ""
    return f'<img{tiny} src="{escape(picture.uri)}" width="64" height="64" alt="{escape(f"picture of {name}")}">'


def _footer(page: Page) -> str:
    terms = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in page.reading)
    return f"<footer>\n<h2>How to read this page</h2>\n<dl>\n{terms}\n</dl>\n</footer>"
