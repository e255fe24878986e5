"""Is an answer right? As mathematics, as the same words, or as words that are in it.

Below the verifiers stands what of a completion is its answer, and when two texts are the same words.
Completions are untrusted: no text can hang or end the evaluation. What cannot be read is not right.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_distill.errors import UserError
from local_distill.eval.eval_config import CONTAINS, EXACT, MATH
from local_distill.packages import installed

PATIENCE = 30.0
"""Seconds for one answer: two parses and up to four comparisons, of which each stops itself after 5."""
START = 60.0
"""Seconds in which the process that compares must have imported sympy."""
THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
GSM8K_MARK = "####"
_ANNOUNCED = re.compile(r"answer\b[*_\s]*(?:is\b|:)[*_\s:]*", re.IGNORECASE)
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(
    rf"[{_IDEOGRAPH}]|(?<![\w.])-?\d+(?:,\d{{3}})*(?:\.\d+)?|[^\W_{_IDEOGRAPH}]+(?:['’][^\W_{_IDEOGRAPH}]+)*"
)
_IN_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_NUMBER_ALONE = re.compile(r"[*\s$]*-?[*\s$]*\d[\d,]*(?:\.\d+)?[\s%*$.]*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are characters, not braces
_GAP = re.compile(r"\\,|\\ |~| ")
_THOUSANDS_APART = re.compile(rf"-?\d{{1,3}}(?:(?:{_GAP.pattern})\d{{3}})+")
_WORDS_ONLY = re.compile(r"(?:[^\W\d_]{3,}|no)(?:[ -][^\W\d_]+)*", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """A completion is judged. extracted: what was taken for the answer, empty where nothing was."""

    extracted: str
    correct: bool


class Verifier:
    """Texts are compared by their words, and nothing is held, unless a verifier says otherwise."""

    def readable(self, reference: str) -> bool:
        """Tell whether answers can be compared with this one: whether it has words."""
        return bool(words(reference))

    def verdict(self, completion: str, reference: str) -> Verdict:
        """Judge a completion, whatever is in it."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what it holds."""


def open_verifier(kind: str) -> Verifier:
    """Open the verifier that ``--answers`` names. Raises UserError when math-verify is needed and not there."""
    if kind == MATH and not math_verify_is_here():
        raise UserError(
            "--answers math: needs the package math-verify, which is not installed; pip install 'local-distill[eval]'"
        )
    kinds: dict[str, type[Verifier]] = {MATH: MathVerifier, EXACT: ExactVerifier, CONTAINS: ContainsVerifier}
    return kinds[kind]()


def math_verify_is_here() -> bool:
    """Tell whether the extra is installed."""
    return installed("math_verify")


class ExactVerifier(Verifier):
    """An answer is right where words(announced(completion)) == words(reference)."""

    def verdict(self, completion: str, reference: str) -> Verdict:
        """Compare what is announced."""
        found = announced(completion)
        return Verdict(found, words(found) == words(reference))


class ContainsVerifier(Verifier):
    """An answer is right where words(reference) is a run of whole words of words(completion)."""

    def verdict(self, completion: str, reference: str) -> Verdict:
        """Look for the reference."""
        found = f" {words(reference)} " in f" {words(said(completion))} "
        return Verdict(reference if found else "", found)


class MathVerifier(Verifier):
    """An answer is right where it is equal as mathematics, by math-verify; a reference in words is compared as words.

    The answer is what is in the last whole \\boxed{…}; else a number alone after the last "####"; else what
    math-verify finds: what is announced ("the answer is …"), or the last expression. patience: seconds for one answer.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._worker: _Worker | None = None

    def readable(self, reference: str) -> bool:
        """Tell whether it is an expression, or words."""
        given = after_mark(reference)
        return as_words(given) is not None or bool(self._compare(given, "").get("readable"))

    def verdict(self, completion: str, reference: str) -> Verdict:
        """Compare as words where the reference is words, else as mathematics."""
        expected, text = after_mark(reference), said(completion)
        boxed = last_boxed(text)
        if (in_words := as_words(expected)) is not None:
            found = announced(completion) if boxed is None else without_commands(boxed).strip()
            return Verdict(found, words(found) == words(in_words))
        answer = marked_number(text) if boxed is None else f"\\boxed{{{without_gaps(boxed)}}}"
        result = self._compare(expected, answer)
        return Verdict(result.get("extracted", boxed or ""), result.get("correct", False))

    def close(self) -> None:
        """End the process that compares."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _compare(self, reference: str, answer: str) -> dict[str, Any]:
        """Return what ``math_worker.compare`` says; empty where it took too long or died of it."""
        request = {"reference": _as_latex(reference.replace("−", "-")), "answer": answer}
        if self._worker is None or not self._worker.alive:
            self._worker = _Worker()
        result = self._worker.ask(request, self._patience)
        if result is None:
            self.close()
        return result or {}


