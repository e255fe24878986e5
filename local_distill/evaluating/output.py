"""The folder of an evaluation: what was asked for, and what came of it so far.

settings.json      what the answers depend on; another call with the same goes on, one with others is refused
answers.jsonl      one answer a line, as they come
reverse_kl.jsonl   one completion a line: the sum of its tokens' reverse KL, nats, and how many they are
results.json       the numbers, once all answers are there
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from local_distill.errors import UserError
from local_distill.running.claim import LOCK, claimed
from local_distill.running.dated_folder import make_dated_folder
from local_distill.watching.jsonl import to_json

SETTINGS_FILE, ANSWERS_FILE, REVERSE_KL_FILE, RESULTS_FILE = (
    "settings.json", "answers.jsonl", "reverse_kl.jsonl", "results.json",
)  # fmt: skip
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """One line of answers.jsonl. question: its place in the task. origin: where it was read. prompt: the question as
    it was asked, before the chat template. extracted: what was taken for the answer."""

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
    finish: Finish
    engine: str

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What it answers."""
        return self.model, self.task, self.question, self.sample


@dataclass(frozen=True)
class Divergence:
    """One line of reverse_kl.jsonl. reverse_kl: nats, summed over its tokens."""

    model: str
    task: str
    question: int
    origin: str
    reverse_kl: float
    tokens: int
    finish: Finish
    engine: str

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What it was drawn for."""
        return self.model, self.task, self.question, 0


class _Record(Protocol):
    @property
    def key(self) -> tuple[str, str, int, int]: ...


R = TypeVar("R", bound=_Record)


class Journal(Generic[R]):
    """Records of one kind in a JSONL file, each on its way to disk when ``add`` returns.

    found: those that are there, by their keys. A last line that a crash cut short is removed.
    Raises UserError for any other line that is no record.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self._path = path
        self.found: dict[tuple[str, str, int, int], R] = {}
        names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        whole, _, cut = text.rpartition("\n")
        for number, line in enumerate(whole.split("\n") if whole else (), start=1):
            try:
                record = json.loads(line)
                if set(record) != names:
                    raise ValueError
            except (ValueError, TypeError):
                raise UserError(f"{path}:{number}: not a line of this file; repair or remove it") from None
            self._keep(kind(**record))
        if cut:
            path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")

    def add(self, records: Sequence[R]) -> None:
        """Append them."""
        # Half of a surrogate pair, which a token can decode to, is still JSON as a backslash escape.
        with self._path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            for record in records:
                file.write(to_json(asdict(record)) + "\n")  # type: ignore[call-overload]
                self._keep(record)

    def _keep(self, record: R) -> None:
        self.found[record.key] = record


@dataclass(frozen=True)
class OutputFolder:
    """Opened, and known to hold answers to the same questions or none."""

    path: Path
    answers: Journal[Answer]
    divergences: Journal[Divergence]

    def write_results(self, results: Mapping[str, Any]) -> None:
        """results.json."""
        text = to_json(results, indent=2) + "\n"
        (self.path / RESULTS_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


def open_output(given: str | None, fixed: Mapping[str, Any], holding: ExitStack) -> OutputFolder:
    """The folder, made where there is none.

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
    return OutputFolder(folder, answers, Journal(folder / REVERSE_KL_FILE, Divergence))


def _check_same(folder: Path, fixed: dict[str, Any]) -> None:
    file = folder / SETTINGS_FILE
    if not file.exists():
        if any((folder / name).exists() for name in (ANSWERS_FILE, REVERSE_KL_FILE)):
            raise UserError(f"--output {folder}: has answers but no {SETTINGS_FILE}; give another folder")
        temporary = file.with_suffix(".tmp")
        temporary.write_text(to_json(fixed, indent=2) + "\n", encoding="utf-8", errors="backslashreplace")
        temporary.replace(file)
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
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
