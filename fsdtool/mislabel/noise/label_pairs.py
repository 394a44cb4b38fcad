"""Pairs of a true class and a given label, by which the confusion of classes is counted, and sums over them.

If there are many classes, each example has a few candidate classes, which are listed (`Pairs`).  If the candidates are
all classes, look-ups and sums by class and label are products with the one-hot matrix of the labels (`AllPairs`).
"""

from __future__ import annotations

import numpy as np


class Cells:
    """Pairs of a true class and a given label, as the keys (M,) true class x classes + given label."""

    def __init__(self, key: np.ndarray, classes: int):
        self.key, self.classes, self.true = key, classes, key // classes
        self.right = self.true == key % classes
        self._wrong = np.flatnonzero(~self.right)

    def totals(self, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Examples (classes,) of each true class, and those of them with a wrong label, from the counts (M,) by key."""
        wrong = np.bincount(self.true[self._wrong], count[self._wrong], self.classes)
        return np.bincount(self.true, count, self.classes), wrong

    def concentration(self, count: np.ndarray) -> float:
        """The Dirichlet concentration that gives the cells of wrong labels the second moment of the counts (M,)."""
        cells = max(self.classes - 1, 1)
        wrong = self.totals(count)[1]
        squares = float((count[self._wrong] ** 2).sum())
        spread = (squares - float((wrong**2).sum()) / cells) / max(1 - 1 / cells, 1e-12)
        if spread <= wrong.sum():
            return np.inf
        return max(float((wrong**2).sum()) - spread, 1e-6) / (spread - float(wrong.sum()))


class Pairs:
    """The candidates (n, T) int64 of examples, the given label first, and the pairs that they form with that label.

    Arrays (n, T) are in Fortran order: sums over the few candidates of an example are slow otherwise.
    """

    def __init__(self, candidates: np.ndarray, classes: int):
        self.given, self._candidates = candidates[:, 0], np.asfortranarray(candidates)
        key, cell = np.unique(self._candidates * classes + self.given[:, None], return_inverse=True)
        self.cells, self._cell = Cells(key, classes), np.asfortranarray(cell.reshape(candidates.shape))

    def ordered(self, values: np.ndarray) -> np.ndarray:
        """Values (n, T), given in the order of the candidates, in the order that this class uses."""
        return values

    def of_classes(self, values: np.ndarray) -> np.ndarray:
        """The value (n, T) of each candidate, from values (classes,)."""
        return values[self._candidates]

    def of_cells(self, values: np.ndarray) -> np.ndarray:
        """The value (n, T) of each candidate's pair with the given label, from values (M,)."""
        return values[self._cell]

    def by_class(self, values: np.ndarray) -> np.ndarray:
        """Sums (classes,) of values (n, T) over the examples and candidates of each class."""
        return np.bincount(self._candidates.ravel("F"), values.ravel("F"), self.cells.classes)

    def by_cell(self, values: np.ndarray) -> np.ndarray:
        """Sums (M,) of values (n, T) over the examples and candidates of each pair."""
        return np.bincount(self._cell.ravel("F"), values.ravel("F"), len(self.cells.key))


class AllPairs(Pairs):
    """The same where the candidates are all classes: in the order of the classes, sums are products of matrices."""

    def __init__(self, candidates: np.ndarray):
        examples, classes = candidates.shape
        self.given = candidates[:, 0]
        self._place = candidates * examples + np.arange(examples)[:, None]
        self._own = (np.arange(classes)[:, None] == self.given).astype(np.float32)
        key = np.arange(classes**2)
        self.cells = Cells(key[np.tile(self._own.any(1), classes)], classes)

    def ordered(self, values: np.ndarray) -> np.ndarray:
        found = np.empty(values.shape[::-1], np.float32)
        found.reshape(-1)[self._place] = values
        return found.T

    def of_classes(self, values: np.ndarray) -> np.ndarray:
        return values[None]

    def of_cells(self, values: np.ndarray) -> np.ndarray:
        every = np.zeros((self.cells.classes, self.cells.classes), np.float32)
        every.reshape(-1)[self.cells.key] = values
        return (every @ self._own).T

    def by_class(self, values: np.ndarray) -> np.ndarray:
        return values.sum(0)

    def by_cell(self, values: np.ndarray) -> np.ndarray:
        return (values.T @ self._own.T).reshape(-1)[self.cells.key].astype(np.float64)
