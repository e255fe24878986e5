"""Sampling from the training weights: contract 6 (alignment), stops, groups, and independence of the batch."""

from contextlib import nullcontext

import pytest
import torch

from local_distill.batch import Prompt
from local_distill.errors import UserError
from local_distill.head.sampling import NucleusSampling
from local_distill.models.scorer import TokenScorer
from local_distill.rollouts.hf import HFRollouts
from local_distill.training.batching import collate
from tests.sampling import flat
from tests.tiny_models import gpt2_config, llama_config, make_model

V = 300
GREEDY = NucleusSampling(1.0, 1e-9)
PROMPTS = [Prompt(ids, "", "") for ids in [(5, 6, 7), (9,), (11, 12, 13, 14, 15, 16), (20, 21)]]


def engine(model, **overrides):
    settings = {
        "choose": NucleusSampling(1.0, 1.0), "group_size": 3, "max_new_tokens": 12, "stop_ids": [0], "pad_id": 0,
        "vocab_size": V, "seed": 7, "batch_size": 64, "autocast": nullcontext, "say": print,
    }  # fmt: skip
    return HFRollouts(model, **flat({**settings, **overrides}))


def completions(rollouts):
    return [r.completion.tolist() for r in rollouts]


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return make_model({"llama": llama_config, "gpt2": gpt2_config}[request.param]())


def test_reported_log_probs_are_those_of_scoring_the_same_tokens(model):
    rollouts = engine(model).sample(list(enumerate(PROMPTS)), step=0)
    batch = collate(rollouts, 0)
    with torch.no_grad():
        scored = TokenScorer(model, V)(batch).logprobs
    torch.testing.assert_close(batch.sampler_logprobs, scored, rtol=0, atol=2e-5)
    shifted = (batch.sampler_logprobs[1:] - scored[:-1]).abs().mean()
    assert shifted > 0.5, "a shift by one must be far outside the tolerance"


def test_greedy_equals_generate_of_transformers(model):
    rollouts = engine(model, choose=GREEDY, group_size=1).sample(list(enumerate(PROMPTS)), step=0)
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt.ids])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=0, pad_token_id=0
        )[0, ids.shape[1] :]
        assert rollout.completion.tolist() == expected.tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rollouts_do_not_depend_on_what_else_is_in_the_batch(model, batch_size):
    everything = engine(model).sample(list(enumerate(PROMPTS)), step=3)
    assert completions(engine(model, batch_size=batch_size).sample(list(enumerate(PROMPTS)), step=3)) == completions(
        everything
    )
    alone = engine(model).sample([(2, PROMPTS[2])], step=3)
    assert completions(alone) == completions(everything)[6:9]


def test_order_positions_and_groups(model):
    rollouts = engine(model).sample([(4, PROMPTS[0]), (1, PROMPTS[1])], step=0)
    assert [(r.position, r.prompt) for r in rollouts] == [(4, PROMPTS[0])] * 3 + [(1, PROMPTS[1])] * 3
    assert len({tuple(c) for c in completions(rollouts)}) == 6, "the members of a group differ"


def test_step_and_seed_change_the_samples(model):
    base = completions(engine(model).sample([(0, PROMPTS[0])], step=0))
    assert completions(engine(model).sample([(0, PROMPTS[0])], step=1)) != base
    assert completions(engine(model, seed=8).sample([(0, PROMPTS[0])], step=0)) != base
    assert completions(engine(model).sample([(0, PROMPTS[0])], step=0)) == base


def test_a_stop_token_ends_the_completion_and_belongs_to_it(model):
    stops = list(range(0, V, 8))  # an eighth of all tokens, so that many completions stop, at different lengths
    rollouts = engine(model, stop_ids=stops, group_size=8).sample(list(enumerate(PROMPTS)), step=0)
    finishes = {r.finish for r in rollouts}
    assert finishes == {"stop", "length"}
    assert len({len(r.completion) for r in rollouts}) > 4
    for rollout in rollouts:
        tokens = rollout.completion.tolist()
        assert not any(t in stops for t in tokens[:-1])
        assert (tokens[-1] in stops) == (rollout.finish == "stop")
        assert rollout.finish == "stop" or len(tokens) == 12
    free = engine(model, stop_ids=[], group_size=8).sample(list(enumerate(PROMPTS)), step=0)
    for stopped, unstopped in zip(rollouts, free, strict=True):
        kept = unstopped.completion[: len(stopped.completion)].tolist()
        assert stopped.completion.tolist() == kept, "rows that leave the batch must not disturb the others"


def test_sliding_window_attention_survives_rows_leaving_the_batch():
    from transformers import MistralConfig

    config = MistralConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, initializer_range=0.2,
    )  # fmt: skip
    model = make_model(config)
    stops = list(range(0, V, 8))
    rollouts = engine(model, stop_ids=stops, group_size=4).sample(list(enumerate(PROMPTS)), step=0)
    batch = collate(rollouts, 0)
    with torch.no_grad():
        torch.testing.assert_close(batch.sampler_logprobs, TokenScorer(model, V)(batch).logprobs, rtol=0, atol=2e-5)


def test_only_shared_tokens_are_drawn(model):
    rollouts = engine(model, vocab_size=40, group_size=16).sample(list(enumerate(PROMPTS)), step=0)
    assert max(max(c) for c in completions(rollouts)) < 40


def test_training_mode_is_given_back_and_dropout_is_off_meanwhile():
    model = make_model(gpt2_config())  # GPT-2's own dropout of 0.1, not switched off here
    quiet = completions(engine(model.eval()).sample(list(enumerate(PROMPTS)), step=0))
    model.train()
    assert completions(engine(model).sample(list(enumerate(PROMPTS)), step=0)) == quiet
    assert model.training


def test_gradient_checkpointing_does_not_switch_the_cache_off():
    model = make_model(llama_config())
    expected = completions(engine(model).sample(list(enumerate(PROMPTS)), step=0))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert completions(engine(model).sample(list(enumerate(PROMPTS)), step=0)) == expected


def test_autocast_really_acts():
    model, seen = make_model(llama_config()), set()
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    engine(model, autocast=lambda: torch.autocast("cpu", torch.bfloat16)).sample([(0, PROMPTS[0])], step=0)
    assert seen == {torch.bfloat16}


def test_sampling_that_runs_out_of_memory_goes_on_with_fewer_rollouts_at_a_time(model):
    """The same rollouts; once found, the number that fits is kept."""
    expected = engine(model).sample(list(enumerate(PROMPTS)), step=0)
    sizes, said = [], []

    def small_memory(_module, _args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.register_forward_pre_hook(small_memory, with_kwargs=True)
    rollouts = engine(model, say=said.append)
    found = rollouts.sample(list(enumerate(PROMPTS)), step=0)
    handle.remove()
    assert completions(found) == completions(expected)
    assert [r.position for r in found] == [r.position for r in expected]
    assert said == [
        "sampling 12 rollouts at a time did not fit the memory; from here on --sampling_batch_size 6",
        "sampling 6 rollouts at a time did not fit the memory; from here on --sampling_batch_size 3",
    ]
    assert not model.training
    assert all("forward" not in vars(module) for module in model.modules()), "packed layers are given back"


def test_a_single_rollout_that_does_not_fit_is_said_in_one_line(model):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(no_memory)
    with pytest.raises(UserError, match="a single rollout; lower --max_new_tokens"):
        engine(model, batch_size=1).sample([(0, PROMPTS[0])], step=0)
