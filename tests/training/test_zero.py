"""ZeRO in two real processes: sums of micro-batches, what a save and a publication take of each process, resuming."""

import json
import subprocess
import sys

import pytest

from tests.launching import ROOT, environment

pytestmark = pytest.mark.distributed
SMALL = 4096
"""Bytes of tensors that nobody minds: steps, messages between processes."""


@pytest.fixture(scope="module", params=["2 full", "1 lora"])
def ranks(request, tmp_path_factory):
    """What either process found; see the script."""
    pytest.importorskip("deepspeed")
    stage, kind = request.param.split()
    folder = tmp_path_factory.mktemp("zero")
    script = str(ROOT / "tests" / "training" / "zero_in_two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    variables = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "local_distill" / "ds_zero2_bf16.json"),
        "ACCELERATE_USE_CPU": "false",
    }
    env = environment(**variables)
    done = subprocess.run(
        [*command, stage, kind, str(folder)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [{"stage": int(stage), **json.loads((folder / f"rank-{n}.json").read_text())} for n in range(2)]


def test_thirty_two_micro_batches_are_thirty_two_times_one(ranks):
    """Of the same micro-batch, so float32 has no rounding to do; sums in bf16 are off by more than 1 %."""
    assert ranks[0]["off_by_micro_batches"] < 1e-6


def test_gradients_are_averaged_over_the_processes(ranks):
    """Against plain autograd on the batches of both: to bf16's rounding."""
    assert ranks[0]["off_by_processes"] < 0.05


def test_an_update_that_is_not_finite_in_one_process_is_left_out_in_all(ranks):
    """And leaves nothing behind: the gradients of the other tests come after it."""
    assert [rank["applied"] for rank in ranks] == [False, False]


def test_a_save_gathers_one_tensor_at_a_time_and_the_main_process_alone_keeps_it(ranks):
    """The sum of what there is, on a processor: weights are gone before the moments come. What gloo's own thread has
    not let go yet may be one tensor more."""
    main, other = ranks
    passing = 2 * 4 * main["largest"] + SMALL
    assert other["saving"] <= passing
    assert main["saving"] <= 8 * main["trained"] + passing
    assert main["gathered"] == 1, "each is moved off the device before the next one is made"
    assert other["kept"] == 0


def test_a_publication_gathers_nothing(ranks):
    main, other = ranks
    assert other["publishing"] <= SMALL
    assert main["publishing"] <= 2 * main["trained"] + SMALL
    assert main["published"], "the weights that the student computes with: its masters, rounded"


def test_what_was_saved_goes_on_bit_for_bit(ranks):
    assert ranks[0]["resumed"]
    assert ranks[0]["kept"] > 0


def test_what_is_said_to_come_is_what_stays_after_a_micro_batch(ranks):
    """Moments are there already; ZeRO-1 has made its float32 gradients as well, ZeRO-2 makes half in each process."""
    for rank in ranks:
        gradients, moments = rank["to_come"]  # 4 / 2 bytes a parameter, or bf16's 2 of a micro-batch
        assert gradients == pytest.approx(2 * rank["trained"], abs=64)
        assert moments == 0
        assert rank["gradients"] == pytest.approx(gradients, abs=1024)
