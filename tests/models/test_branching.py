"""Each prompt once: states, gradients and whole runs are those of rollouts that are read one by one."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from transformers import FalconConfig, Gemma3TextConfig, Lfm2Config, MistralConfig, Qwen3Config

from local_distill.models import branching, start_checks
from local_distill.models.files import recompute_activations
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import can_share_prompts, check_scorer
from local_distill.shared_prompts import SharedPrompts
from local_distill.training import batching
from local_distill.training.batching import collate
from tests.launching import SETTINGS, assert_same_numbers, metrics, student_and_teacher
from tests.models.test_scorer import SHARED
from tests.tiny_models import gpt2_config, llama_config, make_model, with_adapter
from tests.training.test_batching import rollout

QWEN3 = Qwen3Config(**SHARED, head_dim=8, tie_word_embeddings=True)
WINDOW = 4
GEMMA3 = Gemma3TextConfig(
    **SHARED | {"num_hidden_layers": 3}, head_dim=8, sliding_window=WINDOW,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)  # fmt: skip
CONFIGS = {
    "llama": llama_config(),
    "llama tied": llama_config(tie_word_embeddings=True),
    "gpt2": gpt2_config(),
    "qwen3": QWEN3,
    "gemma3": GEMMA3,
    "mistral": MistralConfig(**SHARED, sliding_window=WINDOW),
}
FLOAT32_INSIDE = 1e-4
"""All but GPT-2 compute their norms, and the gradients through them, in float32, whatever they are given."""
LONG, SHORT, LONE = [5, 6, 9, 4, 7, 3, 8], [11, 12, 13], [2, 14]
RAGGED = [
    rollout(LONG, [7, 8, 9, 1, 2, 4]), rollout(SHORT, [10]), rollout(LONG, [3]), rollout(SHORT, [6, 7]),
    rollout(LONG, [5, 1, 12]), rollout(LONE, [4, 5, 6]), rollout(SHORT, [9, 9, 8, 7, 6]),
]  # fmt: skip
EVEN = [rollout(LONG, [i, i + 1, i + 2]) for i in range(4)]  # nothing is padding


@pytest.fixture(autouse=True)
def _shared_even_where_it_saves_little(monkeypatch):
    monkeypatch.setattr(batching, "WORTH_SHARING", 10.0)


@contextmanager
def counted():
    """The tokens of each pass in which prompts are shared."""
    read, forward = [], branching.read_branches

    def counting(body, input_ids, tokens, *rest):
        read.append(tokens.num_tokens)
        return forward(body, input_ids, tokens, *rest)

    with mock.patch("local_distill.models.scorer.read_branches", counting):
        yield read


def states_and_gradients(scorer, rollouts, share):
    """The states (N, H) that predict the completion tokens, and the gradients of their sum of many colours."""
    scorer.shares_prompts = share
    batch = collate(rollouts, 0, share=True)
    with counted() as read:
        hidden = scorer(batch, lambda hidden, *_: hidden)
    assert read == ([batch.tokens_read] if share else [])
    colours = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0), dtype=hidden.dtype)
    scorer.zero_grad()
    (hidden * colours).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in scorer.named_parameters() if p.grad is not None}


def assert_equal(model, rollouts, tolerance):
    scorer = TokenScorer(model, SHARED["vocab_size"])
    check_scorer(scorer, "--student_model")
    assert can_share_prompts(scorer)
    plain, plain_gradients = states_and_gradients(scorer, rollouts, share=False)
    shared, gradients = states_and_gradients(scorer, rollouts, share=True)
    assert (plain - shared).abs().max() <= (1e-11 if plain.dtype == torch.float64 else tolerance) * plain.abs().max()
    assert_close(gradients, plain_gradients, tolerance)


def assert_close(gradients, expected, tolerance):
    assert gradients.keys() == expected.keys()
    for name in expected:
        assert (gradients[name] - expected[name]).norm() <= tolerance * (expected[name].norm() + 1e-3), name


@pytest.mark.parametrize("rollouts", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("name", CONFIGS)
def test_states_and_gradients_are_those_of_rollouts_in_rows(name, rollouts):
    assert_equal(make_model(CONFIGS[name], dtype=torch.float64), rollouts, 1e-11 if name == "gpt2" else FLOAT32_INSIDE)
    assert_equal(make_model(CONFIGS[name]), rollouts, FLOAT32_INSIDE)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_an_adapter_and_activations_that_are_computed_again_change_nothing(name):
    model = with_adapter(make_model(CONFIGS[name], dtype=torch.float64)).double()
    recompute_activations(model)
    scorer = TokenScorer(model, SHARED["vocab_size"])
    check_scorer(scorer, "--student_model")
    assert can_share_prompts(scorer)
    scorer.train()
    (plain, by_rows), (shared, at_once) = (states_and_gradients(scorer, RAGGED, share) for share in (False, True))
    torch.testing.assert_close(plain, shared, rtol=1e-10, atol=1e-12)
    assert by_rows
    assert_close(at_once, by_rows, FLOAT32_INSIDE)


def test_bf16_differs_by_rounding():
    scorer = TokenScorer(make_model(llama_config()), SHARED["vocab_size"])
    check_scorer(scorer, "--student_model")
    assert can_share_prompts(scorer)
    with torch.autocast("cpu", torch.bfloat16):
        (plain, _), (shared, _) = (states_and_gradients(scorer, RAGGED, share) for share in (False, True))
    exact, _ = states_and_gradients(scorer, RAGGED, share=False)
    assert 0 < (shared - exact).norm() < 2 * (plain - exact).norm()


@pytest.mark.parametrize("config", [
    FalconConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    Lfm2Config(**SHARED, layer_types=["conv", "full_attention"]),
], ids=lambda config: config.model_type)  # fmt: skip
def test_a_model_that_looks_another_way_from_token_to_token_keeps_its_rows(config):
    scorer = TokenScorer(make_model(config), 300)
    check_scorer(scorer, "--student_model")
    assert not can_share_prompts(scorer)


def test_a_model_whose_window_does_not_come_to_attention_keeps_its_rows(monkeypatch):
    scorer = TokenScorer(make_model(GEMMA3), 300)
    check_scorer(scorer, "--student_model")

    def without_window(*args, **settings):
        return branching.branching_attention(*args, **settings | {"sliding_window": None})

    monkeypatch.setattr(start_checks, "extend_attention", lambda: None)
    branching.AttentionInterface.register(branching.IMPLEMENTATION, without_window)
    try:
        assert not can_share_prompts(scorer)
    finally:
        branching.extend_attention()
    assert can_share_prompts(scorer)


def test_a_layout_that_comes_to_no_attention_is_no_result():
    """An implementation that was changed after the start would read all texts of the row as one."""
    model = make_model(llama_config())
    scorer = TokenScorer(model, 300)
    assert can_share_prompts(scorer)
    scorer.shares_prompts = True
    model.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="came to no attention"):
        scorer(collate(RAGGED, 0, share=True))


@pytest.mark.parametrize("more", [{"s_aux": torch.zeros(4)}, {"attention_mask": torch.zeros(1, 1, 9, 9)}], ids=str)
def test_attention_that_is_asked_for_more_is_refused(more):
    batch = collate(EVEN, 0, share=True)
    states = torch.zeros(1, 4, batch.tokens_read, 8)
    settings = {"attention_mask": torch.zeros(1, 1, 1, 1), branching.LAYOUT: branching.Layout(batch.shared)} | more
    with pytest.raises(ValueError, match="of its own"):
        branching.branching_attention(torch.nn.Identity(), states, states, states, **settings)


def test_masks_have_strides_that_kernels_take_as_they_are():
    layout = branching.Layout(collate(RAGGED, 0, share=True).shared)
    for window in (None, 4):
        form = branching._Form(torch.float32, window, 2)
        for mask in (layout.mask_of_completions(form), layout.mask_of_prompts(form)):
            assert mask is None or all(stride % 8 == 0 for stride in mask.stride()[:-1])


def test_what_sees_a_neighbour_is_found_out(monkeypatch):
    """The check at the start fails where completions see each other, or the wrong prompt."""
    scorer = TokenScorer(make_model(llama_config()), 300)
    check_scorer(scorer, "--student_model")
    seen = SharedPrompts.seen_by_completions
    monkeypatch.setattr(SharedPrompts, "seen_by_completions", lambda self, window: torch.ones_like(seen(self, window)))
    assert not can_share_prompts(scorer)


def test_a_plain_forward_is_what_it_was():
    model = make_model(llama_config())
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    branching.AttentionInterface.register(branching.IMPLEMENTATION, branching.sdpa_attention_forward)
    before = model(input_ids=ids, attention_mask=mask).logits
    branching.extend_attention()
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


def test_some_rows_of_a_batch_are_laid_out_as_if_alone():
    whole, part = collate(RAGGED, 0, share=True).rows(2, 6), collate(RAGGED[2:6], 0, share=True)
    assert torch.equal(whole.input_ids, part.input_ids)
    for name in ("source", "positions", "predictors", "prompts", "completions", "back"):
        assert torch.equal(getattr(whole.shared, name), getattr(part.shared, name)), name
    assert whole.tokens_read == len(LONG) + len(SHORT) + len(LONE) + (0 + 1 + 2 + 2)


def test_the_layout_names_the_tokens_of_the_rows():
    batch = collate(RAGGED, 0, share=True)
    row = batch.input_ids.flatten()[batch.shared.source]
    assert torch.equal(row[batch.shared.predictors], batch.input_ids.flatten()[batch.predictors])
    both = torch.cat([batch.shared.prompts.flatten(), batch.shared.completions.flatten()])
    assert torch.equal(both[batch.shared.back], torch.arange(len(row)))


@pytest.mark.parametrize("more", [[], ["--use_lora", "--lora_r", "4", "--gradient_checkpointing"]], ids=["all", "lora"])
def test_a_run_is_the_run_that_reads_a_prompt_for_each_rollout(tmp_path, monkeypatch, capsys, more):
    from local_distill import build
    from local_distill.config.train_config import parse_config
    from local_distill.teachers import local
    from local_distill.train_on_policy_local import train

    models = student_and_teacher(tmp_path)

    def run(name, share):
        for module in (build, local):
            monkeypatch.setattr(module, "can_share_prompts", can_share_prompts if share else lambda _: False)
        with counted() as read:
            train(parse_config([*models, *SETTINGS, *more, "--steps", "3", "--output_dir", str(tmp_path / name)]))
        return bool(read), "a prompt is read once for each rollout" in capsys.readouterr().out

    assert run("plain", share=False) == (False, True)
    assert run("shared", share=True) == (True, False)
    assert_same_numbers(metrics(tmp_path / "shared"), metrics(tmp_path / "plain"), 1e-3)
