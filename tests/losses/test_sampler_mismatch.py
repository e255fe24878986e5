"""What an engine says it drew with, against what training makes of it."""

import subprocess
import sys

import pytest
import torch

from local_distill.errors import RunError
from local_distill.head.divergences import Distribution
from local_distill.head.sampling import NucleusSampling
from local_distill.losses.sampler_mismatch import (
    KL,
    MOST_KL,
    RATIO,
    MismatchWatch,
    SamplerMismatch,
    divergence,
    rounding_of,
)
from local_distill.models import start_checks
from tests.launching import ROOT, environment

V, N = 50, 4000


def random_logprobs(rows, seed=0):
    torch.manual_seed(seed)
    return torch.randn(rows, V, dtype=torch.float64).mul(2).log_softmax(1)


@pytest.mark.parametrize("choose", [NucleusSampling(1.0, 1.0), NucleusSampling(0.7, 1.0), NucleusSampling(0.7, 0.9)])
def test_no_gap_where_the_engine_draws_as_training_would(choose):
    logprobs = random_logprobs(64)
    tokens, drawn_with = choose(logprobs, torch.rand(64, dtype=torch.float64))
    kl, ratio = SamplerMismatch(choose.logprobs_of)(Distribution.of(logprobs), tokens, drawn_with)
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-9, rtol=0)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)


def test_its_mean_over_the_engine_s_samples_is_the_divergence_from_engine_to_training():
    """Enumerated: Σ_v m_v · gap(v) is KL(m‖s) to rounding, and a swap of the two would be another number."""
    engine, training = random_logprobs(1), (random_logprobs(1) + 0.3 * random_logprobs(1, seed=1)).log_softmax(1)
    every = torch.arange(V)
    kl, ratio = SamplerMismatch(NucleusSampling(1.0, 1.0).logprobs_of)(
        Distribution.of(training.expand(V, V)), every, engine.squeeze(0)
    )
    exact = (engine.exp() * (engine - training)).sum()
    swapped = (training.exp() * (training - engine)).sum()
    found = (engine.exp().squeeze(0) * kl).sum()
    torch.testing.assert_close(found, exact)
    assert abs(found - swapped) > 0.01 * exact
    torch.testing.assert_close(ratio, (training - engine).abs().exp().squeeze(0))


def test_a_token_outside_the_nucleus_on_one_side_is_left_out():
    choose = NucleusSampling(1.0, 0.5)
    logprobs = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    assert choose.logprobs_of(logprobs, torch.tensor([1])).item() == -torch.inf
    kl, ratio = SamplerMismatch(choose.logprobs_of)(Distribution.of(logprobs), torch.tensor([1]), torch.tensor([-1.2]))
    assert (kl.item(), ratio.item()) == (0.0, 1.0)


def test_people_are_told_once():
    told = []
    watch = MismatchWatch(told.append)
    watch.step(1, {KL: MOST_KL / 2, RATIO: 1.2})
    watch.step(2, {"loss": 1.0})
    assert told == []
    watch.step(3, {KL: MOST_KL * 2, RATIO: 8.0})
    watch.step(4, {KL: MOST_KL * 2, RATIO: 8.0})
    assert len(told) == 1
    assert told[0].startswith("step 3: ")
    assert "ratio up to 8" in told[0]


def test_a_run_is_stopped_where_more_is_apart_than_can_be_explained():
    told = []
    watch = MismatchWatch(told.append, most=0.1, instead="do something else")
    watch.step(1, {KL: 0.1})
    watch.step(2, {KL: float("nan")})  # updates that are not finite are the learner's
    with pytest.raises(RunError, match=r"step 3: .* 0\.11 nats .* do something else"):
        watch.step(3, {KL: 0.11})


def test_rounding_grows_with_the_square_of_the_precision():
    bounds = [rounding_of(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)]
    assert bounds == sorted(bounds)
    assert rounding_of(torch.bfloat16) > MOST_KL, "people are told before the run is stopped"


@pytest.mark.parametrize(("precision", "as_in"), [("high", torch.float16), ("medium", torch.bfloat16)])
def test_float32_products_that_torch_rounds_may_differ_as_much_as_such_rounding_makes(precision, as_in):
    """Some surroundings ask for TF32 everywhere: a good model is not refused there."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert rounding_of(torch.float32) == rounding_of(as_in)
        states = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
        assert start_checks._same(states * 1.01, states)
        assert not start_checks._same(states.flip(0), states)
    finally:
        torch.set_float32_matmul_precision(before)
    assert not start_checks._same(states * 1.01, states)


ASKS_FOR_TF32 = {
    "its environment": ("", {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}),
    "torch": ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", {}),
    "nobody": ("", {}),
}


@pytest.mark.parametrize("who", ASKS_FOR_TF32)
def test_whoever_asks_for_tf32_is_understood(who):
    """In a process of its own: torch's newer way of asking cannot be taken back."""
    setting, variables = ASKS_FOR_TF32[who]
    lines = ("import torch", "from local_distill.losses.sampler_mismatch import rounding_of as of", setting)
    script = "\n".join([*lines, "print(of(torch.float32) == of(torch.float16))"])
    env = {**environment(), **variables}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == str(who != "nobody"), done.stderr


def test_a_token_whose_experts_change_places_stops_no_run_and_a_wrong_dense_model_is_still_found():
    drawn_with, logprobs = torch.full((64,), -2.0), torch.full((64,), -2.0)
    logprobs[3] += 0.5
    gap = divergence(drawn_with, logprobs)
    MismatchWatch(print, rounding_of(torch.float32, experts=True)).step(1, {KL: gap})
    with pytest.raises(RunError):
        MismatchWatch(print, rounding_of(torch.float32, experts=False)).step(1, {KL: gap})
    assert rounding_of(torch.bfloat16, experts=True) == rounding_of(torch.bfloat16)
