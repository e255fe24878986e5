"""Reading and writing JSON lines that a crash may have cut short; knows nothing of what is in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from local_distill.errors import UserError


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: NaN and infinities, which JSON lacks, become null. One line unless indented."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a file with the record it holds; a last line that a crash cut short is left out.

    Raises UserError when another line is no record with a "step", OSError when there is no such file.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and "step" in record:
            yield line, record
        elif number < len(lines):
            raise UserError(f"{path}:{number}: not a JSON record; repair or remove that line")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
