"""A run's folder while the run goes on: each look reads only what has come since the last one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from local_distill.errors import UserError, one_line
from local_distill.report.reading import Record, ReportedRun, reported
from local_distill.runs.claim import LOCK, is_claimed
from local_distill.runs.evaluations import Evaluation
from local_distill.runs.jsonl import GrowingRecords
from local_distill.runs.layout import (
    COMPLETIONS_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    SETTINGS_FILE,
    read_settings,
    read_starts,
)
from local_distill.runs.records import evaluation_of, metrics_of

OF_A_RUN = (LOCK, METRICS_FILE, SETTINGS_FILE)

T = TypeVar("T")


class FollowedRun:
    """A run is looked at again and again. It may not have begun, and its folder may not be there yet.

    Raises UserError for a folder in which there is something else.
    """

    def __init__(self, folder: Path, name: str) -> None:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: a file, needs the folder of a run, such as runs/<date-time>")
        if folder.is_dir() and any(folder.iterdir()) and not any((folder / each).exists() for each in OF_A_RUN):
            raise UserError(f"{folder}: no {METRICS_FILE} in it; give the folder of a run, such as runs/<date-time>")
        self.folder = folder
        self._name = name
        self._metrics = _Grown[Record](folder / METRICS_FILE, metrics_of)
        self._evaluations = _Grown[Evaluation](folder / COMPLETIONS_FILE, evaluation_of)
        self._settings = _Whole[Mapping[str, Any]](folder / SETTINGS_FILE, lambda: read_settings(folder))
        self._starts = _Whole[Sequence[Mapping[str, Any]]](folder / ENVIRONMENT_FILE, lambda: read_starts(folder))
        self._seen: tuple[object, ...] = ()
        self._run = reported(folder, name, [], [], settings={}, starts=[])

    def look(self) -> ReportedRun:
        """Return the run as its files tell it now; the same object as before when they tell nothing new."""
        parts = (self._metrics, self._evaluations, self._settings, self._starts)
        problem = "; ".join(filter(None, [each.look() for each in parts]))
        seen = (*(each.version for each in parts), is_claimed(self.folder), problem)
        if seen != self._seen:
            self._seen = seen
            self._run = reported(
                self.folder,
                self._name,
                self._metrics.records,
                self._evaluations.records,
                settings=self._settings.value or {},
                starts=self._starts.value or [],
                goes_on=seen[-2],
                problem=problem,
            )
        return self._run

    @property
    def age(self) -> float | None:
        """Return the seconds since the run wrote its last line; None where it has written none."""
        try:
            return max(0.0, time.time() - (self.folder / METRICS_FILE).stat().st_mtime)
        except OSError:
            return None


class _Grown(Generic[T]):
    """The records of a file that grows, each read once. version: another number whenever there are others."""

    def __init__(self, path: Path, read: Callable[[Path, str, Record], T]) -> None:
        self.records: list[T] = []
        self.version = 0
        self._path, self._read = path, read
        self._file = GrowingRecords(path)
        self._problem = ""

    def look(self) -> str:
        """Read what is new. Returns what could not be read, in words."""
        try:
            anew, lines = self._file.new()
        except OSError as error:
            return f"{self._path}: cannot be read ({error.strerror})"
        if anew:
            self.records, self._problem = [], ""
        self.version += anew or bool(lines)
        for line, record in lines:
            try:
                if not record:
                    raise UserError(f"{self._path}: a line is no JSON record, and is left out")
                self.records.append(self._read(self._path, line, record))
            except UserError as error:
                self._problem = one_line(error, width=None)
        return self._problem


class _Whole(Generic[T]):
    """A small file that is replaced as a whole. version: of the file that was read last."""

    def __init__(self, path: Path, read: Callable[[], T]) -> None:
        self.value: T | None = None
        self.version: tuple[int, int, int] | None = None
        self._path, self._read = path, read
        self._problem = ""

    def look(self) -> str:
        """Read the file if it is another one. Returns what could not be read, in words."""
        version = _version(self._path)
        if version != self.version:
            self.version = version
            try:
                self.value, self._problem = self._read(), ""
            except UserError as error:
                self._problem = one_line(error, width=None)
        return self._problem


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size
