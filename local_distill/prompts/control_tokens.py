"""Control tokens that somebody typed, such as ``<|im_end|>``: ordinary text, unlike those of a chat template.

A tokenizer finds its special tokens wherever they are spelled, and a user who types one would end a turn, or begin
one of the assistant's. Here the template is rendered with a mark in the place of each one that was typed; then the
special tokens that stand there are the template's own. They get names that nobody can type, the typed ones come back,
and a copy of the tokenizer that knows its special tokens by those names alone makes the ids. It is the same tokenizer
in all else, so that text is split at the seams as it always is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from local_distill.errors import UserError

PRIVATE_USE = range(0xE000, 0xF900)
"""Characters that are no text; templates pass them on as they are."""


class ControlTokens:
    """Finds the special tokens of a tokenizer by the way they are spelled.

    Added tokens that are not special, as ``<think>`` is to Qwen3, are no control tokens: models write them into their
    answers, and templates look for them there.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = set(tokenizer.all_special_tokens)
        added = [
            str(token) for token in tokenizer.added_tokens_decoder.values() if token.special or str(token) in special
        ]
        # A padding token that is an ordinary word, such as "!", is one in a text as well.
        names = sorted((name for name in added if len(name) > 2 and not name.isalnum()), key=len, reverse=True)
        key = secrets.token_hex(8)  # it is in no id: nothing depends on what it is
        self._renamed = {name: f"<|{key}-{number}|>" for number, name in enumerate(names)}
        self._pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")  # the second matches nothing

    def typed_in(self, value: Any) -> list[str]:
        """Return those that are spelled in the strings of ``value``, however deep, in their order."""
        return [name for text in _strings(value) for name in self._pattern.findall(text)]

    def render(self, render: Callable[[Any], str], inputs: Any) -> list[int]:
        """Return token ids of ``render(inputs)``, a text, in which what is spelled in ``inputs`` is ordinary text.

        Raises UserError where the tokenizer cannot tell the two apart, or the template took a spelling apart.
        """
        texts = _strings(inputs)
        mark = next(chr(code) for code in PRIVATE_USE if not any(chr(code) in text for text in texts))
        typed = list(dict.fromkeys(self.typed_in(inputs)))
        text = render(_changed(inputs, lambda t: self._pattern.sub(lambda m: f"{mark}{typed.index(m[0])}{mark}", t)))
        text = self._pattern.sub(lambda template_own: self._renamed[template_own[0]], text)
        text = re.sub(f"{mark}([0-9]+){mark}", lambda number: typed[int(number[1])], text)
        if mark in text:
            raise UserError(f"the template took {typed[0]} apart; drop it from the text, or use --keep_control_tokens")
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Return token ids of a text, nothing put around it, in which what is spelled is ordinary text."""
        ids: list[int] = self._copy.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _copy(self) -> Tokenizer:
        """The tokenizer, which knows its control tokens by their other names."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                "this tokenizer, of Python code, cannot write control tokens as ordinary text; drop them, "
                "or use --keep_control_tokens"
            )
        settings = json.loads(backend.to_str())
        copy = Tokenizer.from_str(json.dumps(_under_other_names(settings, self._renamed)))
        ids = {self._renamed.get(token["content"], token["content"]): token["id"] for token in settings["added_tokens"]}
        assert {name: copy.token_to_id(name) for name in ids} == ids, "the copy counts its tokens otherwise"
        return copy


def _under_other_names(settings: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A tokenizer's file in which some tokens have other names, in its vocabulary too: no text spells them then."""
    model = dict(settings["model"])
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in vocabulary.items()}
    else:  # Unigram: pairs of token and score
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        pairs = ((pair, pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"])
        model["merges"] = [pair for pair, (a, b) in pairs if not {a, b, a + b} & names.keys()]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [{**token, "content": names.get(token["content"], token["content"])} for token in settings["added_tokens"]]
    nothing_around = dict.fromkeys(("truncation", "padding", "post_processor"))
    return {**settings, "model": model, "added_tokens": added, **nothing_around}


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The value with each of its strings changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_changed(key, change): _changed(each, change) for key, each in value.items()}
    return [_changed(each, change) for each in value] if isinstance(value, list | tuple) else value


def _strings(value: Any) -> list[str]:
    """All strings in the value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    return [text for each in value for text in _strings(each)] if isinstance(value, list | tuple) else []
