"""The first mutants of the fuzzer, as in every run of seed 0; `python -m tests.fuzz.fuzz_summary` runs as many as
asked.
"""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.fuzz_summary import build_cases, figures, fuzz

MUTANTS = 160


@pytest.mark.skipif(sys.platform != "linux", reason="limits and figures of memory are read from /proc")
def test_no_mutant_does_anything_but_answer_or_refuse_in_one_line(tmp_path):
    outcomes = list(fuzz(build_cases(tmp_path), range(MUTANTS), 0, tmp_path))
    assert [outcome for outcome in outcomes if outcome.broken] == []
    assert len(outcomes) == MUTANTS
    assert 0 < sum(2 in outcome.codes for outcome in outcomes) < MUTANTS, figures(outcomes)
