"""What a model is asked before it is trusted, on a few tokens: is it read as it reads itself, does it look ahead, does
it need to be told where the padding is, is it the same while it trains?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from local_distill.batch import TokenBatch
from local_distill.errors import UserError
from local_distill.head.logprobs import Head, float32_products
from local_distill.models.branching import IMPLEMENTATION, extend_attention, takes_layout, windows_of_layers
from local_distill.models.files import body_of, causal_lm
from local_distill.models.scorer import ADAPTER, TokenScorer
from local_distill.shared_prompts import share_prompts

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""The kinds of layers that see a text token by token, or a window of it."""
LONG, SHORT, SHORTER = 8, 5, 3
"""Tokens of two rows that are read together, and of the beginning of the shorter one."""


def check_scorer(scorer: TokenScorer, flag: str) -> None:
    """Find out whether the model needs a mask, and make sure that it can be scored.

    flag: what the model was given as. Raises UserError for a model that would train on plausible nonsense.
    """
    check_head(scorer, flag)
    scorer.needs_mask = _needs_mask(scorer, flag)


@torch.no_grad()
def check_head(scorer: TokenScorer, flag: str) -> None:
    """Compare the scorer with the model's own logits on a few tokens, in the model's own precision.

    An architecture that treats its logits in a way that ``head_of`` does not know would train on
    plausible nonsense. Raises UserError instead.
    """
    network = causal_lm(scorer.model)
    if not isinstance(network.get_output_embeddings(), nn.Linear):
        raise UserError(
            f"{flag}: the output head is a {type(network.get_output_embeddings()).__name__}, needs to be a plain "
            "linear layer; leave the head out of --lora_target_modules, or choose another model"
        )
    device = network.get_output_embeddings().weight.device
    ids = torch.arange(1, 9, device=device)[None]
    lengths = (7,)
    batch = TokenBatch(
        ids, torch.ones_like(ids), torch.arange(7, device=device), ids[0, 1:], torch.zeros(7, device=device), lengths
    )
    logits = scorer.model(input_ids=ids, use_cache=False).logits[0, :-1, : scorer.vocab_size].double()
    expected = logits.log_softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)
    found = scorer(batch).logprobs.double()
    if not expected.isfinite().all():
        raise UserError(f"{flag}: its weights give NaN or infinite log-probs; the files are damaged, fetch them again")
    # One ulp of a low-precision logit of 32 is 0.25 in bf16; a missing scale or cap is off by whole nats.
    tolerance = 1e-3 if logits.abs().max() < 1 or network.dtype == torch.float32 else 0.25
    if not torch.allclose(found, expected, rtol=0.0, atol=tolerance):
        raise UserError(
            f"{flag}: {type(network).__name__} treats its logits in a way that is not supported (log-probs off by "
            f"{(found - expected).abs().max().item():.3g} nats); choose another architecture"
        )


@torch.no_grad()
def _needs_mask(scorer: TokenScorer, flag: str) -> bool:
    """Say whether a row padded on the right is the same as alone only when the model is told of the padding."""
    alone = _states(scorer, [SHORT])[0]
    scorer.needs_mask = False
    if _same(_states(scorer, [LONG, SHORT])[1], alone):
        return False
    name = type(causal_lm(scorer.model)).__name__
    if not _same(_states(scorer, [SHORTER])[0], alone[:SHORTER]):
        raise UserError(f"{flag}: {name} sees the tokens that come after a token, needs to be causal; choose another")
    scorer.needs_mask = True
    if not _same(_states(scorer, [LONG, SHORT])[1], alone):
        raise UserError(
            f"{flag}: {name} reads a text otherwise when it is padded beside a longer one, which no mask prevents; "
            "choose another architecture"
        )
    return True


@torch.no_grad()
def check_quiet(scorer: TokenScorer, flag: str) -> None:
    """Raise UserError when the student, but for its adapter's dropout, is not in training what it is in sampling."""
    sampling = _states(scorer, [SHORT])[0]
    scorer.train()
    for name, module in scorer.model.named_modules():
        module.training &= ADAPTER not in name
    training = _states(scorer, [SHORT])[0]
    scorer.eval()
    if not _same(training, sampling):
        raise UserError(
            f"{flag}: {type(causal_lm(scorer.model)).__name__} gives other states while it trains than while it "
            "samples, which would read as divergence from the teacher; choose another architecture"
        )


