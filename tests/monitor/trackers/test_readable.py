"""Completions for people: what a model wrote is text there, whatever it wrote."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser

from local_distill.monitor.trackers.readable import COLUMNS, MARKDOWN_TOKENS, coloured, markdown, page, rows
from local_distill.runs.evaluations import Completion, Evaluation, Piece
from tests.tracked import COMPLETION, HOSTILE, evaluation


class Parsed(HTMLParser):
    """What a browser makes of HTML: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def told(completion: Completion) -> Evaluation:
    return replace(evaluation(0), completions=(completion,))


def test_html_shows_each_token_and_runs_none() -> None:
    parsed = Parsed(coloured(COMPLETION))
    assert [tag for tag, _ in parsed.tags] == ["div", "span", "span", "span"]
    assert parsed.text == f"Paris \N{REPLACEMENT CHARACTER}{HOSTILE}"
    first, second, third = (attributes for tag, attributes in parsed.tags if tag == "span")
    assert all(attributes.keys() == {"style", "title"} for attributes in (first, second, third))
    assert first["title"] == f'reverse KL 1.50 nats\nstudent -0.500, teacher -2.00\n" Lyon" -0.250\n"{HOSTILE}" -1.00'
    assert first["style"] == "background:rgba(214,69,65,0.50)"  # surer than the teacher: red
    assert second["style"] == "background:rgba(65,105,225,0.17)"  # less sure: blue
    assert third["style"] == "background:rgba(214,69,65,1.00)"
    assert {tag for tag, _ in Parsed(page(told(replace(COMPLETION, prompt=HOSTILE)))).tags} == {
        "h4", "div", "span", "p", "small"
    }  # fmt: skip


def test_newlines_stay_and_unknown_numbers_have_no_colour() -> None:
    parsed = Parsed(
        coloured(replace(COMPLETION, pieces=(Piece("\n", -1.0, math.nan, math.nan), Piece("a\nb", 0, 0, 0))))
    )
    assert parsed.text == "\na\nb"
    assert "0.00)" in str(parsed.tags[1][1]["style"])


def test_without_pieces_there_is_the_text() -> None:
    assert Parsed(coloured(replace(COMPLETION, pieces=(), text=HOSTILE))).text == HOSTILE


def test_rows_are_plain_and_finite() -> None:
    ((prompt, text, *_, reverse_kl),) = rows(evaluation(0))
    assert (prompt, text, reverse_kl) == ("Capital of France?", "Paris \N{REPLACEMENT CHARACTER}", None)
    assert len(COLUMNS) == 5


def test_markdown_lays_out_nothing_that_a_model_wrote() -> None:
    """As TensorBoard shows it: python-markdown with tables."""
    from markdown import markdown as render

    parsed = Parsed(
        render(markdown(told(replace(COMPLETION, text=HOSTILE))), extensions=["markdown.extensions.tables"])
    )
    assert {tag for tag, _ in parsed.tags} == {"h4", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert [tag for tag, _ in parsed.tags].count("tr") == 1 + len(COMPLETION.pieces)
    assert [tag for tag, _ in parsed.tags].count("td") == 5 * len(COMPLETION.pieces)
    assert parsed.text.count(HOSTILE) == 3  # the text, a token and what the teacher would have said


def test_markdown_of_a_long_completion_says_what_it_leaves_out() -> None:
    long = replace(COMPLETION, pieces=COMPLETION.pieces[:1] * (MARKDOWN_TOKENS + 7))
    assert markdown(told(long)).endswith("\n7 more tokens are in completions.jsonl")
    assert markdown(told(long)).count("| 1.50 |") == MARKDOWN_TOKENS
