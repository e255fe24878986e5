"""Chats in the shapes that people keep them in, as messages for a chat template.

Read are OpenAI's messages (role, content, tool_calls; content as text or as parts of text), ShareGPT's turns (from,
value), either of them written down as JSON text, and lists of tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from local_distill.errors import UserError
from local_distill.prompts.raw import Message

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system", "tool": "tool",
    "observation": "tool",
}  # fmt: skip
TOOL_ROLES = ("tool", "function")
CALLS = ("tool_calls", "function_call")


def user_says(text: str) -> tuple[Message, ...]:
    """Return text as a chat; empty where it is blank."""
    return ({"role": "user", "content": text},) if text.strip() else ()


def read_messages(value: object, where: str) -> tuple[Message, ...]:
    """Return text, or a chat up to what is to be answered, as messages.

    To be answered is the last user message, or the results of the tools that were called after it; an answer that
    stands behind it is left away. Empty when nothing is asked: None, blank text, no user message, or a blank one at
    the end. Raises UserError, beginning with ``where``, when ``value`` is something else.
    """
    if isinstance(value, str):
        chat = decoded_chat(value)
        return user_says(value) if chat is None else read_messages(chat, where)
    if value is None:
        return ()
    if not _is_list(value):
        raise UserError(
            f"{where}: {type(value).__name__} given, needs text, or a list of chat messages with role and content"
        )
    asked = _asked(value)
    # With no user message every turn is still looked at, to tell a wrong shape from a chat that asks nothing.
    messages = tuple(_message(turn, where) for turn in value[: asked or len(value)])
    says_something = asked and (messages[-1]["role"] in TOOL_ROLES or messages[-1]["content"].strip())
    return messages if says_something else ()


def decoded_chat(text: str) -> list[Any] | None:
    """Return the chat that JSON text holds; None for other text, other JSON included."""
    if not text.lstrip().startswith("["):
        return None
    try:
        chat = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_chat = chat and all(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in chat)
    return chat if is_chat else None


def from_sharegpt(value: object) -> object:
    """Return turns of from and value as messages of role and content; anything else as it is.

    A speaker who is not known keeps the name: the chat template decides.
    """
    if isinstance(value, str):
        value = decoded_chat(value) or value
    if not _is_list(value) or not all(isinstance(turn, Mapping) and "from" in turn for turn in value):
        return value
    return [{"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")} for turn in value]


def read_tools(value: object, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return the functions that may be called: a list of JSON schemas, it or each of them perhaps written as JSON text.

    Raises UserError, beginning with ``where``, when ``value`` is something else.
    """
    tools = _decoded(value)
    if not tools:
        return ()
    tools = [_decoded(tool) for tool in tools] if _is_list(tools) else None
    if tools is None or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"{where}: tools is {type(value).__name__}, needs to be a list of JSON schemas of functions")
    return tuple(tools)


def with_parsed_arguments(message: Message) -> Message:
    """Return the message with the arguments of its calls as objects, where they are JSON text, as OpenAI has them."""
    calls = message.get("tool_calls")
    if not _is_list(calls):
        return message
    return {**message, "tool_calls": [_parsed(call) for call in calls]}


def _parsed(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _parsed(call["function"])}
    return {**call, "arguments": _decoded(call["arguments"])} if "arguments" in call else call


def without_nulls(value: Any) -> Any:
    """Return the value without the keys that are null, at any depth: a table gives each row the keys of all rows."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if _is_list(value) else value


def _asked(turns: Any) -> int:
    """How many turns there are up to what is to be answered; 0 where nothing is."""
    roles = [turn.get("role") if isinstance(turn, Mapping) else None for turn in turns]
    if "user" not in roles:
        return 0
    end = len(roles) - roles[::-1].index("user")
    called = False
    for place in range(end, len(roles)):
        if roles[place] == "assistant":
            called = any(turns[place].get(key) for key in CALLS)
        elif called and roles[place] in TOOL_ROLES:
            end = place + 1
    return end


def _message(turn: object, where: str) -> Message:
    if isinstance(turn, Mapping):
        # Chat templates cope with a key that is not there; on null many write "None".
        message = {key: value for key, value in turn.items() if value is not None}
        role, content = message.get("role"), _text_of(message.get("content"), where)
        if isinstance(role, str) and isinstance(content, str):
            return {**message, "content": content}
        if isinstance(role, str) and content is None and any(message.get(key) for key in CALLS):
            return message
        given = f"role {type(role).__name__} and content {type(content).__name__}"
    else:
        given = type(turn).__name__
    raise UserError(f"{where}: a chat message with {given} given, needs an object with role and content, both text")


def _text_of(content: object, where: str) -> object:
    """The parts of a content as one text, nothing between them, as chat templates write them; else what was given."""
    if not _is_list(content) or not all(isinstance(part, Mapping) for part in content):
        return content
    for part in content:
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where}: a chat message with a part of type {part.get('type')} given, needs text alone")
    return "".join(part["text"] for part in content)


def _decoded(value: object) -> Any:
    """What JSON text holds; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
