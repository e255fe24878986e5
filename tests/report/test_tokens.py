"""Completions, packed and unpacked again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from local_distill.report.reading import read_run
from local_distill.report.tokens import Texts, evaluations_of, visible
from tests.report.runs import records_of, write_run


def test_every_number_of_every_token_comes_back(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    texts = Texts()
    packed = evaluations_of(read_run(folder), texts)
    written = records_of(folder / "completions.jsonl")
    assert [each["step"] for each in packed] == [0, 2, 4]
    for ours, theirs in zip(packed, written, strict=True):
        for completion, original in zip(ours["completions"], theirs["completions"], strict=True):
            pieces = original["pieces"]
            assert [texts.all[i] for i in completion["text"]] == [visible(piece["text"]) for piece in pieces]
            for name in ("student", "teacher", "reverse_kl"):
                assert completion[name] == pytest.approx([piece[name] for piece in pieces], abs=1e-4)
            for flat, piece in zip(completion["top"], pieces, strict=True):
                assert [texts.all[i] for i in flat[::2]] == [visible(text) for text, _ in piece["top"]]
                assert flat[1::2] == pytest.approx([nats for _, nats in piece["top"]], abs=1e-4)


def test_a_text_is_held_once() -> None:
    texts = Texts()
    assert [texts.number(text) for text in ("a", "b", "a")] == [0, 1, 0]
    assert texts.all == ["a", "b"]


def test_a_number_that_is_unknown_stays_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    record = records_of(folder / "completions.jsonl")[0]
    record["completions"][0]["pieces"][0]["teacher"] = None
    (folder / "completions.jsonl").write_text(json.dumps(record) + "\n")
    assert evaluations_of(read_run(folder), Texts())[0]["completions"][0]["teacher"][0] is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" Paris\n", " Paris\n"),
        ("天\t", "天\t"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),
        ("\udce5", "\N{REPLACEMENT CHARACTER}"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_nothing_hides_in_a_token(text: str, shown: str) -> None:
    assert visible(text) == shown
