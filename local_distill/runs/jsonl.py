"""Reading and writing JSON lines that a crash may have cut short; knows nothing of what is in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from local_distill.errors import UserError

T = TypeVar("T")
LARGEST = 1e100
"""A number above it was not measured."""
LARGEST_STEP = 2**53
TAIL = 64
"""Bytes by which a file is known again."""


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON that every parser reads: NaN and infinities become null. One line unless indented."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line of a file with the record it holds; a last line that a crash cut short is left out.

    Raises UserError when the file cannot be read, or when another line is no record with a "step".
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that") from error
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is not None:
            yield line, record
        elif number < len(lines):
            raise UserError(f"{path}:{number}: not a JSON record; repair or remove that line")


class GrowingRecords:
    """The records of a file that somebody writes are read as they come; what was read is not read again.

    A file that was replaced or cut, as a resumed run does it, is read from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._read = 0  # bytes, up to the end of a line
        self._tail = b""  # the last of them, by which the file is known again

    def new(self) -> tuple[bool, list[tuple[str, dict[str, Any]]]]:
        """Return whether the file began anew, and each whole line that came since the last call with its record.

        A line that is still being written waits for its end; one that is no record comes with an empty one. Raises
        OSError when the file cannot be read.
        """
        try:
            state = self.path.stat()
        except FileNotFoundError:
            anew = self._file is not None
            self._start_at(None)
            return anew, []
        if self._file == (state.st_dev, state.st_ino) and state.st_size == self._read:
            return False, []
        with self.path.open("rb") as file:
            file.seek(self._read - len(self._tail))
            anew = self._file != (state.st_dev, state.st_ino) or file.read(len(self._tail)) != self._tail
            if anew:
                self._start_at((state.st_dev, state.st_ino))
                file.seek(0)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        self._tail = (self._tail + whole)[-TAIL:]
        return anew, [(line, _record(line) or {}) for line in whole.decode(errors="replace").split("\n")[:-1]]

    def _start_at(self, file: tuple[int, int] | None) -> None:
        self._file, self._read, self._tail = file, 0, b""


def is_number(value: Any) -> bool:
    """Return whether a value of a record can be summed and drawn."""
    return isinstance(value, (int, float)) and not abs(value) > LARGEST


def as_declared(read: T) -> T:
    """Return a dataclass that was made of a record. Raises TypeError where a field should be a number or text."""
    for field in fields(read):  # type: ignore[arg-type]
        value = getattr(read, field.name)
        if field.type in ("int", "float", "bool") and not (is_number(value) or value != value):
            raise TypeError(f"{field.name} is no number")
        if field.type == "str" and not isinstance(value, str):
            raise TypeError(f"{field.name} is no text")
    return read


def _record(line: str) -> dict[str, Any] | None:
    """Return the record in a line; None where there is none with a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # the second of brackets in brackets
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if type(step) is int and 0 <= step < LARGEST_STEP else None  # true would pass for 1


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
