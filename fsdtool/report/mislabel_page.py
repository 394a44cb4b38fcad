"""What the page about suspicious labels or targets says: the findings in words, and pictures of the examples.

Pictures need the data.  Data that the user names must have the ids of the summary.  Otherwise the data set that was
summarized is looked for where it was: it counts only when its content has the fingerprint of the summary, and is
never opened by running code, since a summary may come from somebody else.  Without data the page says why.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import islice

import numpy as np

from fsdtool import __version__
from fsdtool.data.source import DataSource, Fingerprint
from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.find import Mislabeled
from fsdtool.mislabel.multilabel.label_errors import LabelErrors
from fsdtool.mislabel.regression.target_errors import TargetErrors
from fsdtool.mislabel.suspects import Suspects
from fsdtool.report.html import Page, Picture
from fsdtool.report.page_text import count
from fsdtool.report.thumbnails import BUDGET, thumbnails
from fsdtool.summary.data_like import load_like
from fsdtool.summary.reader import Summary
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")

LARGEST_PAGE = 2000  # rows
BINS = 40
BATCH = 1024
# Anything but a file, a folder, or a data set of torchvision in its usual place.
_RUNS_CODE = re.compile(r"(\.py|^[\w.]+):\w|\?")
READING = (
    (
        "Score",
        "Between 0 and 1, higher is more suspicious: the probability that the label is wrong. It follows from how "
        "strongly the layers of the network, weighted by how well they agree, prefer another class, and from how often "
        "that class is taken for the given one. Labels above the cut-off are flagged.",
    ),
    (
        "Confidence",
        "How sure the suggested label is among all labels but the given one. "
        "A high score with a low confidence: the label is probably wrong, and what is right is unclear.",
    ),
    (
        "Wrong labels",
        "The number in all and the noise matrix are estimated from the input itself and from layers with too few "
        "parameters before them to have memorised labels, or else from the earliest layer. Where these tell the "
        "classes apart badly, or have memorised labels, they are rough.",
    ),
    ("Layer weights", "A layer that has memorised the given labels agrees with no other layer and counts little."),
    (
        "Then",
        "Look before correcting: rare but correct examples are suspicious too, and some have two right labels.",
    ),
)
CONTRADICTED = {
    "label": "The estimated share of wrong labels is contradicted by the layers together: their evidence is for the "
    "given label of most of those counted as wrong. Do not trust the flags.",
    "target": "The share of wrong targets cannot be told: right targets lie off by almost as much as wrong ones would. "
    "Trust the order more than the flags.",
}
AMBIGUOUS = (
    "Noise between classes explains few of the labels that the layers together are against. The others are ambiguous "
    "examples, or labels that are wrong near class boundaries, which look the same: the range counts all that may be "
    "wrong. The order holds; the flags leave them out."
)
TARGET_READING = (
    (
        "Score",
        "Between 0 and 1, higher is more suspicious: the probability that the target is an outlier. Targets above the "
        "cut-off are flagged. Where an example has several target values, its most suspicious one is shown.",
    ),
    (
        "Suggested target",
        "What the layers of the network predict from all other examples. Right targets like it lie about one standard "
        "error off it.",
    ),
    (
        "Wrong targets",
        "The number in all is an estimate. How many of the far targets are right is in the tails of right ones, which "
        "are not known: the range says what other tails and other kinds of wrong targets would give.",
    ),
    ("Layer weights", "The better a layer predicts targets that it was not fitted to, the more it counts."),
    ("Then", "Look before correcting: rare but correct examples are suspicious too."),
)


SEVERAL_READING = (
    (
        "Score",
        "Between 0 and 1, higher is more suspicious: the probability that the label is flipped. It follows from how "
        "surely the layers of the network predict the other value from all other examples, and from how often labels "
        "are flipped. Labels above the cut-off are flagged.",
    ),
    ("Confidence", "The probability of the suggested value by the layers alone, however rarely labels are flipped."),
    (
        "Wrong labels",
        "The number in all is estimated from how often the surest predictions are contradicted: those by the input, "
        "which has not memorised labels, and those by all layers together. The range is between the two. Where "
        "predictions are seldom sure it is rough.",
    ),
    ("Layer weights", "The better a layer predicts labels that it was not fitted to, the more it counts."),
    ("Then", "Look before correcting: rare but correct examples are suspicious too."),
)


def review(
    found: Mislabeled | LabelErrors | TargetErrors, pictures: Sequence[Picture | None] = (), remarks: Sequence[str] = ()
) -> Page:
    """The page about the rows asked for, LARGEST_PAGE at most.

    pictures: of the first rows in that order, as `pictures_of` gives them.  remarks: what the page says above the rows.
    """
    examples = len(found.score)
    kind = "target" if isinstance(found, TargetErrors) else "label"
    rows = list(islice(found.rows(), LARGEST_PAGE))
    if kind == "target" and found.summary.outputs > 1:
        rows = [row | {"given_target": f"{row['given_target']:.4g} (output {row['output']})"} for row in rows]
    if isinstance(found, LabelErrors):
        rows = [row | {"given_label": f"{row['label']}: {row['given_label']}"} for row in rows]
    asked = len(found.order)
    said = f"{asked:,} rows, most suspicious first." if asked else f"No {kind} is above the cut-off."
    if len(rows) < asked:
        said = f"The {len(rows):,} most suspicious of the {asked:,} rows asked for; csv, json and jsonl have them all."
    wrong = f"Of {examples:,} {kind}s "
    if found.noise_rate is not None:
        share = f"{found.noise_rate:.1%}{_between(found)}"
        wrong += f"about {count(found.noise_rate * examples)} ({share}) are estimated to be wrong. "
    matrix = found.noise_matrix
    return Page(
        title=f"Suspicious {kind}s in {_last(found.spec)}",
        lead=f"{wrong}{found.flagged:,} score above the cut-off {found.threshold:.2f} and are flagged.",
        facts=_facts(found),
        rows=rows,
        pictures=[*pictures, *[None] * (len(rows) - len(pictures))] if pictures else (),
        remarks=[said, *_doubts(found, kind), *remarks],
        histogram=histogram(found.score, found.threshold),
        cut=found.threshold,
        matrix=matrix,
        names=[] if matrix is None else [str(found.summary.label_name(i)) for i in range(len(matrix))],
        weights=list(zip(found.layers, found.weights.tolist(), strict=True)),
        reading=_reading(found),
        kind=kind,
    )


def histogram(scores: np.ndarray, cut: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts (BINS + 1,) at most of scores in [0, 1] and their edges, one of which is the cut."""
    edges = np.unique(np.append(np.linspace(0, 1, BINS + 1), np.clip(cut, 0, 1)))
    edges = edges[np.append(True, np.diff(edges) > 1e-6)]
    return np.histogram(scores, edges)


