"""What calibration adds to `summarize`: its share of the processor time, part by part, in one run.

python tests/benchmarks/calibration_cost.py --data FOLDER [--cache FOLDER] [--only mnist,cifar] [--threads N]
[--csv FILE]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from common import options_of, parse, print_table
from fsd_accuracy import Case, cifar, mnist, summaries

from fsdtool.fitting import plan, preparation, run

# What summarize does only to know its own error, each by the module that calls it and its name there.
PARTS = {
    "repeatability": ((preparation, "check_data"), (preparation, "check_outputs")),
    "fit": ((run, "training_fit"),),
    "influence": ((plan, "calibrate_influence"),),
    "distance": ((run, "calibrate_distance"),),
}


def cost(case: Case) -> dict[str, object]:
    """The row of one case."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            started = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[part] += time.process_time() - started

        return call

    patches = [
        patch.object(module, name, timed(part, getattr(module, name)))
        for part, functions in PARTS.items()
        for module, name in functions
    ]
    with tempfile.TemporaryDirectory() as folder:
        for one in patches:
            one.start()
        started = time.process_time()
        for _ in summaries(replace(case, mixtures=(None,)), Path(folder), records=True):
            pass
        whole = time.process_time() - started
        for one in patches:
            one.stop()
    shares = {part: seconds / whole for part, seconds in spent.items()}
    return {"case": case.name, "seconds": whole} | shares | {"together": sum(shares.values())}


CASES = {"mnist": mnist, "cifar": cifar}


def main() -> None:
    options = parse(options_of(__doc__, CASES))
    with tempfile.TemporaryDirectory() as temporary:
        rows = [cost(CASES[name](options.data, options.cache or Path(temporary))) for name in options.only.split(",")]
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
