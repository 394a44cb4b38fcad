"""Gate policies are found by their files' names, torch-free, and each has one class."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fsdtool.cli.options import Gates
from fsdtool.errors import FsdtoolError
from fsdtool.laftr.gates.policy import DEFAULT, policies, policy_names, policy_of


def test_each_module_holds_the_policy_of_its_name():
    assert list(policies()) == policy_names() == [gates.value for gates in Gates]
    for name, policy in policies().items():
        assert type(policy).__module__ == f"fsdtool.laftr.gates.{name}"
        assert policy_of(name) is policy_of(policy) is policy
    assert DEFAULT in policies()
    assert [name for name, policy in policies().items() if policy.has_closed_form] == ["independent"]


def test_unknown_gates_are_one_line_that_lists_those_there_are():
    with pytest.raises(FsdtoolError, match="no gates 'free'; give one of coupled, independent, moving"):
        policy_of("free")


def test_the_names_are_known_without_torch():
    script = (
        "import sys; from fsdtool.laftr.gates.policy import policy_names; policy_names(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"
