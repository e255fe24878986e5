"""The text of single tokens. A token is bytes, and a character may take several: its text depends on its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase


def texts_of(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], others: Sequence[Sequence[int]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What each of T tokens adds to the text, and what each of the ``others`` would have added in its place.

    The T texts join to the whole, special tokens by their own names. A character that is spread over several tokens
    belongs to the last of them, those before it add "". others: T lists of token ids, empty where there are none.
    """
    decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    whole = decode(list(ids))
    # ids[:settled] have become whole[:at]; ids[context:settled] are decoded again with what follows, for a decoder
    # may treat the beginning of a text in its own way. Of the whole, whole[:told] has been told.
    context, settled, at, told = 0, 0, 0, 0
    for i, instead in enumerate(others):
        before = len(decode(list(ids[context:settled])))
        text = decode(list(ids[context : i + 1]))[before:]
        end = at + _shared(text, whole[at : at + len(text)])
        last = i == len(ids) - 1
        reached = len(whole) if last else max(told, end)
        yield whole[told:reached], tuple(_would_add(decode, ids[context:i], before, whole[at:told], instead))
        if text and end == at + len(text):
            context, settled, at = settled, i + 1, end
        told = reached


def _would_add(
    decode: Callable[[list[int]], str], ids: Sequence[int], before: int, told: str, instead: Sequence[int]
) -> Iterator[str]:
    for token in instead:
        text = decode([*ids, token])[before:]
        yield text[_shared(text, told) :]


def _shared(one: str, other: str) -> int:
    """Characters that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
