"""Attention of completions that branch off one prompt, for any model that attends through transformers' interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from local_distill.head.logprobs import matmul_dtype
from local_distill.shared_prompts import SharedPrompts

IMPLEMENTATION = "sdpa"
"""The attention that is extended; it is what it was wherever no layout is handed to it."""
UNKNOWN = ("position_bias", "softcap", "s_aux", "indices", "block_indices", "cache")
"""What else may be asked of attention, and changes it."""
LAYOUT = "shared_prompts"
"""The keyword by which a layout travels through a model to its attention."""
_windows: ContextVar[list[int | None] | None] = ContextVar("windows", default=None)


@contextmanager
def windows_of_layers() -> Iterator[list[int | None]]:
    """Collect the window of each attention that a layout comes to in here, None for those without, in their order."""
    found: list[int | None] = []
    token = _windows.set(found)
    try:
        yield found
    finally:
        _windows.reset(token)


def read_branches(body: nn.Module, input_ids: Tensor, tokens: SharedPrompts) -> Tensor:
    """Return the states (N, H) that predict the completion tokens of a layout, with each prompt read once.

    body: of a model that ``extend_attention`` was called for. input_ids: (B, L), the same rollouts padded.
    """
    layout = Layout(tokens)
    hidden = body(
        input_ids=input_ids.flatten()[tokens.source][None],
        position_ids=tokens.positions[None],
        # Four dimensions are taken as they are: from positions that begin again a dense (S, S) would be made.
        attention_mask=input_ids.new_zeros(1, 1, 1, 1, dtype=torch.bool),
        use_cache=False,
        **{LAYOUT: layout},
    ).last_hidden_state[0]
    if not layout.uses:
        raise RuntimeError("the layout of shared prompts came to no attention: the model's implementation was changed")
    return F.embedding(tokens.predictors, hidden)


def branching_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' sdpa does; with a layout among the settings, each completion to its prompt and itself.

    query: (1, heads, S, D) and key, value: (1, key heads, S, D), all tokens of the layout in one row. Returns
    (1, S, heads, D).
    """
    layout: Layout | None = settings.pop(LAYOUT, None)
    if layout is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return output, None
    layout.uses += 1
    if attention_mask is None or attention_mask.numel() > 1 or any(settings.get(name) is not None for name in UNKNOWN):
        raise ValueError("attention with a mask or a bias of its own cannot take a layout of shared prompts")
    window, dropout, scale = (settings.get(name) for name in ("sliding_window", "dropout", "scaling"))
    if (asked := _windows.get()) is not None:
        asked.append(window)
    dtype = matmul_dtype(query)
    # (S, heads, D): a token's row is whole in memory, and is copied as one.
    q, k, v = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))
    prompts, completions, keys = layout.tokens.prompts, layout.tokens.completions, layout.tokens.keys
    form = _Form(dtype, window, q.shape[1] // k.shape[1])
    attend = partial(_attend, dropout=dropout or 0.0, scale=scale)
    of_prompts = attend(_rows(q, prompts), _rows(k, prompts), _rows(v, prompts), layout.mask_of_prompts(form))
    of_completions = attend(_rows(q, completions), _rows(k, keys), _rows(v, keys), layout.mask_of_completions(form))
    both = torch.cat([each.transpose(1, 2).flatten(0, 1) for each in (of_prompts, of_completions)])
    return both.index_select(0, layout.tokens.back)[None], None


class _Form(NamedTuple):
    """What a layer's mask depends on. share: heads that have one key head in common."""

    dtype: torch.dtype
    window: int | None
    share: int


class Layout:
    """A layout on its way through one forward pass, with the masks that its layers have in common.

    uses: attentions that it has come to.
    """

    def __init__(self, tokens: SharedPrompts) -> None:
        self.tokens = tokens
        self.uses = 0
        self._masks: dict[tuple[str, _Form], Tensor] = {}

    def mask_of_completions(self, form: _Form) -> Tensor:
        """(R, 1, share · T, Q + T) of a completion's tokens; see _attend."""
        return self._made("completions", form, lambda: self.tokens.seen_by_completions(form.window))

    def mask_of_prompts(self, form: _Form) -> Tensor | None:
        """(1, 1, share · Q, Q) of a prompt's tokens; None where they see all that came before."""
        seen = self.tokens.seen_by_prompts(form.window)
        return None if seen is None else self._made("prompts", form, lambda: seen[None])

    def _made(self, whose: str, form: _Form, seen: Callable[[], Tensor]) -> Tensor:
        if (whose, form) not in self._masks:
            visible = seen()
            mask = torch.zeros_like(visible, dtype=form.dtype).masked_fill_(~visible, -torch.inf)
            self._masks[whose, form] = mask.repeat(1, form.share, 1)[:, None]
        return self._masks[whose, form]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, dropout: float, scale: float | None) -> Tensor:
    """Return (rows, heads, length, D). mask: to be added, 0 or −inf; None for all that came before.

    Under a mask the queries of heads that have one key head in common stand one after the other as those of one head:
    not every kernel that takes a mask knows of such heads, and the plainest keeps all probabilities.
    """
    if mask is None:
        grouped = q.shape[1] > k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
        )
    rows, heads, length, width = q.shape
    together = q.reshape(rows, k.shape[1], -1, width)
    found = F.scaled_dot_product_attention(together, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    return found.reshape(rows, heads, length, -1)


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    """Return (rows, heads, length, D) of (S, heads, D).

    By an embedding: its gradient sums the uses of a token in the same order every time, as indexing's does not on CUDA.
    """
    return F.embedding(places, tokens.flatten(1)).view(*places.shape, *tokens.shape[1:]).transpose(1, 2)


def takes_layout(body: nn.Module) -> bool:
    """Say whether a model hands to its layers what it does not know by name, as transformers' newer ones do."""
    parameters = inspect.signature(type(body).forward).parameters.values()
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def extend_attention() -> None:
    """Let models that attend by transformers' sdpa take a layout. Changes nothing for those that are given none."""
    AttentionInterface.register(IMPLEMENTATION, branching_attention)
