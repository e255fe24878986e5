"""How a prompt becomes the token ids that the student continues."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Protocol

from local_distill.errors import UserError, one_line
from local_distill.models.pair import ModelPair
from local_distill.prompts.chats import with_parsed_arguments
from local_distill.prompts.control_tokens import ControlTokens
from local_distill.prompts.raw import Message, RawPrompt

# What apply_chat_template takes for itself. Left to the user, these would cut or reshape the ids in silence.
RESERVED_KWARGS = frozenset(
    {
        "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
        "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
        "tokenizer_kwargs", "sanitize_control_tokens",
    }
)  # fmt: skip
WANTS_OBJECTS = re.compile(r"(?s)^(?!.*arguments is string).*arguments\s*\|\s*(?:tojson|items)")
"""Templates to which the arguments of a call are an object, and no JSON text, which they would write as JSON again."""

CLOCK = "strftime_now"
"""The function by which transformers gives templates the time; prompts would be others tomorrow, so it stands still."""
THINKING = "enable_thinking"
"""The variable by which templates (Qwen3, SmolLM3, GLM) are told not to let the model think."""
ENOUGH_TO_THINK, ENOUGH_FOR_ANSWERS = 1024, 4096
"""Tokens: fewer end most thoughts in the middle; so many hold most thoughts and the answers after them."""
DIRECTIVES = "aAbBcdDeFgGhHIjmMnpRSTuUVwWxXyYzZ"


def parse_template_kwargs(text: str | None) -> dict[str, Any]:
    """Read the value of --chat_template_kwargs; empty for None. Raises UserError unless it is a JSON object."""
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


def read_date(text: str | None) -> datetime | None:
    """Read the value of --template_date; None for None. Raises UserError for another form of date."""
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--template_date: {text} given, needs to be a date such as 2026-01-31") from None


class RenderingSettings(Protocol):
    """Prompts are rendered as these settings say; docs/flags.md has each."""

    @property
    def chat_template(self) -> str: ...
    @property
    def system_prompt(self) -> str | None: ...
    @property
    def chat_template_kwargs(self) -> str | None: ...
    @property
    def keep_control_tokens(self) -> bool: ...
    @property
    def template_date(self) -> str | None: ...


class Renderer:
    """Makes token ids of prompts, with the chat template or without.

    chat_template: "on", "off", or "auto", which is on when there is a template. system_prompt: put
    first, unless the prompt brings a system message of its own. template_kwargs: variables for the
    template. fallback_template: the teacher's, for a student whose tokenizer has none. vocab_size: ids from here on
    are in no prompt, for one of the models has nothing to say of them; None for no limit.
    keep_control_tokens: whether control tokens that are spelled in a prompt are control tokens; ordinary text
    otherwise. date: what a template with a clock in it reads there.
    Raises UserError when the settings need a template and there is none in use.

    uses_template: whether the chat template is in use. notes: things to say aloud.
    """

    @classmethod
    def of(cls, pair: ModelPair, settings: RenderingSettings) -> Renderer:
        """Return what renders prompts for a student beside its teacher, as a run or an evaluation has it set."""
        return cls(
            pair.student.tokenizer,
            chat_template=settings.chat_template,
            system_prompt=settings.system_prompt,
            template_kwargs=parse_template_kwargs(settings.chat_template_kwargs),
            fallback_template=pair.teacher.tokenizer.chat_template,
            vocab_size=pair.vocab_size,
            keep_control_tokens=settings.keep_control_tokens,
            date=read_date(settings.template_date),
        )

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str = "auto",
        system_prompt: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        fallback_template: str | None = None,
        vocab_size: int | None = None,
        keep_control_tokens: bool = False,
        date: datetime | None = None,
    ) -> None:
        template = tokenizer.chat_template or fallback_template
        if chat_template == "on" and not template:
            raise UserError(
                "--chat_template on: neither the student's nor the teacher's tokenizer has a chat template; "
                "use --chat_template off, or an instruct model"
            )
        self.uses_template = chat_template != "off" and bool(template)
        self.keeps_control_tokens = keep_control_tokens
        kwargs = dict(template_kwargs or {})
        if not self.uses_template:
            why = "turned off by --chat_template off" if chat_template == "off" else "which the tokenizers do not have"
            for flag, given in (("--system_prompt", system_prompt is not None), ("--chat_template_kwargs", kwargs)):
                if given:
                    raise UserError(f"{flag}: needs a chat template, {why}; drop one of the two flags or change models")
        self._tokenizer = tokenizer
        self._controls = ControlTokens(tokenizer)
        self._system_prompt = system_prompt
        self._vocab_size = vocab_size
        self._template_kwargs = kwargs
        # A tokenizer's own template goes by None: it may be several, of which the tokenizer picks one.
        self._template = None if tokenizer.chat_template else fallback_template
        self._words = str(template)  # of several templates, a dict, the text of each: good enough to find names in
        self._date = date or datetime.now()
        self.notes = tuple(self._notes()) if self.uses_template else ()

    def render(self, raw: RawPrompt) -> tuple[int, ...]:
        """Return token ids of the prompt; with the template, up to where the assistant's answer begins.

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

    def control_tokens_in(self, raw: RawPrompt) -> list[str]:
        """Return the control tokens that are spelled in the prompt."""
        return self._controls.typed_in([self._messages(raw), raw.tools] if self.uses_template else raw.text)

    def ignores_tools_of(self, raw: RawPrompt) -> bool:
        """Tell whether the prompt has tools, or calls of them, of which the template makes nothing."""
        calls = any("tool_calls" in message for message in raw.messages)
        return any(there and name not in self._words for there, name in ((raw.tools, "tools"), (calls, "tool_calls")))

    def _with_template(self, raw: RawPrompt) -> list[int]:
        inputs = [self._messages(raw), list(raw.tools)]
        try:
            if self.keeps_control_tokens or not self._controls.typed_in(inputs):
                ids: list[int] = self._apply(inputs, tokenize=True)
                return ids
            return self._controls.render(partial(self._apply, tokenize=False), inputs)
        except UserError as error:
            raise UserError(f"{raw.origin}: {error}") from None
        # A template is a program that came with the model: it can fail in any way.
        except Exception as error:
            flags = [] if self._system_prompt is None else ["--system_prompt"]
            flags += ["--chat_template_kwargs"] if self._template_kwargs else []
            change = " or ".join(["the prompt", *flags])
            raise UserError(
                f"{raw.origin}: the chat template refused the prompt ({one_line(error)}); "
                f"change {change}, or use --chat_template off"
            ) from None

    def _messages(self, raw: RawPrompt) -> list[Message]:
        """The prompt's messages as the template wants them, the system prompt among them."""
        messages = list(raw.messages)
        if "developer" not in self._words:  # the newer name of the system's part, which older templates drop or refuse
            messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
        if self._system_prompt is not None and messages[0]["role"] not in ("system", "developer"):
            messages.insert(0, Message(role="system", content=self._system_prompt))
        return [with_parsed_arguments(m) for m in messages] if WANTS_OBJECTS.search(self._words) else messages

    def _apply(self, inputs: Any, tokenize: bool, add_generation_prompt: bool = True) -> Any:
        """Messages and tools through the chat template: token ids, or the text."""
        messages, tools = inputs
        kwargs = {**self._template_kwargs, **({"tools": tools} if tools else {})}
        template = self._template
        if CLOCK in self._words:
            # A macro in the place of the clock: transformers takes values for a template, but no functions.
            template = _macro(self._date) + self._tokenizer.get_chat_template(template, kwargs.get("tools"))
        return self._tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=add_generation_prompt, tokenize=tokenize,
            return_dict=False, **kwargs,
        )  # fmt: skip

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
        ids = ids[:-1] if closed else ids
        if self.keeps_control_tokens or not self._controls.typed_in(raw.text):
            return ids
        before = next((n for n in range(len(ids)) if ids[n : n + len(bare)] == bare), len(ids) - len(bare))
        return [*ids[:before], *self._controls.encode(raw.text), *ids[before + len(bare) :]]

    def thinking_note(self, max_new_tokens: int) -> str:
        """Return a word on answers that end in the middle of a thought, where so few tokens are sampled; or nothing."""
        if not self.uses_template or max_new_tokens >= ENOUGH_TO_THINK:
            return ""
        try:
            asked: str = self._apply(([Message(role="user", content="x")], []), False)
        except Exception:  # refused for a reason that the first prompt will tell
            return ""
        tail = asked[asked.rfind("x") :]
        begun = tail.rstrip().endswith("<think>")
        can_be_off = THINKING in self._words
        if not begun and not (
            can_be_off and "</think>" not in tail and self._template_kwargs.get(THINKING) is not False
        ):
            return ""
        more = f"--max_new_tokens {ENOUGH_FOR_ANSWERS} lets it come to its answers"
        off = f"--chat_template_kwargs '{{\"{THINKING}\": false}}' turns that off, or " if can_be_off else ""
        return (
            f"the chat template lets the model think before it answers, and --max_new_tokens {max_new_tokens} ends "
            f"most thoughts in the middle: {off}{more}"
        )

    def _notes(self) -> Iterator[str]:
        if unused := [key for key in self._template_kwargs if key not in self._words]:
            yield f"--chat_template_kwargs: this chat template does not use {', '.join(unused)}, so it has no effect"
        if CLOCK in self._words:
            yield (
                f"the chat template has a clock in it: for the whole run it is {self._date:%Y-%m-%d} there "
                "(--template_date)"
            )
        probe = [self._messages(RawPrompt((Message(role="user", content="x"),), "a question")), []]
        try:
            asked, told = (self._apply(probe, False, add_generation_prompt=each) for each in (True, False))
        except Exception:  # refused for a reason that the first prompt will tell
            return
        if asked == told:
            yield f"the chat template has no generation prompt: answers go on right behind {asked[-24:]!r}"


@lru_cache(maxsize=4)
def _macro(date: datetime) -> str:
    values = {f"%{letter}": date.strftime(f"%{letter}") for letter in DIRECTIVES}
    values |= {f"%-{letter}": values[f"%{letter}"].lstrip("0") or "0" for letter in DIRECTIVES}  # without leading zeros
    replaced = "".join(f" | replace({json.dumps(key)}, {json.dumps(value)})" for key, value in values.items())
    # The line break belongs to the block before it, so that the template still begins a line.
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"
