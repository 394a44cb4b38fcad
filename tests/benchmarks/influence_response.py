"""How close estimates of influence come to the exact proximal Bregman response (the table of the LAFTR paper).

    python tests/benchmarks/influence_response.py --data FOLDER [--cache FOLDER] [--only uci,mnist] [--csv FILE]

Regressions on three UCI tables (d-20-20-1) and an MNIST classifier.  For a choice of training examples the response of
every query is computed exactly over the data (bregman.py); each method estimates the same numbers with the same damping
per weight, delta times the mean eigenvalue of the weight's Gauss-Newton block on the data.  The table has the mean over
queries of the Pearson and Spearman correlation over the training examples.  LAFTR uses the summary's statistics alone:
the Kronecker curvature, the whole matrix by conjugate gradients (cg), or its own proximal Bregman response (pbo), of an
example or of a hundredth of it.

Where the loss of the removed example outgrows what holds the outputs, the response is that of another network, and its
size is anyone's guess.  "small steps" are the examples that move the weights at most three times as far as the
Kronecker solution; the correlations over these alone stand beside those over all.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from bregman import DataGaussNewton, ExactResponse, Vectors, lissa
from common import State, cached, mlp, options_of, parse, print_table, spearman, standardized, train
from influence_methods import Problem, flat, gradients, loss_of, measured_ekfac, summarized
from torch import Tensor, nn

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.gauss_newton import ConjugateGradients, GaussNewton
from fsdtool.influence.bregman_response import FAR, Response
from fsdtool.influence.scores import whole_curvature
from fsdtool.network.per_example_gradients import blocks, gradient
from fsdtool.summary.reader import Summary

SEED = 0


@dataclass(frozen=True)
class Case:
    """A problem, and how many training examples are removed in turn, how long LiSSA's series is."""

    name: str
    problem: Problem
    examples: int
    depth: int

    @property
    def mixtures(self) -> dict[str, int | None]:
        """Names and numbers of components."""
        by_class = {} if self.problem.task.quadratic else {"per class": None}
        return {"K = 1": 1} | by_class | {"K = 16": 16, "K = 64": 64}


# The cases


def uci(data: Path, cache: Path, name: str, file: str) -> Case:
    """70 % of the table is the training data, 50 rows of the rest the queries."""
    x, y = standardized(data / file)
    order = np.random.default_rng(SEED).permutation(len(x))
    x, y = x[order], y[order]
    cut = int(0.7 * len(x))

    def build() -> nn.Module:
        return mlp(x.shape[1], 20, 20, 1)

    reference = trained(cache, f"response-{name}", build, x[:cut], y[:cut], epochs=200, rate=0.02)
    queries = slice(cut, cut + 50)
    return Case(name, Problem(build, reference, x[:cut], y[:cut], x[queries], y[queries]), examples=50, depth=2000)


def mnist(data: Path, cache: Path) -> Case:
    """2,000 digits, 20 queries."""
    with np.load(data / "mnist_train.npz") as file:
        x = (torch.from_numpy(file["x"][:2020]).float().flatten(1) / 255 - 0.1307) / 0.3081
        y = torch.from_numpy(file["y"][:2020]).long()

    def build() -> nn.Module:
        return mlp(784, 32, 32, 10)

    reference = trained(cache, "response-mnist", build, x[:2000], y[:2000], epochs=10, rate=0.05)
    return Case("MNIST", Problem(build, reference, x[:2000], y[:2000], x[2000:], y[2000:]), examples=25, depth=300)


def trained(
    cache: Path, case: str, build: Callable[[], nn.Module], x: Tensor, y: Tensor, *, epochs: int, rate: float
) -> State:
    """The reference state, kept in the cache."""

    def make() -> State:
        torch.manual_seed(SEED)
        return train(build(), x, y, epochs=epochs, rate=rate, decay=1e-3)

    recipe = {"case": case, "epochs": epochs, "rate": rate, "sum": float(x.double().sum()), "model": str(build())}
    return cached(cache, recipe, make)


# The methods


