"""The library's arguments become options of the command line."""

import pytest

from fsdtool.cli.wording import as_options


@pytest.mark.parametrize(
    ("library", "shell"),
    [
        ('use `task="regression"`', "use --task regression"),
        ("give `skip_bad=True` or `skip_bad`", "give --skip-bad or --skip-bad"),
        ("written with `records=False`", "written with --no-records"),
        ("written with `keep_weights=False`", "written with --no-weights"),
        ("`std=0.00392157` (`mean`, `std`)", "--std 0.00392157 (--mean, --std)"),
        ("do not trust the flags, and see `margins`", "do not trust the flags, and see --by-layer"),
        ("column `colour`, `colour=red` and `f(x)`", "column `colour`, `colour=red` and `f(x)`"),
    ],
)
def test_arguments_are_worded_as_options(library, shell):
    assert as_options(library) == shell
