"""The JSONL files of a run: what every step measured, and what every evaluation said.

    metrics.jsonl       {"step": 7, "reverse_kl": 1.2, …} after each step, {"step": 10, "eval/reverse_kl": …}
    completions.jsonl   {"step": 10, "reverse_kl": …, "completions": [{"prompt": …, "text": …, "pieces": […]}, …]}

A piece is one token: {"text": " sky", "student": -0.4, "teacher": -1.9, "reverse_kl": 1.2, "top": [[" sky", -1.9], …]};
see evaluations.Piece. Files of older runs have none.

``step`` is the number of finished updates: 1 after the first, 0 for the evaluation before training.
Knows nothing of terminals or experiment trackers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from local_distill.errors import RunError, UserError
from local_distill.runs.evaluations import Completion, Evaluation, Piece
from local_distill.runs.jsonl import as_declared, is_number, read_records, to_json
from local_distill.runs.layout import COMPLETIONS_FILE, METRICS_FILE
from local_distill.runs.whole_files import write_whole, writing

HELD_OUT = "eval/"
"""What the metrics of an evaluation begin with."""


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers of an evaluation under the names that every file and tracker gives them.

    A standard error that one sample cannot tell is not among them, nor an accuracy that is not measured.
    """
    metrics = {
        "eval/reverse_kl": evaluation.reverse_kl,
        "eval/reverse_kl_se": evaluation.standard_error,
        "eval/completion_tokens": evaluation.length,
        "eval/truncated": evaluation.truncated,
        "eval/accuracy": evaluation.accuracy,
        "eval/accuracy_se": evaluation.accuracy_standard_error,
    }
    may_be_absent = ("eval/reverse_kl_se", "eval/accuracy", "eval/accuracy_se")
    return {name: value for name, value in metrics.items() if name not in may_be_absent or not math.isnan(value)}


class JsonlWriter:
    """Records, each with a "step", are added to a JSONL file; one is on its way to disk when ``write`` returns.

    keep_through: None for a new run. For a run resumed after step N, N: later records, and a last line that a
        crash cut short, are removed first, so that the file becomes the one that an unbroken run writes.

    Raises UserError when a new run finds records of another run, or when a resumed one finds a line
    that is no record; RunError when the file cannot be written, or is not there any more.
    """

    def __init__(self, path: Path, keep_through: int | None = None) -> None:
        if keep_through is not None:
            _remove_after(path, keep_through)
        elif path.exists() and path.stat().st_size:
            raise UserError(f"{path}: holds the records of another run; add --resume, or name another --output_dir")
        self._path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)  # what a full disk refuses is not tried again by ``close``

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        # A token can decode to half of a surrogate pair, which UTF-8 has no bytes for; as a backslash
        # escape it is still JSON.
        line = f"{to_json(record)}\n".encode(errors="backslashreplace")
        with writing(self._path):
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):  # nobody would ever read it
                raise RunError(f"{self._path}: another file has taken its place; let no other run use this folder")
            while line:
                line = line[self._file.write(line) :]  # a disk that becomes full takes a part

    def close(self) -> None:
        """Close the file; nothing is written after that."""
        self._file.close()


class RunFiles:
    """A run in ``output_dir`` writes metrics.jsonl and completions.jsonl here; ``keep_through`` as in JsonlWriter."""

    def __init__(self, output_dir: Path, keep_through: int | None) -> None:
        self._metrics = JsonlWriter(output_dir / METRICS_FILE, keep_through)
        self._completions = JsonlWriter(output_dir / COMPLETIONS_FILE, keep_through)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line of metrics, after update ``step``."""
        self._metrics.write({"step": step, **metrics})

    def evaluation(self, evaluation: Evaluation) -> None:
        """Write a line of metrics, and the completions in the other file."""
        self._metrics.write({"step": evaluation.step, **evaluation_metrics(evaluation)})
        self._completions.write(asdict(evaluation))

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._completions.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl: a step, and numbers or null.

    Raises UserError when a line other than the last is no such record, or when the file cannot be read.
    """
    return [metrics_of(path, line, record) for line, record in read_records(path)]


def read_evaluations(path: Path) -> list[Evaluation]:
    """Return the evaluations of a completions.jsonl, in the order of its lines; null reads as NaN.

    Raises UserError when a line other than the last is no such record, or when the file cannot be read.
    """
    return [evaluation_of(path, line, record) for line, record in read_records(path)]


def metrics_of(path: Path, line: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a line of a metrics.jsonl. Raises UserError where it holds what is no number."""
    for name, value in record.items():
        if value is not None and not is_number(value):
            raise UserError(f"{path}: {name} is no number in {_shown(line)}; repair or remove that line")
    return record


def evaluation_of(path: Path, line: str, record: dict[str, Any]) -> Evaluation:
    """Return the evaluation of a line of a completions.jsonl. Raises UserError where it is none."""
    try:
        return _evaluation(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: no evaluation ({what}) in {_shown(line)}; repair or remove that line") from error


def training_totals(path: Path) -> tuple[int, float]:
    """Return tokens trained on and seconds spent in steps, over a whole metrics.jsonl. Raises UserError."""
    steps = [record for record in read_metrics(path) if is_step(record)]
    tokens, seconds = (sum(step.get(name) or 0 for step in steps) for name in ("tokens", "seconds/step"))
    return int(tokens), float(seconds)


def lost_records(folder: Path, through: int) -> list[str]:
    """Return in words what of a run of ``through`` steps its files do not tell any more. Raises UserError."""
    metrics, notes = read_metrics(folder / METRICS_FILE), []
    if through > (found := len({record["step"] for record in metrics if is_step(record)})):
        notes.append(f"{folder / METRICS_FILE}: holds {found} of {through} steps, the others are lost to the report")
    evaluated = {record["step"] for record in metrics if not is_step(record)}
    if lost := sorted(evaluated - {each.step for each in read_evaluations(folder / COMPLETIONS_FILE)}):
        steps = ", ".join(map(str, lost))
        notes.append(f"{folder / COMPLETIONS_FILE}: holds no completions of the evaluations at step {steps}")
    return notes


def is_step(record: Mapping[str, Any]) -> bool:
    """Return whether a record of a metrics.jsonl is of a training step, not of an evaluation."""
    return not any(name.startswith(HELD_OUT) for name in record)


def _evaluation(record: dict[str, Any]) -> Evaluation:
    completions = tuple(_completion(each) for each in record["completions"])
    return as_declared(Evaluation(**{**_null_to_nan(record), "completions": completions}))


def _completion(record: dict[str, Any]) -> Completion:
    pieces = tuple(_piece(each) for each in record.get("pieces", ()))
    return as_declared(Completion(**{**_null_to_nan(record), "pieces": pieces}))


def _piece(record: dict[str, Any]) -> Piece:
    if not all(isinstance(text, str) for text, _ in record["top"]):
        raise TypeError("top holds what is no text")
    top = tuple((text, math.nan if logprob is None else float(logprob)) for text, logprob in record["top"])
    return as_declared(Piece(**{**_null_to_nan(record), "top": top}))


def _shown(line: str) -> str:
    return line if len(line) <= 60 else f"{line[:59]}…"


def _null_to_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in record.items()}


def _remove_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [f"{line}\n" for line, record in read_records(path) if record["step"] <= step]
    write_whole(path, "".join(kept))  # a crash leaves either the old file or the new one