class Comparison:
    """One case under one damping: exact answers, and the estimates of all methods."""

    def __init__(self, case: Case, damping: float, rows: list[int]):
        self.case, self.problem, self.rows = case, case.problem, rows
        self.network = self.problem.network()
        self.small: dict[str, np.ndarray] = {}  # which examples move the weights little, exactly or by a mixture
        measured = measured_ekfac(self.problem)
        self.damping = [damping * c.mean_eigenvalue for c in measured]
        self.measured = self.damped(measured)
        self.queries = self._whole_gradients(self.problem.queries, self.problem.query_targets)
        self.training = self._whole_gradients(self.problem.inputs[rows], self.problem.targets[rows])

    def damped(self, curvatures: list[BlockCurvature]) -> list[BlockCurvature]:
        """The same with the damping of this comparison."""
        pairs = zip(curvatures, self.damping, strict=True)
        return [replace(c, mean_eigenvalue=strength, damping_factor=1.0) for c, strength in pairs]

    def _whole_gradients(self, x: Tensor, y: Tensor) -> Vectors:
        found = blocks(self.network.graph, self.network.parameters)
        parts = [
            [gradient(block, uses) for block in found]
            for _, uses in gradients(self.network, x, loss_of(self.problem, y))
        ]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def exact(self) -> np.ndarray:
        """Responses (Q, examples)."""
        response = ExactResponse(self.problem, self.measured, self.damping)
        found = np.stack([response.changes(i) for i in self.rows], 1)
        self.small["exact"] = np.array(response.lengths) <= FAR
        if response.unsolved:
            print(f"{self.case.name}: {response.unsolved} exact responses have not converged", file=sys.stderr)
        return found

    def of_solved(self, solved: Vectors) -> np.ndarray:
        """tau (Q, examples) from solved gradients of the queries."""
        tau = sum(x.flatten(1) @ g.flatten(1).T for x, g in zip(solved, self.training, strict=True))
        return (tau / len(self.problem.inputs)).numpy()

    def by_kronecker(self, curvatures: list[BlockCurvature]) -> np.ndarray:
        return self.of_solved([c.solve(g) for c, g in zip(curvatures, self.queries, strict=True)])

    def over_the_data(self) -> Iterator[tuple[str, np.ndarray]]:
        """What rereads the data."""
        yield "gradient dot product", self.by_kronecker(flat(self.problem))
        yield "measured EKFAC", self.by_kronecker(self.measured)
        matrix = DataGaussNewton(self.problem)
        solver = ConjugateGradients(matrix, self.measured, tolerance=1e-4, most=1000)
        yield "conjugate gradients over the data", self.of_solved(solver.solve(self.queries))
        yield "LiSSA over the data", self.of_solved(lissa(matrix, self.queries, self.damping, depth=self.case.depth))

    def laftr(self, name: str, summary: Summary) -> Iterator[tuple[str, np.ndarray]]:
        """What reads the summary's statistics alone."""
        curvatures = self.damped(whole_curvature(summary))
        yield f"LAFTR, {name}, Kronecker", self.by_kronecker(curvatures)
        found = blocks(self.network.graph, self.network.parameters)
        matrix = GaussNewton(summary.identity.graph, summary.parameters, summary.statistics, found, seed=SEED)
        solver = ConjugateGradients(matrix, curvatures, tolerance=1e-3, most=500)
        yield f"LAFTR, {name}, cg", self.of_solved(solver.solve(self.queries))
        for part, share in (("pbo", 1), ("pbo of a hundredth", 100)):
            response = Response(matrix, curvatures, self.problem.task, share * summary.identity.examples)
            yield f"LAFTR, {name}, {part}", share * self._bregman(response)
            self.small.setdefault(name, np.array(response.lengths) <= FAR)

    def _bregman(self, response: Response) -> np.ndarray:
        x, y = self.problem.inputs, self.problem.targets
        queries, labels = self.problem.queries, self.problem.query_targets
        before = response.losses(response.matrix.parameters, queries, labels)
        changes = []
        for i in self.rows:
            weights = response.weights_without(x[i : i + 1], y[i : i + 1])
            changes.append(response.losses(weights, queries, labels) - before)
        return torch.stack(changes, 1).numpy()


def compare(case: Case, damping: float, mixtures: list[str]) -> Iterator[dict[str, object]]:
    """The rows of one case under one damping."""
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randperm(len(case.problem.inputs), generator=generator)[: case.examples].tolist()
    comparison = Comparison(case, damping, rows)
    exact = comparison.exact()

    def row(method: str, tau: np.ndarray, truth: np.ndarray, steps: str = "exact") -> dict[str, object]:
        found: dict[str, object] = {"case": case.name, "damping": damping, "method": method}
        small = comparison.small[steps]
        finite = np.isfinite(tau).all(0) & np.isfinite(truth).all(0)  # a step may leave the range of float64
        for chosen, suffix in ((finite, ""), (finite & small, ", small steps")):
            pairs = list(zip(tau[:, chosen], truth[:, chosen], strict=True))
            found[f"pearson{suffix}"] = float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))
            found[f"spearman{suffix}"] = float(np.mean([spearman(a, b) for a, b in pairs]))
        return found | {"small steps": f"{small.sum()} of {len(small)}"}

    for method, tau in comparison.over_the_data():
        yield row(method, tau, exact)
    for name in [name for name in case.mixtures if name in mixtures]:
        found: dict[str, np.ndarray] = {}
        with tempfile.TemporaryDirectory() as folder:
            summary = summarized(case.problem, Path(folder), components=case.mixtures[name], records=False)
            for method, tau in comparison.laftr(name, summary):
                found[method.rsplit(", ", 1)[1]] = tau
                yield row(method, tau, exact)
        for part in ("pbo", "pbo of a hundredth"):
            yield row(f"LAFTR, {name}, {part} against cg", found[part], found["cg"], name)


CASES: dict[str, tuple[Callable[[Path, Path], Case], ...]] = {
    "uci": (
        lambda data, cache: uci(data, cache, "concrete", "uci_concrete.csv"),
        lambda data, cache: uci(data, cache, "energy", "uci_energy.csv"),
        lambda data, cache: uci(data, cache, "wine", "uci_wine_quality_red.csv"),
    ),
    "mnist": (mnist,),
}


def main() -> None:
    parser = options_of(__doc__, CASES)
    parser.add_argument("--damping", default="1,0.1", help="delta, in mean eigenvalues (default 1,0.1)")
    parser.add_argument("--mixtures", default="K = 1,per class,K = 16,K = 64", help="of LAFTR, separated by commas")
    options = parse(parser)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for make in [make for group in options.only.split(",") for make in CASES[group]]:
            case = make(options.data, options.cache or Path(temporary))
            for damping in options.damping.split(","):
                started = time.perf_counter()
                rows += compare(case, float(damping), options.mixtures.split(","))
                print(f"{case.name}, damping {damping}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
