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
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the second of brackets in brackets
            record = None
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is int and 0 <= step < LARGEST_STEP:  # true would pass for 1
            yield line, record
        elif number < len(lines):
            raise UserError(f"{path}:{number}: not a JSON record; repair or remove that line")


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


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