def pictures_of(
    summary: Summary,
    rows: Sequence[int],
    judged: DataSource | None = None,
    report_data: str | None = None,
    x_key: str | None = None,
    y_key: str | None = None,
    *,
    track: Track = silent,
) -> tuple[list[Picture | None], list[str]]:
    """Pictures of rows of the judged data, and remarks for the page: why some or all are missing.

    judged: what was judged, where that is not the summarized data.  report_data: the summarized data as the user names
    it; without either it is looked for where it was.  x_key, y_key: the arrays or columns of it.  Raises FsdtoolError
    where data that the user named cannot be read or is other data.
    """
    rows = rows[:LARGEST_PAGE]
    try:
        source = judged
        if source is None and report_data is not None:
            source = load_like(summary, report_data, x_key=x_key, y_key=y_key)
            _check_ids(summary, source)
        elif source is None:
            source = _where_it_was(summary, x_key, y_key, track)
    except FsdtoolError as error:
        if report_data is not None:
            raise
        return [], [f"No pictures: {error}."]
    try:
        pictures = thumbnails(source, rows)
    except FsdtoolError as error:
        return [], [f"No pictures: {error}."]
    shown = sum(picture is not None for picture in pictures)
    if shown < len(pictures):
        return pictures, [f"Pictures of the first {shown:,} rows: together they may take {BUDGET // 10**6} megabytes."]
    return pictures, []


