"""A padded micro-batch goes through without a mask where that changes nothing, and through training without noise."""

import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma3TextConfig,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
    Qwen3NextConfig,
    RwkvConfig,
    XLNetConfig,
)

from local_distill.errors import UserError
from local_distill.models import start_checks
from local_distill.models.files import open_model
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_quiet, check_scorer
from local_distill.training.batching import collate
from tests.models.test_scorer import ROLLOUTS, SHARED, V, dense
from tests.tiny_models import gpt2_config, llama_config, make_model, make_tokenizer, save_model, with_adapter

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONFIGS = {
    "llama": llama_config(),
    "gpt2": gpt2_config(),  # learned positions
    "opt": OPTConfig(
        vocab_size=V, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=0, init_std=0.2,
    ),  # positions that are counted in the mask
    "bloom": BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),  # ALiBi, likewise
    "gemma3 windows": Gemma3TextConfig(
        **SHARED, head_dim=8, sliding_window=3, layer_types=["sliding_attention", "full_attention"]
    ),
    "mixtral": MixtralConfig(**SHARED, **MOE, router_jitter_noise=0.5),
    "qwen3-next": Qwen3NextConfig(
        **SHARED, head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8,
    ),  # a convolution and a recurrent state
}  # fmt: skip


def loss_and_gradients(scorer, batch):
    states = scorer.states(batch)
    loss = (states.hidden @ states.head.weight[batch.targets].t()).log_softmax(-1).diagonal().sum()
    scorer.zero_grad()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_batch_without_a_mask_is_the_batch_with_one(name):
    scorer = TokenScorer(make_model(CONFIGS[name]), V)
    scorer.needs_mask = True
    check_scorer(scorer, "--student_model")
    assert not scorer.needs_mask
    batch = collate(ROLLOUTS, 0)
    found = loss_and_gradients(scorer, batch)
    torch.testing.assert_close(scorer(batch).logprobs, dense(scorer.model, ROLLOUTS).detach(), rtol=0, atol=2e-5)
    scorer.needs_mask = True
    torch.testing.assert_close(found, loss_and_gradients(scorer, batch), rtol=1e-4, atol=2e-5)


def test_attention_is_told_that_it_is_causal_and_keeps_nothing_of_length_squared(monkeypatch):
    scorer = TokenScorer(make_model(llama_config()), V)
    check_scorer(scorer, "--student_model")
    calls = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **kwargs):
        calls.append((kwargs.get("attn_mask"), kwargs.get("is_causal")))
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    batch = collate([rollout for rollout in ROLLOUTS for _ in range(2)], 0)
    length = batch.input_ids.shape[1]

    def squared():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
            scorer.states(batch)
        return [shape for shape in kept if shape[-2:] == (length, length)]

    assert not squared()
    assert len(calls) == 2
    assert all(mask is None and causal for mask, causal in calls)
    scorer.needs_mask = True
    assert squared(), "which the count would have shown"


def test_a_model_that_needs_its_mask_keeps_it():
    model = make_model(llama_config())
    plain = model.model.forward

    def forward(attention_mask=None, **kwargs):
        rows, length = kwargs["input_ids"].shape
        if attention_mask is None:  # as some models' own code has it: no mask, no order
            attention_mask = torch.ones(rows, 1, length, length, dtype=torch.bool)
        return plain(attention_mask=attention_mask, **kwargs)

    model.model.forward = forward
    scorer = TokenScorer(model, V)
    with pytest.raises(UserError, match="LlamaForCausalLM sees the tokens that come after a token"):
        check_scorer(scorer, "--student_model")  # alone a row has no mask either

    def padded(attention_mask=None, **kwargs):
        alone = len(kwargs["input_ids"]) == 1
        return plain(attention_mask=attention_mask, **kwargs) if alone else forward(attention_mask, **kwargs)

    model.model.forward = padded
    check_scorer(scorer, "--student_model")
    assert scorer.needs_mask
    torch.testing.assert_close(
        scorer(collate(ROLLOUTS, 0)).logprobs, dense(model, ROLLOUTS).detach(), rtol=0, atol=2e-5
    )


