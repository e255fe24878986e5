"""Whichever process fails, and wherever: each ends with a line, and none waits for another that will not come."""

import re
import subprocess
import sys

import pytest

from tests.launching import ROOT, SETTINGS, environment, student_and_teacher

pytestmark = pytest.mark.distributed
ENDS_WITHIN = 120


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """All that two processes wrote whose runs failed in turn."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "tests" / "process" / "failing_run.py"), str(folder), *student_and_teacher(folder)]
    command += [*SETTINGS, "--steps", "1", "--eval_prompts", "2", "--max_new_tokens", "4"]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=ENDS_WITHIN, check=False
    )
    return done.stdout + done.stderr


def test_a_process_is_waited_for_longer_than_torch_would(said):
    assert said.count("patience: 3600, later 3600") == 2
    assert "step-1: cannot be written" in said, "it was there"


def test_data_parallelism_ends_before_the_processes_part(said):
    """What it holds of their link would be the last of it, and its end would wait for a thread that waits for it."""
    for process in range(2):
        assert f"parting: process {process} keeps 0 wrapped" in said
        assert f"parting: process {process} ended with 0" in said


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("saving", r"\S+/saving/step-1: cannot be written \(No space left on device\); .* no checkpoint yet"),
        ("record", r"no metrics; there is no checkpoint yet"),
        ("log", r"no log"),
        ("words", r"no words \(process 1, on .*\)"),
        ("scoring", r"no score \(process 1, on .*\)"),
    ],
)
def test_what_ends_one_process_ends_both(said, name, line):
    for process in range(2):
        assert f"{name}: process {process} ended with 2" in said
    assert len(re.findall(f"^error: {line}", said, re.MULTILINE)) == 1


def test_a_draw_that_fails_on_one_process_ends_both_before_they_wait_for_the_weights(said):
    assert "overlap: process 1 says --rollouts_url: gone" in said
    assert "overlap: process 0 says --rollouts_url: gone (process 1, on" in said


def test_what_only_one_process_knows_it_says_and_the_other_says_that_it_lost_it(said):
    assert len(re.findall("^error: training ran out of memory on a single rollout of", said, re.MULTILINE)) == 1
    assert "training: process 1 ended with 2" in said
    assert re.search("^error: process 0 on .*: another one has ended or does not answer, see", said, re.M)
    assert "training: process 0 ended with 2" in said
