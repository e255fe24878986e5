"""How a prompt becomes the token ids that the student continues."""

from __future__ import annotations

import json
from typing import Any

from local_distill.errors import UserError
from local_distill.prompts.raw import Message, RawPrompt, one_line

# What apply_chat_template takes for itself. Left to the user, these would cut or reshape the ids in silence.
RESERVED_KWARGS = frozenset(
    {
        "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
        "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)  # fmt: skip


def parse_template_kwargs(text: str | None) -> dict[str, Any]:
    """The value of --chat_template_kwargs; empty for None. Raises UserError unless it is a JSON object."""
    if text is None:
        return {}
    needed = "needs a JSON object such as '{\"enable_thinking\": false}'"
    try:
        kwargs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--chat_template_kwargs {text}: not JSON ({one_line(error)}); {needed}") from None
    if not isinstance(kwargs, dict):
        raise UserError(f"--chat_template_kwargs {text}: {type(kwargs).__name__} given, {needed}")
    if taken := sorted(RESERVED_KWARGS & kwargs.keys()):
        raise UserError(f"--chat_template_kwargs {text}: {', '.join(taken)} is set by the program; drop it")
    return kwargs


class Renderer:
    """Prompts to token ids, with the chat template or without.

    chat_template: "on", "off", or "auto", which is on when there is a template. system_prompt: put
    first, unless the prompt brings a system message of its own. template_kwargs: variables for the
    template. fallback_template: the teacher's, for a student whose tokenizer has none. vocab_size: ids from here on
    are in no prompt, for one of the models has nothing to say of them; None for no limit.
    Raises UserError when the settings need a template and there is none in use.

    uses_template: whether the chat template is in use. notes: things to say aloud.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str = "auto",
        system_prompt: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        fallback_template: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        template = tokenizer.chat_template or fallback_template
        if chat_template == "on" and not template:
            raise UserError(
                "--chat_template on: neither the student's nor the teacher's tokenizer has a chat template; "
                "use --chat_template off, or an instruct model"
            )
        self.uses_template = chat_template != "off" and bool(template)
        kwargs = dict(template_kwargs or {})
        if not self.uses_template:
            why = "turned off by --chat_template off" if chat_template == "off" else "which the tokenizers do not have"
            for flag, given in (("--system_prompt", system_prompt is not None), ("--chat_template_kwargs", kwargs)):
                if given:
                    raise UserError(f"{flag}: needs a chat template, {why}; drop one of the two flags or change models")
        self.notes = _unused_kwargs(template, kwargs) if self.uses_template else ()
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._vocab_size = vocab_size
        # A tokenizer's own template goes by None: it may be several, of which the tokenizer picks one.
        self._template_kwargs = {**kwargs, "chat_template": None if tokenizer.chat_template else fallback_template}

    def render(self, raw: RawPrompt) -> tuple[int, ...]:
        """Token ids of the prompt; with the template, up to where the assistant's answer begins.

        Raises UserError, naming the prompt's origin, when it cannot be rendered or has no tokens.
        """
        render = self._with_template if self.uses_template else self._plain
        ids = render(raw) if raw.messages else []
        if not ids:
            raise UserError(f"{raw.origin}: the prompt has no tokens, there is nothing to continue; write some text")
        if self._vocab_size is not None and max(ids) >= self._vocab_size:
            token = self._tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"{raw.origin}: the prompt has the token {token} (id {max(ids)}), and not both models have more than "
                f"{self._vocab_size} tokens; write it without that token"
            )
        return tuple(ids)

    def _with_template(self, raw: RawPrompt) -> list[int]:
        messages = list(raw.messages)
        if self._system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, Message(role="system", content=self._system_prompt))
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False, **self._template_kwargs
            )
        # A template is a program that came with the model: it can fail in any way.
        except Exception as error:
            flags = [] if self._system_prompt is None else ["--system_prompt"]
            flags += ["--chat_template_kwargs"] if len(self._template_kwargs) > 1 else []
            change = " or ".join(["the prompt", *flags])
            raise UserError(
                f"{raw.origin}: the chat template refused the prompt ({one_line(error)}); "
                f"change {change}, or use --chat_template off"
            ) from None
        return ids

    def _plain(self, raw: RawPrompt) -> list[int]:
        if len(raw.messages) != 1 or raw.messages[0]["role"] != "user":
            raise UserError(
                f"{raw.origin}: a chat of {len(raw.messages)} messages needs a chat template, and none is in use; "
                "use --chat_template on with a tokenizer that has one, or prompts of a single user message"
            )
        try:
            ids: list[int] = self._tokenizer(raw.text)["input_ids"]
            bare: list[int] = self._tokenizer(raw.text, add_special_tokens=False)["input_ids"]
        except (TypeError, ValueError) as error:  # half of a surrogate pair, from a \\ud83d in JSON
            raise UserError(f"{raw.origin}: cannot be tokenized ({one_line(error)}); mend the text") from None
        # A tokenizer that closes each text would have the student continue after its own end.
        eos = self._tokenizer.eos_token_id
        closed = len(ids) > len(bare) and ids[-1] == eos and bare[-1:] != [eos]
        return ids[:-1] if closed else ids


def _unused_kwargs(template: Any, kwargs: dict[str, Any]) -> tuple[str, ...]:
    # str of several templates, a dict, holds the text of each: good enough to find a name in.
    unused = [key for key in kwargs if key not in str(template)]
    if not unused:
        return ()
    return (f"--chat_template_kwargs: this chat template does not use {', '.join(unused)}, so it has no effect",)
