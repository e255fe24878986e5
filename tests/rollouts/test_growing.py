"""Completions that grow: how long each step's are, and that they begin like longer ones."""

from contextlib import nullcontext

import pytest

from local_distill.batch import Prompt
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.rollouts.growing import GrowingRollouts, growing_length
from local_distill.rollouts.hf import HFRollouts
from tests.tiny_models import llama_config, make_model

PROMPTS = list(enumerate([Prompt((5, 6, 7), "", ""), Prompt((9,), "", "")]))


def test_the_length_grows_evenly_from_the_first_step_to_the_last():
    assert [growing_length(4, 12, 5)(step) for step in range(7)] == [4, 6, 8, 10, 12, 12, 12]
    assert [growing_length(1, 4, 9)(step) for step in range(9)] == [1, 1, 1, 2, 2, 2, 3, 3, 4]
    assert growing_length(4, 12, 1)(0) == 12


def test_a_step_has_the_beginning_of_what_longer_completions_would_have_had():
    model = make_model(llama_config())

    def make(longest):
        params = SamplingParams(NucleusSampling(1.0, 1.0), 2, longest, frozenset([0]), 3)
        return HFRollouts(
            model, params=params, pad_id=0, vocab_size=300, batch_size=64, autocast=nullcontext, say=print
        )

    growing = GrowingRollouts(make, growing_length(2, 8, 4))
    for step, longest in enumerate([2, 4, 6, 8, 8]):
        short, whole = growing.sample(PROMPTS, step), make(8).sample(PROMPTS, step)
        assert [r.completion.tolist() for r in short] == [r.completion.tolist()[:longest] for r in whole]
        assert {len(r.completion) for r in short if r.finish == "length"} <= {longest}
    assert growing.sample([], 0) == []


@pytest.mark.parametrize("steps", [2, 3, 10])
def test_no_step_is_longer_than_the_longest_or_shorter_than_the_one_before(steps):
    lengths = [growing_length(16, 128, steps)(step) for step in range(steps)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (16, 128)
