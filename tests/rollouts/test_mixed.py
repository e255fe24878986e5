"""Some of a step's completions are the teacher's: which, whose draws, and that nothing else changes."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from local_distill.batch import Prompt
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.rollouts.hf import HFRollouts
from local_distill.rollouts.mixed import MixedRollouts, falling_share
from tests.tiny_models import llama_config, make_model

PROMPTS = [Prompt((i + 5, 7), "", "") for i in range(6)]
NUMBERED = list(enumerate(PROMPTS))


def engine(seed):
    params = SamplingParams(NucleusSampling(1.0, 1.0), 2, 5, frozenset([0]), 3)
    return HFRollouts(
        make_model(llama_config(), seed), params=params, pad_id=0, vocab_size=300, batch_size=64, autocast=nullcontext,
        say=print,
    )  # fmt: skip


@pytest.fixture(scope="module")
def engines():
    return engine(1), engine(2)


def mixed(engines, share, seed=0):
    return MixedRollouts(*engines, falling_share(share, None), len(PROMPTS), seed)


def words(rollouts):
    return [(r.position, r.completion.tolist()) for r in rollouts]


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.5, 1.0])
def test_each_prompt_is_continued_by_one_of_the_two_as_that_one_alone_would(engines, share):
    both = mixed(engines, share)
    taught = both.taught(step=4)
    assert len(taught) == round(6 * share)
    student, teacher = (each.sample(NUMBERED, 4) for each in engines)
    expected = [t if t.position in taught else s for s, t in zip(student, teacher, strict=True)]
    found = both.sample(NUMBERED, 4)
    assert words(found) == words(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if ours.position in taught:
            assert ours.sampler_logprobs.isnan().all(), "the student drew none of it"
            assert replace(ours, sampler_logprobs=theirs.sampler_logprobs, completion=theirs.completion) == theirs
        else:
            torch.testing.assert_close(ours.sampler_logprobs, theirs.sampler_logprobs, rtol=0, atol=1e-6)


def test_a_process_gets_of_its_own_share_what_one_process_would_have_got(engines):
    whole = mixed(engines, 0.5).sample(NUMBERED, 2)
    parts = [mixed(engines, 0.5).sample(NUMBERED[process::2], 2) for process in range(2)]
    assert sorted(words(parts[0] + parts[1])) == sorted(words(whole))
    assert words(mixed(engines, 0.5).sample([], 2)) == []


def test_the_teachers_prompts_differ_from_step_to_step_and_follow_the_seed(engines):
    by_step = [mixed(engines, 0.5).taught(step) for step in range(20)]
    assert len(set(by_step)) > 5
    assert set().union(*by_step) == set(range(6))
    assert by_step != [mixed(engines, 0.5, seed=1).taught(step) for step in range(20)]


def test_the_share_falls_evenly_to_nothing():
    share = falling_share(0.8, 4)
    assert [share(step) for step in (0, 1, 2, 3, 4, 99)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0])
    assert {falling_share(0.3, None)(step) for step in (0, 5, 10**6)} == {0.3}
