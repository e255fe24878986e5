"""The check before the first step: what is sampled as it is scored passes, all else is refused in one line."""

import pytest
import torch
from transformers import (
    GPTNeoConfig,
    JambaConfig,
    Lfm2Config,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    MistralConfig,
    MixtralConfig,
    OpenAIGPTConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    XLNetConfig,
    xLSTMConfig,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from local_distill.errors import UserError
from local_distill.models.files import ModelFiles
from local_distill.models.scorer import TokenScorer
from local_distill.rollouts.checking import NEW_TOKENS, check_sampling
from local_distill.rollouts.student_checks import check_has_cache
from tests.tiny_models import gpt2_config, llama_config, make_model

V = 300
SIZES = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
WITHOUT_HEAD_DIM = {name: value for name, value in SIZES.items() if name != "head_dim"}
TWO_KINDS = {"layer_types": ["linear_attention", "full_attention"]}
RIGHT = {
    "llama": llama_config(),
    "gpt2": gpt2_config(),
    "sliding window": MistralConfig(**SIZES, sliding_window=4),
    "local attention": GPTNeoConfig(
        vocab_size=V, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=4, initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    ),
    "states and attention": Qwen3NextConfig(
        **SIZES, **TWO_KINDS, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "convolutions and attention": Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "mamba and attention": JambaConfig(
        **WITHOUT_HEAD_DIM, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8, mamba_dt_rank=4,
    ),
    "states alone": MambaConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.2, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    ),
    "states alone, heads": Mamba2Config(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1,
        chunk_size=8, initializer_range=0.2, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    ),
}  # fmt: skip


def check(model, longest=64, **more):
    check_sampling(TokenScorer(model, V), "--student_model", pad_id=0, longest=longest, **more)


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    check(make_model(RIGHT[name]))


def test_under_autocast_and_in_low_precision():
    low = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    check(make_model(llama_config()), autocast=low)
    check(make_model(llama_config(), dtype=torch.bfloat16))


def test_nothing_is_left_behind():
    """Neither mode nor random state nor gradient; and the same text is read by whoever asks next."""
    model, ids = make_model(RIGHT["states and attention"]), torch.arange(1, 9)[None]
    before, drawn = model(ids).logits, torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        check(model)
        assert model.training is training
        assert all(each.training is training for each in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(model(ids).logits, before)


def gpt2_without_positions():
    """Absolute positions, counted from the first column: wrong for rows that are padded on the left."""
    model = make_model(gpt2_config())
    model.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True)
    return model


def states_in_the_model():
    """RecurrentGemma: what it has read stays in its modules, where no row can be moved."""
    return make_model(
        RecurrentGemmaConfig(
            **{**SIZES, "num_key_value_heads": 1},
            lru_width=32,
            block_types=["recurrent", "attention"],
            attention_window_size=6,
            sliding_window=6,
        )
    )


def a_cache_of_its_own():
    return make_model(MiniMaxConfig(**SIZES, **TWO_KINDS, num_local_experts=2, num_experts_per_tok=1))


@pytest.mark.parametrize("make", [gpt2_without_positions, states_in_the_model, a_cache_of_its_own])
def test_what_is_sampled_wrongly_is_refused_in_one_line(make):
    with pytest.raises(UserError) as refused:
        check_sampling(TokenScorer(make(), V), "--student_model", pad_id=0, longest=64, instead="use something else")
    said = str(refused.value)
    assert said.startswith("--student_model: ")
    assert said.endswith("; use something else")
    assert "\n" not in said


def a_little_off(config):
    """Where a token is read by itself, as far as one token's experts that change places move the mean."""
    model = make_model(config)
    model.lm_head.register_forward_hook(lambda _, states, logits: logits * (1.03 if states[0].shape[1] == 1 else 1.0))
    return model


def test_no_mixture_is_refused_for_what_a_tie_of_two_experts_does():
    check(a_little_off(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)))
    with pytest.raises(UserError, match="rounding explains 1e-05"):
        check(a_little_off(llama_config()))


def test_a_window_is_looked_at_where_the_run_comes_that_far(monkeypatch):
    """Keys that are forgotten a token too early: nothing shows before the window is full."""

    def forget(self, keys, values, *args, **kwargs):
        keys, values = original(self, keys, values, *args, **kwargs)
        if self.cumulative_length >= self.sliding_window:
            self.keys = self.keys * 1.5
        return keys, values

    original = DynamicSlidingWindowLayer.update
    monkeypatch.setattr(DynamicSlidingWindowLayer, "update", forget)
    scorer = TokenScorer(make_model(MistralConfig(**SIZES, sliding_window=20)), V)
    check_sampling(scorer, "--student_model", pad_id=0, longest=20 + NEW_TOKENS - 2)
    with pytest.raises(UserError, match="gives other log-probs token by token"):
        check_sampling(scorer, "--student_model", pad_id=0, longest=20 + NEW_TOKENS - 1)


@pytest.mark.parametrize(
    "config", [OpenAIGPTConfig(), RwkvConfig(), XLNetConfig(), xLSTMConfig()], ids=lambda config: config.model_type
)
def test_a_model_without_a_cache_is_refused_before_its_weights(config):
    with pytest.raises(UserError, match=r"--student_model somewhere: .* cache of transformers, .*; choose another"):
        check_has_cache(files_of(config))


@pytest.mark.parametrize(
    "config",
    [llama_config(), RIGHT["states alone"], RIGHT["mamba and attention"]],
    ids=lambda config: config.model_type,
)
def test_a_cache_of_transformers_is_enough(config):
    check_has_cache(files_of(config))


def files_of(config):
    return ModelFiles("--student_model", "somewhere", config, None, None, trust_remote_code=False)
