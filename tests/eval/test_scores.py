"""The tables of an evaluation, as somebody reads them in a terminal of 80 columns."""

import io
import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from local_distill.eval.scores import Measured, Results, p_in_words, short_names, show, to_record
from local_distill.eval.statistics import Estimate, Total, mean_over_questions

MODELS = [
    "models/SmolLM2-135M-Instruct-drifted",
    "runs/2026-11-25-repair (step 100)",
    "runs/2026-11-25-other (step 40)",
]


def measured(shift, questions=4):
    right = tuple((n + shift) % 2 for n in range(questions))
    totals = tuple(Total(10.0 + n * n + shift, 9 + n) for n in range(questions))
    numbers = mean_over_questions([12.0 + n for n in range(questions)])
    return Measured(questions, 1, right, totals, numbers, Estimate(0.5, numbers.standard_error))


def tables(models, questions=4):
    found = {model: {"gsm8k": measured(place, questions)} for place, model in enumerate(models)}
    before = found[models[0]]["gsm8k"]
    differences = {model: {"gsm8k": found[model]["gsm8k"].minus(before)} for model in models[1:]}
    harness = {model: {"ifeval": {"acc": Estimate(0.25, math.nan)}} for model in models}
    task = SimpleNamespace(name="gsm8k", questions=[None] * questions, verified=True)
    inputs = SimpleNamespace(tasks=[task], settings=SimpleNamespace(samples=1), fixed={})
    results = Results(found, differences, harness)
    screen = io.StringIO()
    show(Console(file=screen, width=80), inputs, results)
    return screen.getvalue(), to_record(inputs, results)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_columns_carry_names_and_fit_eighty_characters(number):
    shown, _ = tables(MODELS[:number])
    lines = shown.splitlines()
    legend = [line.split("  ", 1) for line in lines if line.endswith(tuple(MODELS))]
    heading = next(
        line for line in lines if line.strip() and not line.endswith(tuple(MODELS)) and "questions" not in line
    )
    assert max(map(len, (line.rstrip() for line in lines if not line.endswith(tuple(MODELS))))) <= 80
    assert [full for _, full in legend] == MODELS[: len(legend)]
    names = [{full: short for short, full in legend}.get(model, model) for model in MODELS[:number]]
    assert all(name in heading for name in names), (heading, names)
    assert "reverse KL in nats per token" in shown
    assert "…" not in "".join(line for line in lines if line not in heading and "  " in line[:2]), "no number is cut"
    assert ("change from the first model" in shown) == (number > 1)


def test_one_question_has_no_standard_error_anywhere():
    shown, record = tables(MODELS[:2], questions=1)
    assert "nan" not in shown
    assert " ± " not in shown.replace("± one standard error", "")
    numbers = record["models"][MODELS[0]]["gsm8k"]
    assert "accuracy" in numbers
    assert not any(name.endswith("_se") for name in numbers)


def test_names_that_would_be_alike_get_their_numbers():
    assert short_names(["a" * 30 + "b" * 30, "a" * 29 + "cb" + "b" * 29], 15) == ["1 aaaaaa…bbbbbb", "2 aaaaaa…bbbbbb"]
    assert short_names(["runs/a", "runs/b"], 15) == ["runs/a", "runs/b"]


@pytest.mark.parametrize(("p", "words"), [(math.nan, "–"), (0.0004, "< 0.001"), (0.0344, "0.034"), (0.5, "0.50")])
def test_p_in_words(p, words):
    assert p_in_words(p) == words
