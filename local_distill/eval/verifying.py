"""Is an answer right? As mathematics, as the same words, or as words that are in it.

Completions are untrusted: no text can hang or end the evaluation. What cannot be read is not right.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from local_distill.errors import UserError
from local_distill.eval.extracting import (
    after_mark,
    announced,
    as_words,
    last_boxed,
    marked_number,
    said,
    without_commands,
    without_gaps,
    words,
)
from local_distill.packages import installed

KINDS = ("math", "exact", "contains")
PATIENCE = 30.0
"""Seconds for one answer: two parses and up to four comparisons, of which each stops itself after 5."""
START = 60.0
"""Seconds in which the process that compares must have imported sympy."""


@dataclass(frozen=True)
class Verdict:
    """extracted: what was taken for the answer, empty where nothing was."""

    extracted: str
    correct: bool


class Verifier(Protocol):
    """One of KINDS."""

    def readable(self, reference: str) -> bool:
        """Whether answers can be compared with this one."""
        ...

    def verdict(self, completion: str, reference: str) -> Verdict:
        """Of a completion, whatever is in it."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def open_verifier(kind: str, flag: str = "--answers") -> Verifier:
    """The verifier of that name. Raises UserError when math-verify is needed and not there."""
    if kind != "math":
        return ExactVerifier() if kind == "exact" else ContainsVerifier()
    if not math_verify_is_here():
        raise UserError(
            f"{flag} math: needs the package math-verify, which is not installed; pip install 'local-distill[eval]'"
        )
    return MathVerifier()


def math_verify_is_here() -> bool:
    """Whether the extra is installed."""
    return installed("math_verify")


class ExactVerifier:
    """words(announced(completion)) == words(reference)."""

    def readable(self, reference: str) -> bool:
        """Whether it has words."""
        return bool(words(reference))

    def verdict(self, completion: str, reference: str) -> Verdict:
        """See Verifier."""
        found = announced(completion)
        return Verdict(found, words(found) == words(reference))

    def close(self) -> None:
        """Nothing is held."""


class ContainsVerifier:
    """words(reference) is a run of whole words of words(completion)."""

    def readable(self, reference: str) -> bool:
        """Whether it has words."""
        return bool(words(reference))

    def verdict(self, completion: str, reference: str) -> Verdict:
        """See Verifier."""
        found = f" {words(reference)} " in f" {words(said(completion))} "
        return Verdict(reference if found else "", found)

    def close(self) -> None:
        """Nothing is held."""


class MathVerifier:
    """Equal as mathematics, by math-verify; a reference in words is compared as words.

    The answer is what is in the last whole \\boxed{…}; else a number alone after the last "####"; else what
    math-verify finds: what is announced ("the answer is …"), or the last expression. patience: seconds for one answer.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._worker: _Worker | None = None

    def readable(self, reference: str) -> bool:
        """Whether it is an expression, or words."""
        given = after_mark(reference)
        return as_words(given) is not None or bool(self._compare(given, "").get("readable"))

    def verdict(self, completion: str, reference: str) -> Verdict:
        """See Verifier."""
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
        """What ``math_worker.compare`` says; empty where it took too long or died of it."""
        request = {"reference": _as_latex(reference.replace("−", "-")), "answer": answer}
        if self._worker is None or not self._worker.alive:
            self._worker = _Worker()
        result = self._worker.ask(request, self._patience)
        if result is None:
            self.close()
        return result or {}


def _as_latex(reference: str) -> str:
    """A reference that is bare LaTeX, as most are, marked as such; without the mark 3\\sqrt{2} would be read as 3."""
    marked = reference.count("$") > 1 or any(mark in reference for mark in ("\\boxed", "\\(", "\\["))
    return reference if marked else f"\\boxed{{{reference}}}"


class _Worker:
    """A process that runs ``math_worker``. Raises UserError when it does not start."""

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
        """Whether it still runs; the system may have ended it."""
        return self._process.poll() is None

    def ask(self, request: dict[str, str], seconds: float) -> dict[str, Any] | None:
        """Its answer; None when it gave none in time, after which it cannot be asked again."""
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
