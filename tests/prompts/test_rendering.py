"""Prompts to token ids, with the chat template and without."""

from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from local_distill.errors import UserError
from local_distill.prompts import RawPrompt, Renderer, parse_template_kwargs


def raw(*messages):
    return RawPrompt(tuple({"role": role, "content": content} for role, content in messages), "p.jsonl:4")


HI = raw(("user", "Hi"))
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role\nnot supported') }}{% endif %}x"


@pytest.mark.parametrize(
    ("own", "fallback", "setting", "text"),
    [
        (True, None, "auto", "<user>Hi<assistant>"),
        (True, None, "on", "<user>Hi<assistant>"),
        (True, None, "off", "Hi"),
        (False, None, "auto", "Hi"),
        (False, "T:{{ messages[0]['content'] }}", "auto", "T:Hi"),
        (False, "T:{{ messages[0]['content'] }}", "on", "T:Hi"),
        (False, "T:{{ messages[0]['content'] }}", "off", "Hi"),
        (True, "T:{{ messages[0]['content'] }}", "auto", "<user>Hi<assistant>"),
    ],
)
def test_which_template_is_used(make_tokenizer, template, own, fallback, setting, text):
    tokenizer = make_tokenizer(template=template if own else None)
    renderer = Renderer(tokenizer, chat_template=setting, fallback_template=fallback)
    assert tokenizer.decode(renderer.render(HI)) == text
    assert renderer.uses_template == (text != "Hi")


def test_the_template_gets_no_special_tokens_around_it(make_tokenizer, template):
    tokenizer = make_tokenizer(template=template, bos=True, eos=True)
    ids = Renderer(tokenizer).render(HI)
    assert ids == tuple(tokenizer("<user>Hi<assistant>", add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([("user", "Hi")], "<system>Be brief<user>Hi<assistant>"),
        ([("system", "Own"), ("user", "Hi")], "<system>Own<user>Hi<assistant>"),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], "<system>Be brief<user>a<assistant>b<user>c<assistant>"),
    ],
)
def test_the_system_prompt_comes_first_unless_the_chat_has_one(make_tokenizer, template, messages, text):
    tokenizer = make_tokenizer(template=template)
    prompt = raw(*messages)
    assert tokenizer.decode(Renderer(tokenizer, system_prompt="Be brief").render(prompt)) == text
    assert len(prompt.messages) == len(messages)


def test_template_kwargs_reach_the_template(make_tokenizer, template):
    tokenizer = make_tokenizer(template=template)
    renderer = Renderer(tokenizer, template_kwargs={"shout": True})
    assert tokenizer.decode(renderer.render(HI)).endswith("<assistant>!")
    assert renderer.notes == ()


def test_template_kwargs_that_the_template_ignores_are_noted(make_tokenizer, template):
    (note,) = Renderer(make_tokenizer(template=template), template_kwargs={"shuot": True, "shout": True}).notes
    assert "shuot" in note
    assert "shout" not in note


TOOLS = ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)
CALLS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments WRITTEN }}{% endfor %}{% endfor %}"
)


