"""The estimated noise matrix as a file of its own: how many labels of each class are truly of each other class.

Rows are given labels and columns true classes.  In csv the class names are the header and the first column, escaped as
in all csv; json has {"labels", "given_by_true", "noise_rate", "layer_weights"}.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.find import Mislabeled
from fsdtool.mislabel.suspects import FEW_EXAMPLES
from fsdtool.report.formats.csv_rows import write_csv
from fsdtool.util.atomic_files import write_whole


def write_noise(found: Mislabeled, noise_matrix: Path) -> None:
    """Write the estimated numbers of labels, (classes, classes), to the file `noise_matrix`, .csv or .json.

    It appears when it is complete.  Raises FsdtoolError where there is no estimate, or the file cannot be written.
    """
    matrix, rate = found.noise_matrix, found.noise_rate
    if matrix is None or rate is None:
        raise FsdtoolError(
            f"'{found.spec}' has {len(found.ids)} examples, too few to estimate the noise matrix; "
            f"give {FEW_EXAMPLES} or more, or leave `noise_matrix` out"
        )
    labels = [found.summary.label_name(label) for label in range(found.summary.outputs)]
    text = _csv(matrix, labels) if noise_matrix.suffix == ".csv" else _json(found, matrix, rate, labels)
    write_whole(noise_matrix, text.encode("utf-8", "backslashreplace"), "the noise matrix")


def _csv(matrix: np.ndarray, labels: list[int | str]) -> str:
    text = io.StringIO()
    rows = ([label, *row] for label, row in zip(labels, matrix.tolist(), strict=True))
    write_csv(rows, ["given_label", *map(str, labels)], text)
    return text.getvalue()


def _json(found: Mislabeled, matrix: np.ndarray, rate: float, labels: list[int | str]) -> str:
    content = {
        "labels": labels,
        "given_by_true": [[_rounded(value) for value in row] for row in matrix.tolist()],
        "noise_rate": _rounded(rate),
        "layer_weights": {layer: _rounded(w) for layer, w in zip(found.layers, found.weights.tolist(), strict=True)},
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def _rounded(value: float) -> float:
    """Seven digits, as in the other machine formats."""
    return float(f"{value:.7g}")