def test_a_model_that_sees_both_ways_is_refused():
    model = make_model(XLNetConfig(vocab_size=V, d_model=32, n_layer=2, n_head=4, d_inner=48, initializer_range=0.2))
    with pytest.raises(UserError, match="--student_model: XLNetLMHeadModel sees the tokens that come after"):
        check_scorer(TokenScorer(model, V), "--student_model")


def test_it_is_refused_in_low_precision_too():
    model = make_model(llama_config(), dtype=torch.bfloat16)
    for layer in model.base_model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UserError, match="sees the tokens that come after"):
        check_scorer(TokenScorer(model, V), "--student_model")


def test_low_precision_is_no_reason_to_refuse_a_model():
    """Other kernels for other shapes, as GPUs have: what the rounding of all products to bf16 does is let through."""
    exact = make_model(llama_config(layers=12, hidden_size=64, initializer_range=0.3))
    rounded = TokenScorer(exact.to(torch.bfloat16), V)
    batch = collate(ROLLOUTS, 0)
    found = rounded.states(batch).hidden
    expected = TokenScorer(rounded.model.float(), V).states(batch).hidden
    assert 0.02 < ((found - expected).norm(dim=1) / expected.norm(dim=1)).median() < 0.25
    assert start_checks._same(found, expected.to(torch.bfloat16))


NOISY = {
    "mixtral": MixtralConfig(**SHARED, **MOE, router_jitter_noise=0.3),
    "phimoe": PhimoeConfig(**SHARED, **MOE, input_jitter_noise=0.3),  # draws its experts as well
    "gpt2": gpt2_config(resid_pdrop=0.3),
}


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_student_trains_as_it_samples(name, checkpointing):
    """Two passes in training are the same, and what sampling sees; with activations computed again as well."""
    model = make_model(NOISY[name])
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    scorer = TokenScorer(model, V)
    batch = collate(ROLLOUTS, 0)
    expected = scorer(batch).logprobs
    before = {n: p.clone() for n, p in scorer.named_parameters()}
    check_quiet(scorer, "--student_model")
    scorer.train()
    (loss, gradients), (again, same_gradients) = loss_and_gradients(scorer, batch), loss_and_gradients(scorer, batch)
    torch.testing.assert_close(scorer(batch).logprobs, expected, rtol=0, atol=1e-6)
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[n], same_gradients[n]) for n in gradients)
    assert all(torch.equal(p, before[n]) for n, p in scorer.named_parameters())


def test_checkpointing_still_computes_again_what_it_does_not_keep():
    model = make_model(llama_config())
    batch = collate(ROLLOUTS, 0)

    def kept():
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, lambda t: t):
            TokenScorer(model, V).train().states(batch)
        return len(shapes)

    whole = kept()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert kept() < whole / 2


def test_an_adapters_dropout_is_the_noise_that_was_asked_for():
    model = with_adapter(make_model(gpt2_config()), dropout=0.5)
    scorer = TokenScorer(model, V)
    check_quiet(scorer, "--student_model")
    batch = collate(ROLLOUTS, 0)
    scorer.train()
    assert not torch.equal(scorer(batch).logprobs, scorer(batch).logprobs)
    scorer.eval()
    assert torch.equal(scorer(batch).logprobs, scorer(batch).logprobs)


def test_a_student_that_is_another_in_training_is_refused():
    model = make_model(llama_config())
    norm = model.model.norm
    plain = norm.forward
    norm.forward = lambda states: plain(states) * (1.0 + 0.1 * torch.rand(()))  # whatever its flag says
    with pytest.raises(UserError, match="LlamaForCausalLM gives other states while it trains"):
        check_quiet(TokenScorer(model, V), "--student_model")


def test_rwkv_keeps_one_set_of_weights_for_training_and_sampling(tmp_path):
    config = RwkvConfig(vocab_size=V, hidden_size=32, attention_hidden_size=32, num_hidden_layers=4, rescale_every=2)
    folder = save_model(tmp_path / "rwkv", config, make_tokenizer())
    model = open_model("--student_model", str(folder), False).load(torch.float32)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        model(torch.arange(8)[None])  # as sampling and the evaluation before a checkpoint do
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
