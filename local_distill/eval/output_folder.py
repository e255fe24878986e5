"""The folder of an evaluation: what was asked for, and what came of it so far.

settings.json      what the answers depend on; another call with the same goes on, one with others is refused
answers.jsonl      one answer a line, as they come
reverse_kl.jsonl   one completion a line: the sum of its tokens' reverse KL, nats, and how many they are
results.json       the numbers, once all answers are there
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from local_distill.errors import UserError
from local_distill.runs.claim import LOCK, claimed
from local_distill.runs.folder import make_dated_folder
from local_distill.runs.jsonl import as_declared, to_json
from local_distill.runs.whole_files import write_whole, writing

SETTINGS_FILE, ANSWERS_FILE, REVERSE_KL_FILE, RESULTS_FILE = (
    "settings.json", "answers.jsonl", "reverse_kl.jsonl", "results.json",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """An answer is a line of answers.jsonl.

    question: its place in the task. origin: where it was read. prompt: the question as it was asked, before the chat
    template. extracted: what was taken for the answer.
    """

    model: str
    task: str
    question: int
    sample: int
    origin: str
    prompt: str
    completion: str
    extracted: str
    reference: str
    correct: bool
    tokens: int
    finish: Literal["stop", "length"]
    engine: str


@dataclass(frozen=True)
class ScoredCompletion:
    """A scored completion is a line of reverse_kl.jsonl. reverse_kl: nats, summed over its tokens."""

    model: str
    task: str
    question: int
    origin: str
    reverse_kl: float
    tokens: int
    finish: Literal["stop", "length"]
    engine: str

    @property
    def sample(self) -> int:
        """Return which of its prompt's completions it is: there is one."""
        return 0


R = TypeVar("R", Answer, ScoredCompletion)


class Journal(Generic[R]):
    """A JSONL file has records of one kind, each on its way to disk when ``add`` returns.

    found: those that are there, by model, task, question and sample. A last line that a crash cut short is removed.
    Raises UserError for any other line that is no record.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self._path = path
        self.found: dict[tuple[str, str, int, int], R] = {}
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); mend that, or give another folder") from error
        whole, _, cut = text.rpartition("\n")
        for number, line in enumerate(whole.split("\n") if whole else (), start=1):
            try:
                record: dict[str, Any] = {
                    name: math.nan if value is None else value for name, value in json.loads(line).items()
                }
                self._keep(as_declared(kind(**record)))
            except (ValueError, TypeError, AttributeError, RecursionError):
                raise UserError(f"{path}:{number}: not a line of this file; repair or remove it") from None
        if cut:
            write_whole(path, f"{whole}\n" if whole else "")

    def add(self, records: Sequence[R]) -> None:
        """Append the records. Raises RunError where they cannot be written."""
        # Half of a surrogate pair, which a token can decode to, is still JSON as a backslash escape.
        lines = "".join(to_json(asdict(record)) + "\n" for record in records)
        with writing(self._path), self._path.open("ab") as file:
            file.write(lines.encode(errors="backslashreplace"))
        for record in records:
            self._keep(record)

    def missing(self, model: str, task: str, questions: int, samples: int = 1) -> list[int]:
        """Return the places of those questions of which not all samples are there."""
        there = [all((model, task, q, m) in self.found for m in range(samples)) for q in range(questions)]
        return [question for question, all_there in enumerate(there) if not all_there]

    def _keep(self, record: R) -> None:
        self.found[record.model, record.task, record.question, record.sample] = record


@dataclass(frozen=True)
class OutputFolder:
    """A folder is open, and known to hold answers to the same questions or none."""

    path: Path
    answers: Journal[Answer]
    scored: Journal[ScoredCompletion]

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        write_whole(self.path / RESULTS_FILE, to_json(results, indent=2) + "\n")


def date_kept(output: str | None) -> str | None:
    """Return the --template_date of the answers in a folder that is to be gone on with; None where there is none."""
    file = Path(output).expanduser() / SETTINGS_FILE if output else None
    try:
        kept = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    except ValueError:  # which is told where the folder is opened
        return None
    date = kept.get("template_date") if isinstance(kept, dict) else None
    return str(date) if date else None


def open_output(given: str | None, fixed: Mapping[str, Any], holding: ExitStack) -> OutputFolder:
    """Open the folder, which is made where there is none.

    fixed: what the answers depend on. holding: keeps the folder from other evaluations until it is closed.
    Raises UserError when the folder was made with something else, or another evaluation is in it.
    """
    folder = Path(given).expanduser() if given else Path("evals")
    try:
        if given:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = make_dated_folder(folder)
        holding.enter_context(claimed(folder / LOCK, f"--output {folder}"))
        _check_same(folder, json.loads(to_json(dict(fixed))))
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be used ({error.strerror}); give another folder") from None
    answers = Journal(folder / ANSWERS_FILE, Answer)
    return OutputFolder(folder, answers, Journal(folder / REVERSE_KL_FILE, ScoredCompletion))


def _check_same(folder: Path, fixed: dict[str, Any]) -> None:
    file = folder / SETTINGS_FILE
    if not file.exists():
        if any((folder / name).exists() for name in (ANSWERS_FILE, REVERSE_KL_FILE)):
            raise UserError(f"--output {folder}: has answers but no {SETTINGS_FILE}; give another folder")
        write_whole(file, to_json(fixed, indent=2) + "\n")
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"--output {folder}: its {SETTINGS_FILE} is damaged; give another folder") from None
    for name, value in fixed.items():
        if before.get(name) != value:
            raise UserError(
                f"--output {folder}: has answers with {name} {_shown(before.get(name))}, now {_shown(value)}; give the "
                "same settings, or another folder"
            )


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
