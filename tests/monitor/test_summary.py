"""What a run ends with, in its three forms."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from local_distill.monitor.summary import show_summary, write_summary
from local_distill.runs.evaluations import Completion, Evaluation

FACTS: dict[str, str | int | float] = {
    "student_model": "models/a|b",
    "steps": 100,
    "seconds": 5025.3,
    "tokens": 127_456,
}


def evaluation(step: int, reverse_kl: float, texts: tuple[str, ...], prompt: str = "Question") -> Evaluation:
    return Evaluation(
        step=step,
        reverse_kl=reverse_kl,
        standard_error=0.08,
        length=50.0,
        truncated=0.125,
        completions=tuple(
            Completion(prompt=f"{prompt} {place}", text=text, tokens=len(text), finish="stop", reverse_kl=reverse_kl)
            for place, text in enumerate(texts)
        ),
    )


BEFORE = evaluation(0, 2.34, ("The French.", "one\ntwo"))
AFTER = evaluation(100, 1.17, ("Paris is the capital of France.", "three\nfour"))


def shown(before: Evaluation | None, after: Evaluation | None, width: int = 80, terminal: bool = False) -> str:
    screen = io.StringIO()
    show_summary(before, after, FACTS, Console(file=screen, width=width, force_terminal=terminal, _environ={}))
    return screen.getvalue()


def line_with(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_markdown(tmp_path: Path) -> None:
    path = write_summary(tmp_path, BEFORE, AFTER, FACTS)
    assert path == tmp_path / "summary.md"
    text = path.read_text(encoding="utf-8")
    for line in (
        r"| student model | models/a\|b |",
        "| steps | 100 |",
        "| wall-clock | 1 h 23 min |",
        "| completion tokens | 127k |",
        "| held-out prompts | before | after | change |",
        "| reverse KL (nats/token) | 2.34 ± 0.08 | 1.17 ± 0.08 | −50 % |",
        "| completion length (tokens) | 50.0 | 50.0 | +0 % |",
        "| truncated | 12 % | 12 % |  |",
    ):
        assert line in text.splitlines()
    assert (
        "## Prompt 2\n\n```text\nQuestion 1\n```\n\n"
        "**before** (7 tokens, reverse KL 2.34)\n\n```text\none\ntwo\n```\n\n"
        "**after** (10 tokens, reverse KL 1.17)\n\n```text\nthree\nfour\n```\n"
    ) in text


def test_json_has_everything_unrounded(tmp_path: Path) -> None:
    write_summary(tmp_path, BEFORE, AFTER, FACTS)
    record = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert record["facts"] == FACTS
    assert record["reverse_kl_ratio"] == 0.5
    assert record["before"]["reverse_kl"] == 2.34
    assert record["after"]["completions"][0]["text"] == "Paris is the capital of France."


@pytest.mark.parametrize(
    "text",
    [
        "```\n# owned\n```",
        "`````text\n# owned\n`````",
        "``\x00`\n# owned\n``\x1b[0m`",  # a fence only once it is cleaned
        "~~~\n# owned\n~~~",
    ],
)
def test_a_completion_cannot_leave_its_code_block(tmp_path: Path, text: str) -> None:
    markdown = write_summary(tmp_path, evaluation(0, 1.0, (text,), prompt=text), None, {}).read_text(encoding="utf-8")
    fence, headings = "", []
    for line in markdown.splitlines():  # what CommonMark does: a block ends at a fence at least as long as its own
        if fence:
            closes = set(line) == {fence[0]} and len(line) >= len(fence)
            fence = "" if closes else fence
        elif line.startswith(("```", "~~~")):
            fence = line[: len(line) - len(line.lstrip(line[0]))]
        elif line.startswith("#"):
            headings.append(line)
    assert headings == ["# Summary", "## Prompt 1"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("terminal", [True, False])
def test_both_completions_stand_side_by_side(width: int, terminal: bool) -> None:
    text = shown(BEFORE, AFTER, width, terminal)
    assert ("\x1b" in text) == terminal
    assert line_with(text, "The French.", "Paris is the capital of France.")
    assert line_with(text, "one", "three")
    assert line_with(text, "two", "four")
    assert line_with(text, "before: 11 tokens, reverse KL 2.34", "after: 31 tokens, reverse KL 1.17")
    assert line_with(text, "2.34 ± 0.08", "1.17 ± 0.08", "−50 %")
    assert line_with(text, "wall-clock", "1 h 23 min")
    assert "Question 1" in text
    if not terminal:
        assert max(map(len, text.splitlines())) <= width


def test_long_texts_are_cut_on_the_terminal_and_whole_in_the_files(tmp_path: Path) -> None:
    long = evaluation(0, 1.0, ("word " * 1000 + "end",))
    assert "end" not in shown(long, long)
    assert "…" in shown(long, long)
    assert "word end" in write_summary(tmp_path, long, long, {}).read_text(encoding="utf-8")


def test_model_text_is_neither_markup_nor_escapes(tmp_path: Path) -> None:
    hostile = evaluation(0, 1.0, ("\x1b[2J[red]text[/red]\ud83d",), prompt="\x1b]0;t\x07[b]p[/b]")
    for text in (shown(hostile, hostile), write_summary(tmp_path, hostile, hostile, {}).read_text(encoding="utf-8")):
        assert "[red]text[/red]\ufffd" in text
        assert "[b]p[/b] 0" in text
        assert "\x1b" not in text


def test_nothing_held_out_is_said(tmp_path: Path) -> None:
    sentence = "No prompts were held out"
    assert sentence in shown(None, None)
    assert sentence in write_summary(tmp_path, None, None, FACTS).read_text(encoding="utf-8")
    record = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (record["before"], record["after"], record["reverse_kl_ratio"]) == (None, None, None)


def test_an_evaluation_that_is_missing_leaves_the_other(tmp_path: Path) -> None:
    text = shown(None, AFTER)
    assert line_with(text, "reverse KL (nats/token)", "–", "1.17 ± 0.08")
    assert "before:" not in text
    assert "Paris is the capital of France." in text
    assert "**before**" not in write_summary(tmp_path, None, AFTER, {}).read_text(encoding="utf-8")


@pytest.mark.parametrize("before", [0.0, math.nan])
def test_a_ratio_that_means_nothing_is_nan_and_null(tmp_path: Path, before: float) -> None:
    write_summary(tmp_path, evaluation(0, before, ()), AFTER, {})
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["reverse_kl_ratio"] is None
    assert line_with(shown(evaluation(0, before, ()), AFTER), "reverse KL (nats/token)").split()[-1] == "–"