@torch.no_grad()
def can_share_prompts(scorer: TokenScorer) -> bool:
    """Say whether the model reads rollouts with their prompts once as it reads each rollout by itself.

    So it is with attention that is transformers' own, over all that came before or over a window of it, and where
    nothing else looks from one token to another. Found out by trying, after ``check_scorer``.
    """
    network = causal_lm(scorer.model)
    config = network.config.get_text_config()
    if config._attn_implementation != IMPLEMENTATION or scorer.needs_mask or not takes_layout(body_of(network)):
        return False
    extend_attention()
    device = network.get_output_embeddings().weight.device
    batch = _branching(scorer.vocab_size, device)
    scorer.shares_prompts = False
    plain: Tensor = scorer(batch, _hidden)
    scorer.shares_prompts = True
    try:
        with windows_of_layers() as windows:
            shared: Tensor = scorer(batch, _hidden)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever its own code says to a layout, or to texts side by side in a row
        return False
    finally:
        scorer.shares_prompts = False
    layers = getattr(config, "layer_types", None) or ["sliding_attention"] * len(windows)
    sliding = getattr(config, "sliding_window", None) or None
    expected = [sliding if each == "sliding_attention" else None for each in layers]
    return bool(windows) and windows == expected and set(layers) <= KNOWN_LAYERS and _same(shared, plain)


def _branching(vocab_size: int, device: torch.device) -> TokenBatch:
    """Return two prompts of unlike length with three unlike completions each, with the layout that shares them."""
    prompts, completions = (3, 5), (4, 2, 3)
    rows = [(group, before, after) for group, before in enumerate(prompts) for after in completions]
    width = max(prompts) + max(completions)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (group, before, after) in enumerate(rows):
        ids[row, :before] = 1 + torch.arange(before) + 2 * group
        ids[row, before : before + after] = 7 + torch.arange(after) * (row + 1)
    ids %= vocab_size
    lengths = torch.tensor([before + after for _, before, after in rows])
    places = [row * width + before - 1 + torch.arange(after) for row, (_, before, after) in enumerate(rows)]
    predictors = torch.cat(places)
    layout = share_prompts([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], width)
    mask = (torch.arange(width) < lengths[:, None]).long()
    zeros = torch.zeros(len(predictors))
    return TokenBatch(ids, mask, predictors, ids.flatten()[predictors + 1], zeros, layout.lengths, layout).to(device)


def _states(scorer: TokenScorer, lengths: list[int]) -> list[Tensor]:
    """Return the states (tokens, H) of rows that all begin with the same tokens, read in one pass."""
    device = causal_lm(scorer.model).get_output_embeddings().weight.device
    width = max(lengths)
    ids = ((1 + torch.arange(width, device=device)) % scorer.vocab_size).expand(len(lengths), width)
    mask = (torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]).long()
    places = torch.arange(ids.numel(), device=device)
    batch = TokenBatch(ids, mask, places, ids.flatten(), torch.zeros(ids.numel(), device=device), (width,) * len(ids))
    hidden: Tensor = scorer(batch, _hidden).view(len(ids), width, -1)
    return [row[:length] for row, length in zip(hidden, lengths, strict=True)]


def _hidden(hidden: Tensor, head: Head, targets: Tensor) -> Any:
    del head, targets
    return hidden


def _same(found: Tensor, expected: Tensor) -> bool:
    """Say whether states differ by rounding alone, at most positions: an expert that is nearly chosen may change one.

    The shape of a batch decides in which order products are summed, and a large residual stream magnifies that: bf16
    is off from float32 by 7 % in the states of SmolLM2-135M (median). What sees other tokens is off by half and more.
    """
    exact = expected.dtype in (torch.float32, torch.float64) and float32_products() == "highest"
    tolerance = 1e-3 if exact else 0.25
    error = (found - expected).float().norm(dim=1) / expected.float().norm(dim=1).clamp(min=1e-12)
    return bool(error.median() < tolerance)