def _as_latex(reference: str) -> str:
    """Mark a reference that is bare LaTeX, as most are, as such; without the mark 3\\sqrt{2} would be read as 3."""
    marked = reference.count("$") > 1 or any(mark in reference for mark in ("\\boxed", "\\(", "\\["))
    return reference if marked else f"\\boxed{{{reference}}}"


class _Worker:
    """A process runs ``math_worker``. Raises UserError when it does not start."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        package = Path(__file__).parents[2]
        path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "local_distill.eval.math_worker"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={**os.environ, "PYTHONPATH": path},
                cwd=package,  # not the user's folder, in which Python would look for packages first
            )
        self._answers = self._socket.makefile("rb")
        if (self.ask({"reference": "2", "answer": "2"}, START) or {}).get("correct") is not True:
            self.close()
            raise UserError(
                "--answers math: the process that runs math-verify does not work; "
                "pip install --force-reinstall math-verify"
            )

    @property
    def alive(self) -> bool:
        """Tell whether it still runs; the system may have ended it."""
        return self._process.poll() is None

    def ask(self, request: dict[str, str], seconds: float) -> dict[str, Any] | None:
        """Return its answer; None when it gave none in time, after which it cannot be asked again."""
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        except OSError:  # a time-out is one
            return None
        result: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return result

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._socket.close()


def said(completion: str) -> str:
    """Return a completion without its thoughts (the last may be unfinished), with plain minus and dollar signs."""
    after = completion.rpartition(THOUGHT_ENDS)[2]
    return after.partition(THOUGHT_BEGINS)[0].replace("−", "-").replace("\\$", "$")


def announced(completion: str) -> str:
    """Return what follows the last "answer:" or "answer is" on its line; without one, the last line with text."""
    text = said(completion)
    places = list(_ANNOUNCED.finditer(text))
    after = text[places[-1].end() :] if places else ""
    if after.strip():
        return after.strip().split("\n")[0].strip()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return lines[-1] if lines else ""


def last_boxed(text: str) -> str | None:
    """Return what is inside the last whole \\boxed{…}; None where there is none."""
    for start in reversed([found.end() for found in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]):
        depth = 1
        for brace in _BRACE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[start : brace.start()]
    return None


def after_mark(text: str) -> str:
    """Return what follows the last "####" on its line, as GSM8K writes answers; all of a text without one."""
    _, mark, after = text.rpartition(GSM8K_MARK)
    return after.strip().split("\n")[0] if mark and after.strip() else text


def marked_number(text: str) -> str:
    """Return a number alone after the last "####" on its line; all of any other text, as Markdown has such headings."""
    after = after_mark(text)
    return re.sub(r"[*$\s]", "", after) if after is not text and _NUMBER_ALONE.fullmatch(after) else text


def without_gaps(boxed: str) -> str:
    """Write a number whose thousands stand apart, such as ``70\\,000``, in one piece; anything else as it is."""
    number = _THOUSANDS_APART.fullmatch(boxed.strip())
    return _GAP.sub("", boxed) if number else boxed


def words(text: str) -> str:
    """Return words and numbers alone, in lower case, one space between: the form in which texts are compared.

    Punctuation and symbols are dropped, except a number's sign and decimal point; 1,000 is 1000. Each ideograph is a
    word. Compatibility forms (full width, ligatures) count as the plain ones (Unicode NFKC).
    """
    folded = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    return " ".join(re.sub("[,'’]", "", each) for each in _WORD.findall(folded))


def as_words(reference: str) -> str | None:
    """Return a reference in words, no formula, such as ``\\text{Evelyn}`` or ``Yes``, without commands; else None.

    As a formula, Yes would be Y·e·s, and equal to any word of the same letters.
    """
    text = without_commands(reference).strip().strip("$.").strip()
    return text if _WORDS_ONLY.fullmatch(text) else None


def without_commands(text: str) -> str:
    """Replace ``\\text{…}`` and its like by what they hold."""
    return _IN_TEXT_COMMAND.sub(r"\1", text)
