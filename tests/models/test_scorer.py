"""A model behind one forward: its log-probs against the model's own dense logits, for each family's head."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CohereConfig, Gemma2Config, GraniteConfig

from local_distill.errors import UserError
from local_distill.head.chunked_loss import ChunkLoss, summed_loss
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_head
from local_distill.training.batching import collate
from tests.tiny_models import gpt2_config, llama_config, make_model, with_adapter
from tests.training.test_batching import rollout

V = 300
SHARED = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": llama_config(),
    "llama tied": llama_config(tie_word_embeddings=True),
    "gpt2": gpt2_config(),
    "gemma2 soft-cap": Gemma2Config(**SHARED, head_dim=8, final_logit_softcapping=2.0),
    "granite scaling": GraniteConfig(**SHARED, logits_scaling=7.0),
    "cohere scale": CohereConfig(**SHARED, logit_scale=0.3),
}
ROLLOUTS = [rollout([5, 6], [7, 8, 0]), rollout([9], [10]), rollout([1, 2, 3, 4, 5], [6, 7]), rollout([3], [])]


def dense(model, rollouts, vocab_size=V):
    """Each rollout alone, without padding, through the model's own head and a log-softmax over everything."""
    out = []
    for r in rollouts:
        ids = torch.cat([torch.tensor(r.prompt.ids), r.completion])
        logprobs = model(input_ids=ids[None]).logits[0, :, :vocab_size].log_softmax(-1)
        first = len(r.prompt.ids)
        out += [logprobs[t - 1, ids[t]] for t in range(first, len(ids))]
    return torch.stack(out)


def weighed(targets, upstream):
    """Σ u_t s_t as a loss, by its definition."""

    def chunk_loss(part, student):
        chosen, u = targets[part, None], upstream[part]
        s = student.logprobs.gather(1, chosen).squeeze(1)
        return ChunkLoss(
            (u * s).sum(), (-student.probs).scatter_add(1, chosen, torch.ones_like(s)[:, None]) * u[:, None], (s,)
        )

    return chunk_loss


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_and_gradients_equal_the_dense_computation(name):
    model = make_model(CONFIGS[name])
    scorer = TokenScorer(model, V)
    check_head(scorer, "--student_model")
    upstream = torch.randn(6, generator=torch.Generator().manual_seed(0))
    batch = collate(ROLLOUTS, 0)
    states = scorer.states(batch)
    found = summed_loss(states.hidden, states.head, weighed(batch.targets, upstream), ("logprobs",))
    torch.testing.assert_close(scorer(batch).logprobs, found.stats["logprobs"])
    found.total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    expected = dense(model, ROLLOUTS)
    (expected * upstream).sum().backward()
    torch.testing.assert_close(found.stats["logprobs"], expected.detach(), rtol=0, atol=2e-5)
    for n, p in model.named_parameters():
        error = (gradients[n] - p.grad).norm() / p.grad.norm().clamp(min=1e-8)
        assert error < 1e-4, n


def test_shared_vocabulary_is_the_softmax_over_the_first_rows():
    model = make_model(llama_config())
    with torch.no_grad():
        found = TokenScorer(model, 50)(collate(ROLLOUTS, 0)).logprobs
        torch.testing.assert_close(found, dense(model, ROLLOUTS, 50), rtol=0, atol=2e-5)


def test_adapter_is_scored_and_trained_while_the_base_is_frozen():
    model = with_adapter(make_model(gpt2_config()))
    scorer = TokenScorer(model, V)
    check_head(scorer, "--student_model")
    batch = collate(ROLLOUTS, 0)
    found = scorer(batch, lambda *states: summed_loss(*states[:2], weighed(batch.targets, torch.ones(6)), ("s",)))
    torch.testing.assert_close(found.stats["s"], dense(model, ROLLOUTS).detach(), rtol=0, atol=2e-5)
    found.total.backward()
    grads = {n: p.grad is not None for n, p in model.named_parameters()}
    assert all(has == ("lora_" in n) for n, has in grads.items())


def test_a_head_that_is_not_understood_is_refused():
    model = make_model(llama_config())
    scorer = TokenScorer(model, V)
    plain = model.forward

    def scaled(**kwargs):
        output = plain(**kwargs)
        output.logits = output.logits * 1.1  # where no configuration says so
        return output

    model.forward = scaled
    with pytest.raises(UserError, match=r"--teacher_model: LlamaForCausalLM treats its logits"):
        check_head(scorer, "--teacher_model")


def test_an_adapter_on_the_head_is_refused():
    model = get_peft_model(make_model(llama_config()), LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
    with pytest.raises(UserError, match="--lora_target_modules"):
        check_head(TokenScorer(model, V), "--student_model")
