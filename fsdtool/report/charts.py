"""Small pictures as inline SVG: a histogram, a heat map, bars. Numbers and names in, one string of markup out.

Colours and type come from the page's style sheet through class names, so that a picture follows light, dark and
print. Lengths are in CSS pixels at a width of 360. Every name is escaped, and has its full text in a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fsdtool.report.markup import count, escape, shorten

WIDTH = 360
LETTER = 6.3  # width of a letter of the small type
LARGEST_MATRIX = 30  # classes; beyond that a cell would be smaller than a letter


def histogram(counts: np.ndarray, edges: np.ndarray, cut: float, label: str) -> str:
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

    parts = []
    for power in range(decades + 1):
        parts.append(_line("grid", left, y(10**power), left + across, y(10**power)))
        parts.append(_text(left - 6, y(10**power) + 4, f"{10**power:,}", "end"))
    for examples, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if examples:
            kind = "hot" if low >= cut - 1e-9 else "cool"
            box = (x(low) + 0.5, y(examples), max(x(high) - x(low) - 1, 0.5), top + height - y(examples))
            parts.append(_box(kind, *box, f"{low:.2f} to {high:.2f}: {examples:,}"))
    parts.append(_line("axis", left, top + height, left + across, top + height))
    for tick in np.linspace(edges[0], edges[-1], 5).tolist():
        parts.append(_text(x(tick), top + height + 16, f"{tick:.2g}", "middle"))
    if edges[0] <= cut <= edges[-1]:
        parts.append(_line("cut", x(cut), top - 6, x(cut), top + height))
        anchor = "end" if cut > (edges[0] + edges[-1]) / 2 else "start"
        shift = -5 if anchor == "end" else 5
        parts.append(_text(x(cut) + shift, top - 9, f"cut-off {cut:.2f}", anchor, "strong"))
    return _svg(top + height + 24, label, parts)


def matrix(values: np.ndarray, names: Sequence[str], label: str) -> str:
    """A heat map of values (K, K): rows are given labels, columns true ones; the diagonal is left out."""
    kept = most_involved(values)
    values, names = values[np.ix_(kept, kept)], [names[i] for i in kept]
    short = [shorten(name, 12) for name in names]
    margin = 30 + LETTER * max((len(name) for name in short), default=1)
    size = len(names)
    cell = min((WIDTH - margin - 2) / max(size, 1), 56.0)
    upright = max(map(len, short), default=1) * LETTER < cell
    top = 36.0 if upright else margin + 8
    largest = max(float((values * (1 - np.eye(size))).max(initial=0.0)), 1e-12)
    parts = [
        _text(margin + cell * size / 2, 12, "true", "middle"),
        f'<text class="small" transform="translate(11 {top + cell * size / 2:.1f}) rotate(-90)" '
        'text-anchor="middle">given</text>',
    ]
    for i, name in enumerate(short):
        middle = (i + 0.5) * cell
        parts.append(_text(margin - 6, top + middle + 4, name, "end", tooltip=names[i]))
        if upright:
            parts.append(_text(margin + middle, top - 6, name, "middle", tooltip=names[i]))
        else:
            turned = f"translate({margin + middle + 4:.1f} {top - 6:.1f}) rotate(-90)"
            title = f"<title>{escape(names[i])}</title>"
            parts.append(f'<text class="small" transform="{turned}">{title}{escape(name)}</text>')
        parts.append(_box("same", margin + i * cell + 0.5, top + i * cell + 0.5, cell - 1, cell - 1))
    for i, j in np.argwhere((values >= 0.05) & ~np.eye(size, dtype=bool)).tolist():
        value = float(values[i, j])
        tooltip = f"given {names[i]}, true {names[j]}: {count(value)}"
        box = (margin + j * cell + 0.5, top + i * cell + 0.5, cell - 1, cell - 1)
        parts.append(_box("heat", *box, tooltip, opacity=0.06 + 0.5 * math.sqrt(value / largest)))
        if cell >= LETTER * len(f"{value:.0f}") + 3 and value >= 0.5:
            place = (margin + (j + 0.5) * cell, top + (i + 0.5) * cell + 4)
            parts.append(_text(*place, f"{value:.0f}", "middle", "strong"))
    parts.append(
        f'<rect class="frame" x="{margin:.1f}" y="{top:.1f}" width="{cell * size:.1f}" height="{cell * size:.1f}"/>'
    )
    return _svg(top + cell * size + 2, label, parts, width=max(margin + cell * size + 2, 60))


def most_involved(values: np.ndarray) -> list[int]:
    """The classes of values (K, K) with most off its diagonal, at most LARGEST_MATRIX, in their own order."""
    off = values * (1 - np.eye(len(values)))
    return sorted(np.argsort(-(off.sum(0) + off.sum(1)), kind="stable")[:LARGEST_MATRIX].tolist())


def bars(values: Sequence[float], names: Sequence[str], label: str) -> str:
    """One horizontal bar per value, its name above it on the left and the value on the right."""
    largest, pitch = max([*values, 1e-12]), 30
    parts = []
    for i, (value, name) in enumerate(zip(values, names, strict=True)):
        y = i * pitch
        parts.append(_text(0, y + 12, shorten(name, 44), "start", tooltip=name))
        parts.append(_text(WIDTH, y + 12, f"{value:.2f}", "end", "strong"))
        parts.append(_box("track", 0, y + 18, WIDTH, 5))
        parts.append(_box("cool", 0, y + 18, WIDTH * max(value, 0) / largest, 5))
    return _svg(pitch * len(values), label, parts)


def bar(share: float) -> str:
    """A bar for one number between 0 and 1, to stand beside the number."""
    return (
        '<svg class="bar" viewBox="0 0 100 5" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="5"/>'
        f'<rect class="hot" width="{100 * min(max(share, 0.0), 1.0):.1f}" height="5"/></svg>'
    )


def _svg(height: float, label: str, parts: Sequence[str], width: float = WIDTH) -> str:
    head = f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'{head} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _box(
    kind: str, x: float, y: float, width: float, height: float, tooltip: str = "", opacity: float | None = None
) -> str:
    faint = "" if opacity is None else f' fill-opacity="{opacity:.2f}"'
    box = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{faint}'
    return f"{box}><title>{escape(tooltip)}</title></rect>" if tooltip else f"{box}/>"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "small", tooltip: str = "") -> str:
    title = f"<title>{escape(tooltip)}</title>" if tooltip and tooltip != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{title}{escape(text)}</text>'
