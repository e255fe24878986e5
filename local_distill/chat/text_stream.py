"""Tokens → text while it is being written."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of a growing list of tokens, without special tokens.

    A character that is spread over several tokens comes with the last of them. The pieces join to what decoding all
    at once gives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # ids[:settled] have been told. ids[context:settled] are decoded again with what follows, for a decoder may
        # treat the beginning of a text in its own way.
        self._context = self._settled = 0

    def add(self, token: int) -> str:
        """What this token completes; nothing while a character is unfinished."""
        self._ids.append(token)
        text = self._text_after_settled()
        return "" if text.endswith(UNFINISHED) else self._settle(text)

    def end(self) -> str:
        """What is left when no token follows: half a character, as decoding shows it."""
        return self._settle(self._text_after_settled())

    def _settle(self, text: str) -> str:
        if text:
            self._context, self._settled = self._settled, len(self._ids)
        return text

    def _text_after_settled(self) -> str:
        before = self._decode(self._ids[self._context : self._settled])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
