"""Which prompts are held out, and which of the others each step gets."""

import random
from collections import Counter

import pytest

from local_distill.errors import UserError
from local_distill.prompts import PromptSource, RawPrompt, RawPrompts, Renderer


class Counting(Renderer):
    """Counts what it renders."""

    rendered = 0

    def render(self, raw):
        self.rendered += 1
        return super().render(raw)


@pytest.fixture
def renderer(make_tokenizer):
    return Counting(make_tokenizer())


@pytest.fixture
def build(renderer):
    """A source of these prompts, by small default settings."""

    def build(raw, **changes):
        settings = {
            "seed": 0,
            "batch_size": 3,
            "steps": 4,
            "eval_prompts": None,
            "max_prompt_tokens": 100,
            "max_new_tokens": 8,
            "context_length": None,
        }
        return PromptSource.build(raw, renderer, **{**settings, **changes})

    return build


def numbered(n):
    return [f"prompt number {i}" for i in range(n)]


def dealt(source):
    """The texts of all steps, one after the other."""
    return [p.text for step in range(source.steps) for p in source.batch(step)]


# The order


@pytest.mark.parametrize("size", [20, 1000])  # several epochs, and a part of the first
def test_the_batches_are_a_function_of_seed_and_step(build, make_raw, size):
    first, again, other = (build(make_raw(numbered(size)), steps=20, seed=s) for s in (7, 7, 8))
    assert [again.batch(s) for s in reversed(range(20))] == [first.batch(s) for s in reversed(range(20))]
    assert dealt(other) != dealt(first)
    assert other.held_out != first.held_out


def test_the_order_is_the_same_on_every_machine(build, make_raw):
    """Pinned: another order would make a resumed run another run."""
    source = build(make_raw(list("abcdefghij")), eval_prompts=2, batch_size=4, steps=6, seed=3)
    assert "".join(p.text for p in source.held_out) + "|" + "".join(dealt(source)) == "ai|fgebjhcdgcedhjfbghcedjbf"


def test_no_global_random_state_is_touched_or_read(build, make_raw):
    random.seed(1)
    state = random.getstate()
    first = dealt(build(make_raw(numbered(20)), steps=20))
    assert random.getstate() == state
    random.seed(2)
    assert dealt(build(make_raw(numbered(20)), steps=20)) == first


def test_each_epoch_deals_each_prompt_once_in_an_order_of_its_own(build, make_raw):
    source = build(make_raw(numbered(11)), eval_prompts=1, batch_size=4, steps=10)
    texts = dealt(source)
    epochs = [texts[i : i + 10] for i in range(0, 40, 10)]
    assert [set(epoch) for epoch in epochs] == [set(epochs[0])] * 4
    assert len(set(map(tuple, epochs))) == 4
    assert len(source) == len(epochs[0]) == 10


