"""Small pictures of numbers: a histogram, a heat map, bars. Numbers and names in, the shapes of an SVG out.

Nothing here is markup: templates/chart.html writes the shapes and escapes their texts. Colours and type come from the
page's style sheet through class names, so that a picture follows light, dark and print. Lengths are in CSS pixels at
a width of 360. Every name has its full text in a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fsdtool.report.page_text import count, shorten

WIDTH = 360
LETTER = 6.3  # width of a letter of the small type
LARGEST_MATRIX = 30  # classes; beyond that a cell would be smaller than a letter


@dataclass(frozen=True)
class Shape:
    """One element of a picture: its tag, its attributes, its text and what a pointer over it shows."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    tooltip: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture of so many pixels.  label: the picture in words."""

    width: float
    height: float
    label: str
    shapes: Sequence[Shape]


def histogram(counts: np.ndarray, edges: np.ndarray, cut: float, label: str) -> Chart:
    """Bars of counts (B,) between edges (B + 1,) on a logarithmic axis, and a line at `cut`.

    Bars that begin at the cut or above it have the class "hot".  `label` says the picture in words.
    """
    span = float(edges[-1] - edges[0]) or 1.0
    decades = max(math.ceil(math.log10(max(int(counts.max()), 1) + 1)), 1)
    left, top, height = 8 + LETTER * max(len(f"{10**decades:,}"), 5), 22, 190
    across = WIDTH - left - 8

    def x(value: float) -> float:
        return left + across * (value - float(edges[0])) / span

    def y(examples: float) -> float:
        return top + height * (1 - math.log10(examples + 1) / math.log10(10**decades + 1))

    shapes = []
    for power in range(decades + 1):
        shapes.append(_line("grid", left, y(10**power), left + across, y(10**power)))
        shapes.append(_text(left - 6, y(10**power) + 4, f"{10**power:,}", "end"))
    for examples, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if examples:
            kind = "hot" if low >= cut - 1e-9 else "cool"
            box = (x(low) + 0.5, y(examples), max(x(high) - x(low) - 1, 0.5), top + height - y(examples))
            shapes.append(_box(kind, *box, f"{low:.2f} to {high:.2f}: {examples:,}"))
    shapes.append(_line("axis", left, top + height, left + across, top + height))
    for tick in np.linspace(edges[0], edges[-1], 5).tolist():
        shapes.append(_text(x(tick), top + height + 16, f"{tick:.2g}", "middle"))
    if edges[0] <= cut <= edges[-1]:
        shapes.append(_line("cut", x(cut), top - 6, x(cut), top + height))
        anchor = "end" if cut > (edges[0] + edges[-1]) / 2 else "start"
        shift = -5 if anchor == "end" else 5
        shapes.append(_text(x(cut) + shift, top - 9, f"cut-off {cut:.2f}", anchor, "strong"))
    return Chart(WIDTH, top + height + 24, label, shapes)


def matrix(values: np.ndarray, names: Sequence[str], label: str) -> Chart:
    """A heat map of values (K, K): rows are given labels, columns true ones; the diagonal is left out."""
    kept = most_involved(values)
    values, names = values[np.ix_(kept, kept)], [names[i] for i in kept]
    short = [shorten(name, 12) for name in names]
    longest, size = max(map(len, short), default=1), len(names)
    margin = 30 + LETTER * longest
    cell = min((WIDTH - margin - 2) / max(size, 1), 56.0)
    upright = longest * LETTER < cell
    top = 36.0 if upright else margin + 8
    shapes = [_text(margin + cell * size / 2, 12, "true", "middle")]
    shapes.append(_turned(11, top + cell * size / 2, "given", anchor="middle"))
    for i, (name, full) in enumerate(zip(short, names, strict=True)):
        middle = (i + 0.5) * cell
        shapes.append(_text(margin - 6, top + middle + 4, name, "end", tooltip=full))
        if upright:
            shapes.append(_text(margin + middle, top - 6, name, "middle", tooltip=full))
        else:
            shapes.append(_turned(margin + middle + 4, top - 6, name, tooltip=full))
        shapes.append(_box("same", margin + i * cell + 0.5, top + i * cell + 0.5, cell - 1, cell - 1))
    shapes += _heat(values, names, margin, top, cell)
    shapes.append(_box("frame", margin, top, cell * size, cell * size))
    return Chart(max(margin + cell * size + 2, 60), top + cell * size + 2, label, shapes)


