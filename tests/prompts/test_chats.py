"""The shapes in which people keep chats, and how much of one is the prompt."""

import json

import pytest

from local_distill.errors import UserError
from local_distill.prompts.chats import from_sharegpt, read_messages, read_tools, with_parsed_arguments, without_nulls

USER = {"role": "user", "content": "Weather in Paris?"}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
CALLED = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "rain"}
ANSWER = {"role": "assistant", "content": "It rains."}
MORE = {"role": "user", "content": "And tomorrow?"}


@pytest.mark.parametrize(
    ("chat", "prompt"),
    [
        ([USER, ANSWER], [USER]),
        ([USER, CALLS], [USER]),
        ([USER, CALLS, RESULT], [USER, CALLED, RESULT]),
        ([USER, CALLS, RESULT, RESULT, ANSWER], [USER, CALLED, RESULT, RESULT]),
        ([USER, CALLS, RESULT, ANSWER, MORE, ANSWER], [USER, CALLED, RESULT, ANSWER, MORE]),
        ([USER, CALLS, RESULT, CALLS, RESULT, CALLS], [USER, CALLED, RESULT, CALLED, RESULT]),
        ([USER, ANSWER, RESULT], [USER]),  # the result of nothing
        ([{**USER, "name": "ann", "tool_calls": None}, ANSWER], [{**USER, "name": "ann"}]),
        ([CALLS, RESULT], []),
        ([{"role": "developer", "content": "d"}, USER], [{"role": "developer", "content": "d"}, USER]),
    ],
)
def test_a_prompt_goes_up_to_what_is_to_be_answered(chat, prompt):
    assert list(read_messages(chat, "here")) == prompt
    assert list(read_messages(json.dumps(chat), "here")) == prompt


@pytest.mark.parametrize("text", ["[1, 2] is a list", "[]", '["a"]', '[{"a": 1}]', "[INST] hi", '{"role": "user"}'])
def test_text_that_only_looks_like_a_chat_is_text(text):
    assert read_messages(text, "here") == ({"role": "user", "content": text},)


def test_parts_of_text_are_one_text_and_pictures_are_refused():
    parts = [{"type": "text", "text": "What is "}, {"type": "input_text", "text": "this?"}]
    assert read_messages([{"role": "user", "content": parts}], "here") == (
        {"role": "user", "content": "What is this?"},
    )
    for picture in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "image"}):
        with pytest.raises(UserError, match=rf"^here: a chat message with a part of type {picture['type']} given"):
            read_messages([{"role": "user", "content": [*parts, picture]}], "here")


def test_sharegpt():
    turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    chat = [{"from": who, "value": text} for who, text in turns]
    expected = tuple(
        {"role": role, "content": text}
        for role, text in [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    )
    assert read_messages(from_sharegpt(chat), "here") == expected
    assert read_messages(from_sharegpt(json.dumps(chat)), "here") == expected
    assert from_sharegpt([USER]) == [USER]


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("value", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools(value):
    assert read_tools(value, "here") == (TOOL,)


@pytest.mark.parametrize("value", [None, [], "", "[]"])
def test_no_tools(value):
    assert read_tools(value, "here") == ()


@pytest.mark.parametrize("value", ["hammer", ["hammer"], 3, TOOL])
def test_tools_that_are_none(value):
    with pytest.raises(UserError, match=r"^here: tools is .*JSON schemas"):
        read_tools(value, "here")


def test_arguments_are_objects_where_that_is_wanted():
    (call,) = with_parsed_arguments(CALLED)["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    bad = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
    assert with_parsed_arguments(bad) == bad


def test_keys_that_a_table_filled_up_go():
    assert without_nulls({"a": None, "b": [{"c": None, "d": 0}], "e": ""}) == {"b": [{"d": 0}], "e": ""}