@pytest.mark.parametrize("must_fit", [False, True])
@pytest.mark.parametrize("eval_prompts", [None, 0, 5])
@pytest.mark.parametrize("size", [7, 17, 61, 64, 65, 81, 97, 200])
def test_more_steps_begin_with_the_same_batches(build, make_raw, size, eval_prompts, must_fit):
    """Across the end of the first epoch too: 32 steps of 3 need 96 prompts besides the held-out ones."""
    # Some too long and some repeated, so that rows and usable prompts are not the same.
    texts = numbered(size) + ["x" * 200] * 4 + numbered(size // 3)
    longest = build(make_raw(texts, must_fit=must_fit), steps=40, eval_prompts=eval_prompts)
    whole = dealt(longest)
    for steps in (1, 2, 20, 21, 26, 27, 31, 32, 33, 39):
        source = build(make_raw(texts, must_fit=must_fit), steps=steps, eval_prompts=eval_prompts)
        assert dealt(source) == whole[: steps * 3]
        assert source.held_out == longest.held_out


def test_a_step_outside_the_run_is_refused(build, make_raw):
    """Past the end, a source that was rendered in part would deal other prompts than a longer run."""
    source = build(make_raw(numbered(1000)), steps=4)
    for step in (-1, 4):
        with pytest.raises(IndexError):
            source.batch(step)


# The held-out prompts


@pytest.mark.parametrize("size", [9, 40, 500])
def test_held_out_prompts_never_train(build, make_raw, size):
    texts = numbered(size) * 3  # each of them three times
    source = build(make_raw(texts), steps=60)
    held_out = {p.ids for p in source.held_out}
    assert len(held_out) == len(source.held_out) > 0
    assert not held_out & {p.ids for step in range(60) for p in source.batch(step)}


def test_prompts_are_the_same_when_their_ids_are(make_tokenizer, make_raw):
    """Not when their texts are: a template may trim, and then different texts render alike."""
    renderer = Renderer(make_tokenizer(template="{{ messages[0]['content'] | trim }}"))
    raw = make_raw([f"prompt {i}" + " " * spaces for i in range(8) for spaces in range(3)])
    settings = {"seed": 0, "batch_size": 4, "steps": 10, "max_prompt_tokens": 100, "max_new_tokens": 8}
    source = PromptSource.build(raw, renderer, eval_prompts=3, context_length=None, **settings)
    assert len(source.held_out) == 3
    assert len(source) == 5
    assert any(note.startswith("16 of the 24 prompts read are left out: the same") for note in source.notes)


def test_the_held_out_prompts_depend_on_neither_steps_nor_batch_size(build, make_raw):
    raw = make_raw(numbered(300))
    sets = {build(raw, steps=steps, batch_size=size).held_out for steps in (1, 50) for size in (1, 7)}
    assert len(sets) == 1


@pytest.mark.parametrize(
    ("size", "too_long", "held_out"),
    [(1, 0, 0), (3, 0, 0), (4, 0, 1), (63, 0, 15), (64, 0, 16), (900, 0, 16), (8, 90, 2)],
)
def test_by_default_16_or_a_quarter_of_the_usable_prompts(build, make_raw, size, too_long, held_out):
    source = build(make_raw(numbered(size) + [str(i) * 200 for i in range(too_long)]), steps=1, batch_size=1)
    assert len(source.held_out) == held_out


@pytest.mark.parametrize("eval_prompts", [0, 1, 9])
def test_as_many_are_held_out_as_were_asked_for(build, make_raw, eval_prompts):
    source = build(make_raw(numbered(10)), eval_prompts=eval_prompts)
    assert (len(source.held_out), len(source)) == (eval_prompts, 10 - eval_prompts)


@pytest.mark.parametrize("eval_prompts", [10, 11])
def test_holding_all_out_is_refused(build, make_raw, eval_prompts):
    with pytest.raises(UserError, match=rf"^--eval_prompts: {eval_prompts} given, but src has 10 usable .* 9 or fewer"):
        build(make_raw(numbered(10) * 2), eval_prompts=eval_prompts)


def test_a_source_that_asks_nothing_is_refused(build):
    raw = RawPrompts([RawPrompt((), "src:0")], name="src")
    with pytest.raises(UserError, match="no prompt in it asks anything"):
        build(raw)


# What is rendered, and what is left out


def test_no_more_is_rendered_than_the_run_needs(build, make_raw, renderer):
    source = build(make_raw(numbered(5000)), steps=10, batch_size=10)
    assert len(source) == 100
    assert renderer.rendered == 16 + 100 + 1  # one more, to see whether there are more
    # Fewer than it takes to settle how many are held out.
    assert len(build(make_raw(numbered(5000)), steps=1, batch_size=2)) == 2


def test_a_prompt_carries_what_people_need(build, renderer):
    rows = [RawPrompt(({"role": "user", "content": "Hi"},), "deepmath[3]", "42")]
    (prompt,) = build(RawPrompts(rows, name="deepmath"), batch_size=1).batch(0)
    assert (prompt.text, prompt.origin, prompt.answer) == ("Hi", "deepmath[3]", "42")
    assert prompt.ids == renderer.render(rows[0])


@pytest.mark.parametrize("must_fit", [False, True])
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_prompt_tokens": 10}, "longer than 10 tokens (--max_prompt_tokens)"),
        ({"max_prompt_tokens": 10, "context_length": 29}, "longer than 10 tokens (--max_prompt_tokens)"),
    ],
)
def test_prompts_above_the_limit_are_left_out_and_counted(build, make_raw, must_fit, limits, reason):
    texts = ["a" * n for n in range(1, 21)]
    source = build(make_raw(texts, must_fit=must_fit), eval_prompts=0, **limits)
    assert sorted(set(dealt(source))) == texts[:10]
    assert f"10 of the 20 prompts read are left out: {reason}" in source.notes