def _heat(values: np.ndarray, names: Sequence[str], margin: float, top: float, cell: float) -> list[Shape]:
    """The coloured cells of values (K, K) off its diagonal, of `cell` pixels from (margin, top) on."""
    others = ~np.eye(len(values), dtype=bool)
    largest = max(float(values[others].max(initial=0.0)), 1e-12)
    shapes = []
    for i, j in np.argwhere((values >= 0.05) & others).tolist():
        value = float(values[i, j])
        tooltip = f"given {names[i]}, true {names[j]}: {count(value)}"
        box = (margin + j * cell + 0.5, top + i * cell + 0.5, cell - 1, cell - 1)
        shapes.append(_box("heat", *box, tooltip, opacity=0.06 + 0.5 * math.sqrt(value / largest)))
        if cell >= LETTER * len(f"{value:.0f}") + 3 and value >= 0.5:
            place = (margin + (j + 0.5) * cell, top + (i + 0.5) * cell + 4)
            shapes.append(_text(*place, f"{value:.0f}", "middle", "strong"))
    return shapes


def most_involved(values: np.ndarray) -> list[int]:
    """The classes of values (K, K) with most off its diagonal, at most LARGEST_MATRIX, in their own order."""
    off = values * (1 - np.eye(len(values)))
    return sorted(np.argsort(-(off.sum(0) + off.sum(1)), kind="stable")[:LARGEST_MATRIX].tolist())


def bars(values: Sequence[float], names: Sequence[str], label: str) -> Chart:
    """One horizontal bar per value, its name above it on the left and the value on the right."""
    largest, pitch = max([*values, 1e-12]), 30
    shapes = []
    for i, (value, name) in enumerate(zip(values, names, strict=True)):
        y = i * pitch
        shapes.append(_text(0, y + 12, shorten(name, 44), "start", tooltip=name))
        shapes.append(_text(WIDTH, y + 12, f"{value:.2f}", "end", "strong"))
        shapes.append(_box("track", 0, y + 18, WIDTH, 5))
        shapes.append(_box("cool", 0, y + 18, WIDTH * max(value, 0) / largest, 5))
    return Chart(WIDTH, pitch * len(values), label, shapes)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Shape:
    return Shape("line", {"class": kind} | _lengths(x1=x1, y1=y1, x2=x2, y2=y2))


def _box(
    kind: str, x: float, y: float, width: float, height: float, tooltip: str = "", opacity: float | None = None
) -> Shape:
    faint = {} if opacity is None else {"fill-opacity": f"{opacity:.2f}"}
    lengths = _lengths(x=x, y=y, width=width, height=height)
    return Shape("rect", {"class": kind} | lengths | faint, tooltip=tooltip)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "small", tooltip: str = "") -> Shape:
    attributes = {"class": kind} | _lengths(x=x, y=y) | {"text-anchor": anchor}
    return Shape("text", attributes, text, tooltip if tooltip != text else "")


def _turned(x: float, y: float, text: str, anchor: str = "", tooltip: str = "") -> Shape:
    """Text that runs upward from (x, y)."""
    attributes = {"class": "small", "transform": f"translate({x:.1f} {y:.1f}) rotate(-90)"}
    return Shape("text", attributes | ({"text-anchor": anchor} if anchor else {}), text, tooltip)


def _lengths(**values: float) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in values.items()}
