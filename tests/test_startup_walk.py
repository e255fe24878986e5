"""The way of the settings through start-up is counted, by the command that the architecture page names."""

import re
import subprocess
import sys

import pytest

from benchmarks.startup_walk import files_and_returns
from tests.launching import ROOT, environment


@pytest.mark.parametrize(
    ("way", "counts"),
    [
        ([], (0, 0)),
        (["a", "a"], (1, 0)),
        (["a", "b", "c"], (3, 0)),
        (["a", "b", "b", "a", "b", "c"], (3, 2)),
    ],
)
def test_a_return_is_a_move_to_a_file_that_was_entered_before(way, counts):
    assert files_and_returns(way) == counts


def test_the_walk_of_a_real_run_is_counted():
    command = [sys.executable, "benchmarks/startup_walk.py", "--files"]
    found = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    rows = re.findall(r"^to the (.*?) +(\d+) files +(\d+) returns$", found.stdout, re.M)
    assert [name for name, *_ in rows] == ["first weights", "first step of the loop"]
    (weights, returns), (loop, more_returns) = [(int(files), int(returns)) for _, files, returns in rows]
    assert 0 < weights < loop
    assert 0 < returns <= more_returns
    files = found.stdout.split()[-loop:]
    assert len(set(files)) == loop
    assert {"train_on_policy_local.py", "build.py", "inputs.py"} < set(files)
    assert files[-1] == "loop.py"
    assert all((ROOT / "local_distill" / file).is_file() for file in files)