def test_a_row_that_the_context_cannot_hold_is_left_out(build, make_raw):
    source = build(make_raw(["a" * n for n in range(1, 21)]), eval_prompts=0, context_length=13)
    assert max(map(len, dealt(source))) == 5
    assert "15 of the 20 prompts read are left out: longer than 5 tokens" in " ".join(source.notes)


def test_a_written_prompt_that_the_context_cannot_hold_is_refused(build, make_raw, renderer):
    texts = [*numbered(200), "a" * 92, "a" * 93, "a" * 94]  # 92 tokens leave room for 8
    with pytest.raises(UserError) as caught:
        build(make_raw(texts, must_fit=True), max_prompt_tokens=20, context_length=100, steps=1)
    assert str(caught.value) == (
        "--prompts_file: src:201 has 93 tokens and --max_new_tokens is 8, together more than the context of 100; "
        "shorten the prompt or lower --max_new_tokens"
    )
    assert len(build(make_raw(texts[:-2], must_fit=True), max_prompt_tokens=20, context_length=100, steps=1)) == 184
    assert renderer.rendered >= 401


def test_rows_that_ask_nothing_are_left_out_and_counted(build):
    rows = [RawPrompt((), "src:0"), RawPrompt(({"role": "user", "content": "Hi"},), "src:1")]
    source = build(RawPrompts(rows, name="src"))
    assert Counter(dealt(source)) == {"Hi": 12}
    assert "1 of the 2 prompts read is left out: no user message with text" in source.notes


class Bad:
    """Rows of which some are no prompts."""

    def __init__(self, texts, bad):
        self.texts, self.bad = texts, bad

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        if index in self.bad:
            raise UserError(f"src: row {index}: content NoneType given")
        return RawPrompt(({"role": "user", "content": self.texts[index]},), f"src:{index}")


@pytest.mark.parametrize("must_fit", [False, True])
@pytest.mark.parametrize("size", [20, 300])
def test_wrong_rows_are_left_out_counted_and_move_no_other(build, size, must_fit):
    """As rows that ask nothing are, which have been left out all along."""
    bad, texts = set(range(0, size, 7)), numbered(size)
    rows = [RawPrompt(() if i in bad else ({"role": "user", "content": t},), f"src:{i}") for i, t in enumerate(texts)]
    source, expected = (
        build(RawPrompts(each, name="src", must_fit=must_fit), eval_prompts=5, steps=30, batch_size=2)
        for each in (Bad(texts, bad), rows)
    )
    assert dealt(source) == dealt(expected)
    assert source.held_out == expected.held_out
    count = expected.notes[0].removesuffix("no user message with text")
    assert source.notes[0].startswith(f"{count}wrong, such as src: row")


def test_more_steps_begin_with_the_same_batches_also_with_wrong_rows(build):
    raw = RawPrompts(Bad(numbered(97), set(range(0, 97, 5))), name="src")
    whole = dealt(build(raw, steps=40))
    for steps in (1, 20, 26, 27, 33):
        assert dealt(build(raw, steps=steps)) == whole[: steps * 3]


@pytest.mark.parametrize("must_fit", [True, False], ids=["a file of prompts", "a data set"])
def test_a_row_with_a_token_that_a_model_lacks_is_left_out_and_counted(make_tokenizer, make_raw, must_fit):
    tokenizer = make_tokenizer()
    lacking = tokenizer.add_tokens("<image>") and tokenizer.convert_tokens_to_ids("<image>")
    settings = {
        "seed": 0, "batch_size": 1, "steps": 3, "eval_prompts": 0, "max_prompt_tokens": 100, "max_new_tokens": 8,
        "context_length": None,
    }  # fmt: skip
    renderer = Renderer(tokenizer, vocab_size=lacking, keep_control_tokens=True)
    raw = make_raw(["why", "see <image> here", "how", "what"], must_fit=must_fit)
    source = PromptSource.build(raw, renderer, **settings)
    assert sorted(dealt(source)) == ["how", "what", "why"]
    assert source.notes[0].startswith("1 of the 4 prompts read is left out: wrong, such as src:1: the prompt has the ")
    with pytest.raises(UserError, match="1 of the 2 rows read are wrong"):
        PromptSource.build(make_raw(["<image>", "why"], must_fit=must_fit), renderer, **settings)


