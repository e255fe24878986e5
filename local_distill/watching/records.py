"""The JSONL files of a run: what every step measured, and what every evaluation said.

    metrics.jsonl       {"step": 7, "reverse_kl": 1.2, …} after each step, {"step": 10, "eval/reverse_kl": …}
    completions.jsonl   {"step": 10, "reverse_kl": …, "completions": [{"prompt": …, "text": …, "pieces": […]}, …]}

A piece is one token: {"text": " sky", "student": -0.4, "teacher": -1.9, "reverse_kl": 1.2, "top": [[" sky", -1.9], …]};
see types.Piece. Files of older runs have none.

``step`` is the number of finished updates: 1 after the first, 0 for the evaluation before training.
Knows nothing of terminals or experiment trackers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from local_distill.errors import UserError
from local_distill.types import Completion, Evaluation, Piece
from local_distill.watching.jsonl import read_records, to_json
from local_distill.watching.run_files import COMPLETIONS_FILE, METRICS_FILE


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The numbers of an evaluation under the names that every file and tracker gives them."""
    metrics = {
        "eval/reverse_kl": evaluation.reverse_kl,
        "eval/reverse_kl_se": evaluation.standard_error,
        "eval/completion_tokens": evaluation.length,
        "eval/truncated": evaluation.truncated,
    }
    if math.isnan(evaluation.accuracy):
        return metrics
    return metrics | {
        "eval/accuracy": evaluation.accuracy,
        "eval/accuracy_se": evaluation.accuracy_standard_error,
    }


class JsonlWriter:
    """Appends records, each with a "step", to a JSONL file; a record is on its way to disk when ``write`` returns.

    keep_through: None for a new run. For a run resumed after step N, N: later records, and a last line that a
        crash cut short, are removed first, so that the file becomes the one that an unbroken run writes.

    Raises UserError when a new run finds records of another run, or when a resumed one finds a line
    that is no record.
    """

    def __init__(self, path: Path, keep_through: int | None = None) -> None:
        if keep_through is not None:
            _remove_after(path, keep_through)
        elif path.exists() and path.stat().st_size:
            raise UserError(f"{path}: holds the records of another run; add --resume, or name another --output_dir")
        # A token can decode to half of a surrogate pair, which UTF-8 has no bytes for; as a backslash
        # escape it is still JSON.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it."""
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; nothing is written after that."""
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class RunFiles:
    """metrics.jsonl and completions.jsonl of the run in ``output_dir``; ``keep_through`` as in JsonlWriter."""

    def __init__(self, output_dir: Path, keep_through: int | None) -> None:
        self._metrics = JsonlWriter(output_dir / METRICS_FILE, keep_through)
        self._completions = JsonlWriter(output_dir / COMPLETIONS_FILE, keep_through)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line of metrics, after update ``step``."""
        self._metrics.write({"step": step, **metrics})

    def evaluation(self, evaluation: Evaluation) -> None:
        """A line of metrics, and the completions in the other file."""
        self._metrics.write({"step": evaluation.step, **evaluation_metrics(evaluation)})
        self._completions.write(asdict(evaluation))

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._completions.close()


def read_evaluations(path: Path) -> list[Evaluation]:
    """The evaluations of a completions.jsonl, oldest first; null reads as NaN.

    Raises UserError when a line other than the last is no record, OSError when there is no such file.
    """
    return [_evaluation(record) for _, record in read_records(path)]


def training_totals(path: Path) -> tuple[int, float]:
    """Completion tokens trained on and seconds spent in the steps, over a whole metrics.jsonl."""
    steps = [record for _, record in read_records(path) if "seconds/step" in record]
    return int(sum(step["tokens"] for step in steps)), float(sum(step["seconds/step"] for step in steps))


def _evaluation(record: dict[str, Any]) -> Evaluation:
    completions = tuple(_completion(each) for each in record["completions"])
    return Evaluation(**{**_null_to_nan(record), "completions": completions})


def _completion(record: dict[str, Any]) -> Completion:
    pieces = tuple(_piece(each) for each in record.get("pieces", ()))
    return Completion(**{**_null_to_nan(record), "pieces": pieces})


def _piece(record: dict[str, Any]) -> Piece:
    top = tuple((text, math.nan if logprob is None else logprob) for text, logprob in record["top"])
    return Piece(**{**_null_to_nan(record), "top": top})


def _null_to_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in record.items()}


def _remove_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [f"{line}\n" for line, record in read_records(path) if record["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)  # a crash leaves either the old file or the new one
