"""Prompts to token ids, with the chat template and without."""

import pytest

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
