"""Continuous batching: the log-probs it reports, whose weights and precision it uses, and what it leaves behind."""

import pytest
import torch
from torch import nn

from local_distill.errors import UserError
from local_distill.head.sampling import NucleusSampling
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.scorer import TokenScorer
from local_distill.rollouts import continuous as continuous_batching
from local_distill.rollouts.continuous import ContinuousRollouts, SampledModel
from local_distill.training.batching import collate
from tests.rollouts.test_hf import GREEDY, PROMPTS, V, completions, engine
from tests.sampling import flat
from tests.tiny_models import llama_config, make_model

NUMBERED = list(enumerate(PROMPTS))


def continuous(model, dtype=torch.float32, **overrides):
    settings = {
        "choose": NucleusSampling(1.0, 1.0), "group_size": 3, "max_new_tokens": 6, "stop_ids": [0], "pad_id": 0,
        "seed": 7, "process": 0,
    }  # fmt: skip
    return ContinuousRollouts(SampledModel(model, dtype), **flat({**settings, **overrides}))


def scored(model, rollouts):
    """(log-probs of scoring the same tokens, those that were reported)"""
    batch = collate(rollouts, 0)
    return TokenScorer(model, V)(batch).logprobs, batch.sampler_logprobs


def with_adapter(model):
    model = add_lora(model, LoraSettings(rank=4, alpha=8, dropout=0.0, target_modules="all-linear"), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("adapt", [lambda model: model, with_adapter], ids=["whole", "lora"])
def test_reported_log_probs_are_those_of_scoring_the_same_tokens(adapt):
    model = adapt(make_model(llama_config()))
    model.train()
    rollouts = continuous(model).sample(NUMBERED, step=0)
    assert model.training, "training mode is given back"
    assert [r.position for r in rollouts] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len({tuple(tokens) for tokens in completions(rollouts)}) == 12
    found, reported = scored(model.eval(), rollouts)
    torch.testing.assert_close(reported, found, rtol=0, atol=1e-5)


def test_seed_step_and_process_change_the_samples_and_nothing_else_does():
    model = make_model(llama_config())
    first = completions(continuous(model).sample(NUMBERED, step=0))
    assert completions(continuous(model).sample(NUMBERED, step=0)) == first
    others = [(continuous(model), 1), (continuous(model, seed=8), 0), (continuous(model, process=1), 0)]
    assert all(completions(each.sample(NUMBERED, step)) != first for each, step in others)


def test_temperature_and_nucleus_are_in_the_reported_log_probs():
    model = make_model(llama_config())
    greedy = continuous(model, choose=GREEDY, group_size=1).sample(NUMBERED, step=0)
    same = engine(model, choose=GREEDY, group_size=1, max_new_tokens=6).sample(NUMBERED, step=0)
    assert completions(greedy) == completions(same)
    assert all(bool((r.sampler_logprobs == 0).all()) for r in greedy), "the only choice"
    cooled = continuous(model, choose=NucleusSampling(0.5, 1.0)).sample(NUMBERED, step=0)
    found, reported = scored(model, cooled)
    assert (reported - found).mean() > 0.2, "a cooled distribution is surer of what it draws"


def test_a_stop_token_ends_the_completion_and_belongs_to_it():
    model = make_model(llama_config())
    free = continuous(model, choose=GREEDY, group_size=1, stop_ids=[]).sample(NUMBERED, step=0)
    assert [r.finish for r in free] == ["length"] * 4
    stop = completions(free)[0][2]
    stopped = continuous(model, choose=GREEDY, group_size=1, stop_ids=[stop]).sample(NUMBERED[:1], step=0)[0]
    at = completions(free)[0].index(stop)
    assert stopped.completion.tolist() == completions(free)[0][: at + 1]
    assert stopped.finish == "stop"
    assert len(stopped.sampler_logprobs) == at + 1


def test_masters_are_sampled_from_in_the_low_precision_with_their_newest_weights():
    seen = []
    model = make_model(llama_config())
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    rollouts = continuous(model, dtype=torch.bfloat16)
    old = rollouts.sample(NUMBERED, step=0)
    assert set(seen) == {torch.bfloat16}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    new = rollouts.sample(NUMBERED, step=0)
    apart = [(reported - found).abs().mean() for found, reported in (scored(model, new), scored(model, old))]
    assert apart[0] < 0.03 < 0.1 < apart[1]
    assert next(model.parameters()).dtype == torch.float32


def test_an_engine_that_fails_ends_the_run():
    model = make_model(llama_config())

    def fail(*_):
        raise RuntimeError("broken")

    model.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(UserError, match=r"^--rollouts continuous: 4 of 4 rollouts failed .* use --rollouts hf"):
        continuous(model, group_size=1).sample(NUMBERED, step=0)


def test_an_engine_without_a_seed_is_refused_in_one_line(monkeypatch):
    """As transformers 5.5 has it, by the names of what it can be told."""
    continuous_batching.check_seeded()
    monkeypatch.setattr(continuous_batching, "SETTINGS", ("block_size", "num_blocks", "return_logprobs"))
    with pytest.raises(UserError, match=r"^--rollouts continuous: .* takes no seed, .* 5.17; .* or use --rollouts hf"):
        continuous_batching.check_seeded()
