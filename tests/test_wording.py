"""Numbers, counts and texts as people read them; what a model wrote can only be read."""

import math

import pytest

from local_distill.wording import clean, counted, markdown_table, number, shorten


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 prompts"), (1, "1 prompt"), (2, "2 prompts"), (1234, "1,234 prompts")]
)
def test_what_is_counted(count, words):
    assert counted(count, "prompt") == words


def test_a_plural_of_its_own():
    assert [counted(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0.00"),
        (1.2345, "1.23"),
        (-0.0123, "-0.0123"),
        (128.0, "128"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (12345.0, "12.3k"),
        (999_950.0, "1.00M"),
        (-4.56e6, "-4.56M"),
        (1.234e-5, "1.23e-05"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, written: str) -> None:
    assert number(value) == written


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;5;197;1mred", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]never ended\nnext line", "\nnext line"),
        ("lone \x1b escape", "lone  escape"),
        ("bell\x07 backspace\x08 delete\x7f null\x00", "bell backspace delete null"),
        ("a\tb", "a   b"),
        ("dos\r\nold mac\runix\nparagraph\u2029end", "dos\nold mac\nunix\nparagraph\nend"),
        ("over\u202eride zero\u200bwidth", "override zerowidth"),
        ("👩\u200d🚀 天空 é", "👩\u200d🚀 天空 é"),
        ("half \ud83d pair", "half \ufffd pair"),
    ],
)
def test_clean_text_can_only_be_read(raw: str, shown: str) -> None:
    assert clean(raw) == shown


def test_long_text_is_cut_with_an_ellipsis() -> None:
    assert shorten("short", characters=5, lines=1) == "short"
    assert shorten("too long", characters=5, lines=1) == "too l …"
    assert shorten("a\nb\nc", characters=100, lines=2) == "a\nb …"
    assert shorten("a\n\n \n\n\nb\n", characters=100, lines=3) == "a\n\nb"


def test_what_stands_in_a_cell_of_markdown_is_text():
    table = markdown_table(("a", "b"), [("__init__", "x|y\n*z*"), ("<b>", "`c`")])
    assert table == "| a | b |\n| --- | --- |\n| \\_\\_init\\_\\_ | x\\|y \\*z\\* |\n| \\<b> | \\`c\\` |"