@pytest.mark.parametrize(("good", "bad"), [(0, 1), (0, 9), (1, 1), (5, 6)])
def test_a_source_that_is_wrong_by_half_is_refused(build, good, bad):
    raw = RawPrompts(Bad(numbered(good + bad), set(range(bad))), name="src", must_fit=True)
    with pytest.raises(UserError, match=r"^src: row 0: content NoneType given") as caught:
        build(raw, eval_prompts=0)
    assert (f"; {bad} of the {good + bad} rows read are wrong" in str(caught.value)) == (good + bad > 1)


def test_a_large_source_that_is_all_wrong_is_not_read_to_its_end(build):
    with pytest.raises(UserError, match="256 of the 256 rows"):
        build(RawPrompts(Bad(numbered(5000), set(range(5000))), name="src"))


STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_chats_that_the_template_refuses_are_left_out(make_tokenizer):
    turn = {"role": "user", "content": "a"}
    rows = [RawPrompt(({**turn, "content": f"q{i}"},), f"src:{i}") for i in range(9)]
    rows[4] = RawPrompt((turn, turn), "src:4")
    source = PromptSource.build(
        RawPrompts(rows, name="src"), Renderer(make_tokenizer(template=STRICT)), seed=0, batch_size=2, steps=9,
        eval_prompts=1, max_prompt_tokens=99, max_new_tokens=9, context_length=None,
    )  # fmt: skip
    assert len(source) == 7
    assert "1 of the 9 prompts read is left out: wrong, such as src:4: the chat template refused" in source.notes[0]


def test_control_tokens_and_unused_tools_are_counted(make_tokenizer, template):
    tool = {"type": "function", "function": {"name": "f"}}
    texts = ["a", "b</s>", "c<s></s>", "d", "e"]
    rows = [RawPrompt(({"role": "user", "content": t},), t, tools=(tool,) if t == "d" else ()) for t in texts]
    settings = {"seed": 0, "batch_size": 2, "steps": 9, "max_prompt_tokens": 99, "max_new_tokens": 9}
    for keep, said in ((False, "ordinary text, unless --keep_control_tokens"), (True, "as which they are kept")):
        renderer = Renderer(make_tokenizer(template=template), keep_control_tokens=keep)
        source = PromptSource.build(
            RawPrompts(rows, name="src"), renderer, eval_prompts=1, context_length=None, **settings
        )
        assert source.notes[:2] == (
            f"2 of the 5 prompts read spell control tokens (</s> <s>): {said}",
            "1 of the 5 prompts read has tools, or calls of tools, that this chat template does not write",
        )


def test_the_notes_say_what_is_trained_on_and_pass_on_those_of_the_renderer(build, make_raw, renderer):
    renderer.notes = ("said by the renderer",)
    notes = build(make_raw(numbered(20)), eval_prompts=4).notes
    assert notes == ("said by the renderer", "12 prompts to train on and 4 held out, from the 20 of src")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_prompt_tokens": 4}, "the shortest has 5; raise it"),
        ({"context_length": 12}, "the shortest has 5; lower --max_new_tokens"),
    ],
)
def test_when_all_are_too_long_the_shortest_is_named(build, make_raw, limits, said):
    with pytest.raises(UserError, match=r"^--max_prompt_tokens: ") as caught:
        build(make_raw(["12345", "1234567"]), **limits)
    assert said in str(caught.value)


@pytest.mark.parametrize("context_length", [8, 7])
def test_completions_that_fill_the_context_are_refused(build, make_raw, context_length):
    with pytest.raises(UserError, match=rf"^--max_new_tokens: 8 given, but the context holds {context_length} tokens"):
        build(make_raw(numbered(3)), context_length=context_length)