def test_tools_and_calls_reach_the_template(make_tokenizer):
    """The library's own call is the oracle."""
    tokenizer = make_tokenizer(
        template="{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls | tojson }}"
        "{{ m.name }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    )
    messages = [
        {"role": "user", "content": "a", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "content": "3", "tool_calls": []},
    ]
    messages[0]["tool_calls"] = []
    ids = Renderer(tokenizer).render(RawPrompt(tuple(messages), "p:1", tools=TOOLS))
    expected = tokenizer.apply_chat_template(messages, tools=list(TOOLS), add_generation_prompt=True, return_dict=False)
    assert ids == tuple(expected)
    assert '"name": "f"' in tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("| tojson", '{"x": 1}'),  # as Llama's and Mistral's, which would write JSON text as a string of JSON
        ("if c.function.arguments is string else c.function.arguments | tojson", '{"x":1}'),  # as Qwen3's
        ("", '{"x":1}'),  # as DeepSeek's, which joins texts
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_arguments_are_what_the_template_expects(make_tokenizer, written, text, as_text):
    arguments = '{"x":1}' if as_text else {"x": 1}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    tokenizer = make_tokenizer(template=CALLS.replace("WRITTEN", written))
    prompt = RawPrompt(({"role": "user", "content": "a"}, call, {"role": "user", "content": "b"}), "p:1")
    rendered = tokenizer.decode(Renderer(tokenizer).render(prompt))
    assert rendered == (text if as_text else '{"x": 1}' if written else "{'x': 1}")


@pytest.mark.parametrize(("words", "role"), [("", "system"), ("{# developer #}", "developer")])
def test_a_developer_is_the_system_where_the_template_knows_none(make_tokenizer, template, words, role):
    tokenizer = make_tokenizer(template=words + template)
    prompt = raw(("developer", "d"), ("user", "Hi"))
    assert tokenizer.decode(Renderer(tokenizer, system_prompt="s").render(prompt)) == f"<{role}>d<user>Hi<assistant>"


def test_a_template_without_a_generation_prompt_is_noted(make_tokenizer):
    (note,) = Renderer(
        make_tokenizer(template="{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}")
    ).notes
    assert note == "the chat template has no generation prompt: answers go on right behind '[INST] x [/INST]'"


DATE = datetime(2026, 1, 5, 7, 8, 9)
CLOCK = (
    "{{ strftime_now('%d %b %Y, %-d %B %A %H:%M %y-%m-%d') }}|{% macro deep() %}{{ strftime_now('%Y') }}{% endmacro %}"
)
CLOCK += "{% for m in messages %}{% if strftime_now is defined %}{{ deep() }}{% endif %}{{ m.content }}{% endfor %}!"


@pytest.mark.parametrize("before", ["", "\n", "  ", "\n\n  {% if true %}x{% endif %}\n"])
@pytest.mark.parametrize("several", [False, True])
def test_the_clock_of_a_template_stands_still(make_tokenizer, monkeypatch, before, several):
    """The oracle is the library's clock, set to that time."""

    class Frozen(datetime):
        @classmethod
        def now(cls):
            return DATE

    own = {"default": before + CLOCK, "tool_use": "T" + CLOCK} if several else before + CLOCK
    tokenizer = make_tokenizer(template=own)
    renderer = Renderer(tokenizer, date=DATE)
    assert renderer.notes[0].startswith("the chat template has a clock in it: for the whole run it is 2026-01-05 there")
    rendered = {tools: renderer.render(RawPrompt(HI.messages, "p:1", tools=TOOLS[:tools])) for tools in (0, 1)}
    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
    for tools in (0, 1):
        expected = tokenizer.apply_chat_template(
            list(HI.messages), tools=list(TOOLS[:tools]) or None, add_generation_prompt=True, return_dict=False
        )
        assert rendered[tools] == tuple(expected)
    assert "05 Jan 2026, 5 January Monday 07:08 26-01-05|2026Hi" in tokenizer.decode(expected)


def test_a_template_without_a_clock_says_nothing_of_the_date(make_tokenizer, template):
    tokenizer = make_tokenizer(template=template)
    assert Renderer(tokenizer, date=DATE).notes == ()
    assert Renderer(tokenizer, date=DATE).render(HI) == Renderer(tokenizer).render(HI)


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True), (True, True)])
def test_without_template_the_usual_tokens_are_there_but_no_end(make_tokenizer, bos, eos):
    tokenizer = make_tokenizer(bos=bos, eos=eos)
    assert (tokenizer("Hi")["input_ids"][-1] == tokenizer.eos_token_id) == eos  # the oracle's own check
    ids = Renderer(tokenizer).render(HI)
    assert tokenizer.decode(ids) == ("<s>Hi" if bos else "Hi")


def test_an_end_that_the_user_wrote_is_kept(make_tokenizer):
    tokenizer = make_tokenizer()
    assert tokenizer.decode(Renderer(tokenizer).render(raw(("user", "Hi</s>")))) == "Hi</s>"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chat_template": "on"}, "--chat_template on: neither"),
        ({"system_prompt": "s"}, "--system_prompt: needs a chat template, which the tokenizers do not have"),
        ({"template_kwargs": {"a": 1}}, "--chat_template_kwargs: needs a chat template"),
        ({"system_prompt": "s", "chat_template": "off"}, "turned off by --chat_template off"),
    ],
)
def test_settings_that_need_a_template_are_refused_without_one(make_tokenizer, settings, said):
    with pytest.raises(UserError) as caught:
        Renderer(make_tokenizer(), **settings)
    assert said in str(caught.value)