def _where_it_was(summary: Summary, x_key: str | None, y_key: str | None, track: Track) -> DataSource:
    """The summarized data, if it is still there and the same; FsdtoolError if not."""
    identity, advice = summary.identity, "name the data by `report_data`"
    if _RUNS_CODE.search(identity.data_spec.removeprefix("torchvision:")):
        raise FsdtoolError(f"the data set '{identity.data_spec}' is opened by code or with arguments; {advice}")
    try:
        source = load_like(summary, identity.data_spec, x_key=x_key, y_key=y_key)
    except FsdtoolError as error:
        raise FsdtoolError(f"{error}; {advice}") from error
    changed = FsdtoolError(f"'{identity.data_spec}' is no longer the data that was summarized; {advice}")
    if len(source) != identity.examples:
        raise changed
    fingerprint = Fingerprint(source.ids)
    with track("data", len(source)) as advance:
        for batch in source.batches(BATCH):
            fingerprint.update(batch)
            advance(len(batch.y))
    if fingerprint.hexdigest() != identity.fingerprint:
        raise changed
    return source


def _check_ids(summary: Summary, source: DataSource) -> None:
    assert summary.records is not None  # nothing is judged without
    ids = summary.records.ids
    if len(source) != len(ids):
        raise FsdtoolError(
            f"`report_data` '{source.spec}' has {len(source)} examples and the summary {len(ids)}; "
            "give the data summarized"
        )
    differ = np.flatnonzero(source.ids.astype(str) != ids.astype(str))
    if len(differ):
        row = differ[0]
        raise FsdtoolError(
            f"`report_data` '{source.spec}' has the id {source.ids[row]} in row {row}, the summary {ids[row]}; "
            "give the data summarized"
        )


def _reading(found: Mislabeled | LabelErrors | TargetErrors) -> tuple[tuple[str, str], ...]:
    if isinstance(found, LabelErrors):
        return SEVERAL_READING
    return TARGET_READING if isinstance(found, TargetErrors) else READING


def _facts(found: Mislabeled | LabelErrors | TargetErrors) -> list[tuple[str, str]]:
    summary = found.summary
    assert isinstance(summary, Summary)  # a page is made from a summary that was read whole
    identity = summary.identity
    arguments = ", ".join(f"{key}={value}" for key, value in identity.model_arguments.items())
    judged = not isinstance(found, LabelErrors) and (found.spec, len(found.ids)) != (
        identity.data_spec,
        identity.examples,
    )
    return [
        *([("Judged", f"{found.spec} ({len(found.ids):,} examples)")] if judged else []),
        ("Model", identity.model_spec + (f" ({arguments})" if arguments else "")),
        ("Checkpoint", f"{identity.checkpoint_name} (SHA-256 {identity.checkpoint_sha256[:12]})"),
        ("Data", f"{identity.data_spec} ({identity.examples:,} examples)"),
        ("Summary", f"{summary.path.name}, {identity.created.replace('T', ' ').replace('+00:00', ' UTC')}"),
        ("Tool", f"fsdtool {__version__}, summary by {identity.tool_version}"),
    ]


def _last(spec: str) -> str:
    return spec.rstrip("/").rsplit("/", 1)[-1]


def _doubts(found: Suspects, kind: str) -> list[str]:
    """Why the estimated share is not to be trusted."""
    return [CONTRADICTED[kind]] * found.contradicted + [AMBIGUOUS] * found.ambiguous


def _between(found: Suspects) -> str:
    """The range of the estimated share, where there is one."""
    return f"; {found.between[0]:.1%} to {found.between[1]:.1%} {found.between_by}" if found.between else ""
