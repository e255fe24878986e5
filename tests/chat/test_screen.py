"""Colours where a terminal has them, and two answers side by side however long they are."""

import io

import pytest
from rich.console import Console

from local_distill.chat.screen import TerminalScreen, worst_tokens
from local_distill.runs.evaluations import Piece


def terminal(**settings):
    return Console(file=io.StringIO(), force_terminal=True, width=60, height=10, **settings)


@pytest.mark.parametrize(
    ("settings", "reverse_kl", "coloured"),
    [
        ({"color_system": "truecolor"}, 9.0, "\x1b[38;2;220;30;60mbad"),
        ({"color_system": "256"}, 2.0, "\x1b[38;5;"),  # another value: rich remembers how it wrote a style
        ({"color_system": None}, 1.0, "good bad"),
        ({"color_system": "truecolor", "no_color": True}, 0.5, "bad"),
    ],
)
def test_disagreement_is_coloured_as_the_terminal_can(settings, reverse_kl, coloured):
    console = terminal(**settings)
    with TerminalScreen(console, numbers=False).answering(["student"]) as show:
        show(0, "good ", 0.01)
        show(0, "bad", reverse_kl)
    written = console.file.getvalue()
    assert coloured in written
    assert ("\x1b[38" in written) == coloured.startswith("\x1b")
    assert written.endswith("\n")


def test_a_model_cannot_write_markup_or_escapes():
    console = terminal(color_system="truecolor")
    with TerminalScreen(console, numbers=False).answering(["student"]) as show:
        show(0, "[red]x[/red]\x1b]0;title\x07", None)
    assert "[red]x[/red]\n" in console.file.getvalue()
    assert "title" not in console.file.getvalue()


def test_two_answers_stand_side_by_side_and_are_whole_in_the_end():
    console = terminal(color_system=None)
    words = [[f"{who}{i} " for i in range(200)] for who in "ab"]
    with TerminalScreen(console, numbers=False).answering(["student", "teacher"]) as show:
        for pair in zip(*words, strict=True):
            for column, word in enumerate(pair):
                show(column, word, 0.5)
    last = console.file.getvalue().rsplit("student", 1)[1]
    assert all(word.strip() in last for column in words for word in column)
    assert "a0" in last.splitlines()[1]
    assert "b0" in last.splitlines()[1]


def test_the_worst_tokens_come_first_with_what_the_teacher_wanted():
    pieces = (
        Piece("The", -0.1, -0.2, 0.1, (("The", -0.2),)),
        Piece(" sky\x1b[2J", -0.5, -4.6, 3.0, ((" sea", -0.1), ("\n", -3.0))),
        Piece(" is", -0.1, -0.5, 0.4, ()),
    )
    console = Console(file=io.StringIO(), width=100)
    console.print(worst_tokens(pieces))
    rows = [line for line in console.file.getvalue().splitlines() if "%" in line]
    assert "␣sky" in rows[0]
    assert "␣sea 90 %" in rows[0]
    assert "⏎" in rows[0]
    assert "3.00" in rows[0]
    assert "61 %" in rows[0]
    assert [("is" in rows[1]), ("The" in rows[2])] == [True, True]
    assert "\x1b" not in console.file.getvalue()