@pytest.mark.parametrize("setting", ["auto", "off"])
@pytest.mark.parametrize(
    "messages", [[("user", "a"), ("assistant", "b"), ("user", "c")], [("system", "s"), ("user", "a")]]
)
def test_a_chat_without_a_template_is_refused(make_tokenizer, setting, messages):
    with pytest.raises(UserError, match=r"^p\.jsonl:4: a chat of \d messages.*--chat_template"):
        Renderer(make_tokenizer(), chat_template=setting).render(raw(*messages))


@pytest.mark.parametrize(
    ("template", "settings", "flags"),
    [
        (NO_SYSTEM, {"system_prompt": "s"}, ["--system_prompt", "System role not supported"]),
        ("{{ messages[0].content + n }}", {"template_kwargs": {"n": 1}}, ["--chat_template_kwargs"]),
        ("{{ nothing.at_all }}", {}, ["--chat_template off"]),
        ("{% if %}", {}, ["--chat_template off"]),
    ],
)
def test_a_template_that_raises_is_one_line_with_the_origin(make_tokenizer, template, settings, flags):
    renderer = Renderer(make_tokenizer(template=template), **settings)
    with pytest.raises(UserError, match=r"^p\.jsonl:4: the chat template refused") as caught:
        renderer.render(HI)
    assert all(flag in str(caught.value) for flag in flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("messages", [[], [("user", "")]])
@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_no_tokens_are_refused(make_tokenizer, messages, template):
    with pytest.raises(UserError, match=r"^p\.jsonl:4: the prompt has no tokens"):
        Renderer(make_tokenizer(template=template)).render(raw(*messages))


@pytest.mark.parametrize("own", [True, False])
def test_text_that_is_not_unicode_is_refused(make_tokenizer, template, own):
    with pytest.raises(UserError, match=r"^p\.jsonl:4: "):
        Renderer(make_tokenizer(template=template if own else None)).render(raw(("user", "\ud83d")))


def test_template_kwargs_are_parsed():
    assert parse_template_kwargs(None) == {}
    assert parse_template_kwargs('{"enable_thinking": false}') == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{enable_thinking: false}", "not JSON"),
        ("", "not JSON"),
        ("[1]", "list given"),
        ("false", "bool given"),
        ('{"truncation": true}', "truncation is set by the program"),
        ('{"tokenize": false}', "tokenize is set by the program"),
    ],
)
def test_template_kwargs_that_are_no_object_are_refused(text, said):
    with pytest.raises(UserError, match=r"^--chat_template_kwargs ") as caught:
        parse_template_kwargs(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("template", "kwargs", "tokens", "said"),
    [
        (
            "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
            {},
            512,
            "turns that",
        ),
        ("{% if enable_thinking is false %}<think>\n\n</think>\n{% endif %}", {"enable_thinking": False}, 512, ""),
        ("{% if enable_thinking %}<think>\n{% endif %}", {"enable_thinking": False}, 512, ""),
        ("{% if enable_thinking %}<think>\n{% endif %}", {"enable_thinking": True}, 512, "turns that off"),
        ("<think>\n", {}, 512, "512 ends most thoughts in the middle: --max_new_tokens 4096 lets"),
        ("<think>\n", {}, 1024, ""),
        ("", {}, 8, ""),
    ],
)
def test_a_thought_that_few_tokens_end_is_spoken_of(make_tokenizer, template, kwargs, tokens, said):
    """Templates of Qwen3, SmolLM3 and R1's kin, in short: the last words before the answer."""
    asked = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    renderer = Renderer(make_tokenizer(template=asked + template), template_kwargs=kwargs)
    note = renderer.thinking_note(tokens)
    assert said in note
    assert bool(note) == bool(said)
    assert Renderer(make_tokenizer(template=asked + template), chat_template="off").thinking_note(tokens) == ""
