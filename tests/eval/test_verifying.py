"""Which answers are right, and that no text can hang or end the evaluation."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from local_distill.errors import UserError
from local_distill.eval import verifying
from local_distill.eval.verifying import (
    ContainsVerifier,
    ExactVerifier,
    MathVerifier,
    as_words,
    last_boxed,
    open_verifier,
    words,
)

GSM8K = "She sold 48/2 = <<48/2=24>>24 in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72"


@pytest.fixture(scope="module")
def math_verifier():
    verifier = MathVerifier()
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("reference", "completion"),
    [
        (GSM8K, "48 + 24 = 72 clips altogether."),
        (GSM8K, "Half of 48 is 24, so\n#### 72\nI hope this helps with all 3 questions."),
        ("a #### 1,018", "\\boxed{1018}"),
        ("1000", "It costs $1,000."),
        ("42", "The answer is 42."),
        ("7", "#### Step 1: x = 7.\n#### Step 2: Conclude\nThe answer is 7."),
        ("7", "#### Final Answer\nThe answer is 7."),
        ("18", r"She makes \$18 every day."),
        ("18", r"#### \$18"),
        ("-1,018.50", "#### **-$1,018.50**"),
        ("70000", r"\boxed{70\,000}"),
        ("70000", r"\boxed{70 000}"),
        (r"\left\{ 1, 2 \right\}", r"\boxed{4} is wrong, it is \boxed{\left\{ 1, 2 \right\}}"),
        ("42", "**Final answer:** 42 apples"),
        ("-3", "x = −3"),  # U+2212
        ("1/2", "The answer is 0.5"),
        (r"\frac{3}{4}", r"\boxed{\dfrac{6}{8}}"),
        (r"\frac12", "1/2"),
        (r"3\sqrt{2}", r"\(3\sqrt2\)"),
        ("12", r"\boxed{12\text{ dollars}}"),
        (r"5\text{ cm}", r"\boxed{5}"),
        ("50\\%", r"\boxed{0.5}"),
        ("50\\%", r"\boxed{50}"),
        ("[-2,7]", r"$[-2,7]$"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3,\pi/2)}"),
        ("x^2+2x", "$x(x+2)$"),
        ("2", r"\boxed{x=2}"),
        ("7", r"First \boxed{3}, no: \boxed{7}"),
        ("033", "33"),
        (r"\text{Evelyn}", r"\boxed{Evelyn}"),
        ("Yes", "The answer is: **yes**."),
        ("Yes", r"so \boxed{\text{Yes}}."),
        ("9", r"<think>maybe \boxed{8}</think>\boxed{9}"),
    ],
)
def test_what_is_right_as_mathematics(math_verifier, reference, completion):
    assert math_verifier.verdict(completion, reference).correct


@pytest.mark.parametrize(
    ("reference", "completion"),
    [
        ("42", ""),
        ("42", "forty-two"),
        ("2", "#### Step 1: x = 7.\n#### Step 2: Conclude\nThe answer is 7."),
        ("5", r"<think>\nFirst try: \boxed{5}. Wait, check that"),
        ("12", "<think>\nSome thought</think>So <think>\nLet me see, 12"),
        ("4", r"\boxed{4} hence \boxed{\left\{ x \right.}"),
        ("42", "The answer is 43."),
        ("3", "-3"),
        ("[1,2]", "$(1,2)$"),
        ("12", r"\boxed{12 dollars}"),
        (r"(1,\infty)", "$x>1$"),
        (r"3\sqrt{2}", "3"),
        ("3", r"\boxed{3\sqrt{2}}"),
        ("listen", r"\boxed{silent}"),  # a product of the same letters
        ("7", r"\boxed{7}, no: \boxed{3}"),
        ("12", r"<think>\boxed{12}</think> I do not know."),
        ("12", "</think>" * 3),
        ("2", r"\boxed{\boxed{"),
        ("2", "\ud83d \x00 \x1b[2J"),
        ("2", "(" * 20_000),
        ("2", "\\frac" * 5_000),
    ],
)
def test_what_is_wrong_as_mathematics(math_verifier, reference, completion):
    assert not math_verifier.verdict(completion, reference).correct


@pytest.mark.parametrize("reference", ["", "  ", "???", "\\frac{", '"'])
def test_a_reference_without_meaning_is_not_readable(math_verifier, reference):
    assert not math_verifier.readable(reference)


@pytest.mark.parametrize(
    "reference",
    [
        r"\begin{pmatrix} -2 \\ -14 \end{pmatrix}", r"\text{(C)}", "10,080", r"90^\circ", r"\$36", "2516_8",
        r"\text{June 20}", "6 + 9i", r"\{1\pm\sqrt{5},-2\}", r"(-\infty, 2) \cup (3, \infty)", r"4.5 \times 10^{33}",
        r"\text{east}", "True", "p - q", r"x \in (1,2)", r"\infty", r"\binom{5}{2}",
    ],
)  # fmt: skip
def test_references_as_data_sets_have_them_are_equal_to_themselves_alone(math_verifier, reference):
    assert math_verifier.readable(reference)
    assert math_verifier.verdict(f"So it is $\\boxed{{{reference}}}$.", reference).correct
    assert not math_verifier.verdict(r"\boxed{987}", reference).correct


def test_what_would_take_forever_is_wrong_and_the_next_is_verified():
    verifier = MathVerifier(patience=0.5)
    start = time.monotonic()
    assert not verifier.verdict(r"\boxed{9^{9^{9^{9}}}}", "2").correct
    assert time.monotonic() - start < 5
    verifier._patience = 30
    assert verifier.verdict("2", "2").correct
    verifier.close()


def test_a_process_that_was_ended_is_started_again(math_verifier):
    assert math_verifier.verdict("2", "2").correct
    process = math_verifier._worker._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert math_verifier.verdict("2", "2").correct


def test_any_thread_may_ask(math_verifier):
    found = []
    thread = threading.Thread(target=lambda: found.append(math_verifier.verdict("x = 4/2", "2")))
    thread.start()
    thread.join()
    assert found[0].correct


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(verifying, "math_verify_is_here", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'local-distill\[eval\]'"):
        open_verifier("math")
    assert isinstance(open_verifier("exact"), ExactVerifier)


def test_a_process_that_does_not_start_is_no_wrong_answer(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="does not work"):
        MathVerifier().verdict("2", "2")


def test_the_process_needs_no_torch():
    code = "import sys, local_distill.eval.math_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("reference", "completion", "same"),
    [
        ("Paris", "I think so.\nAnswer: **Paris.**", True),
        ("Paris", "The answer is paris", True),
        ("Paris", "The answer is Rome.\nNo. The answer is Paris.", True),
        ("Paris", "It is a large city.\n\nPARIS!\n", True),
        ("Paris", "Paris\nor Rome", False),
        ("Paris", "It is Paris.", False),
        ("New  Delhi", "answer: new-delhi", True),
        ("-3", "answer: 3", False),
        ("3.14", "Answer: 3.14.", True),
        ("314", "Answer: 3.14", False),
        ("1,000", "1000", True),
        ("don't", "Dont", True),
        ("yes", "", False),
        ("巴黎", "答案\nAnswer: 巴黎。", True),
    ],
)
def test_the_same_words(reference, completion, same):
    assert ExactVerifier().verdict(completion, reference).correct is same


@pytest.mark.parametrize(
    ("reference", "completion", "there"),
    [
        ("Paris", "The capital is Paris, of course.", True),
        ("Paris", "Parisians live there.", False),
        ("New Delhi", "It is New\nDelhi.", True),
        ("New Delhi", "Delhi is new", False),
        ("巴黎", "法国的首都是巴黎。", True),
        ("3", "x = -3", False),
        ("3", "13", False),
        ("Paris", "<think>Paris?</think>Rome", False),
    ],
)
def test_words_that_are_in_it(reference, completion, there):
    assert ContainsVerifier().verdict(completion, reference).correct is there


@pytest.mark.parametrize("verifier", [ExactVerifier(), ContainsVerifier()])
def test_a_reference_without_words_is_not_readable(verifier):
    assert not verifier.readable("?! ")
    assert verifier.readable("x")


def test_the_last_whole_box():
    assert last_boxed(r"\boxed{1} and \boxed{\frac{1}{2}} and \boxed{3") == r"\frac{1}{2}"
    assert last_boxed("none") is None


@pytest.mark.parametrize("formula", ["x", "xy", "2k", r"\pi", r"\sin x", "1/2", "p - q", "E", r"\frac{a}{b}"])
def test_formulas_are_not_words(formula):
    assert as_words(formula) is None


def test_words_are_what_is_compared():
    assert words("It's 1,000.50 — “don't”!") == "its 1000.50 dont"
    assert words("Ｐａｒｉｓ") == "paris"
