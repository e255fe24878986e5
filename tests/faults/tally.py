"""What came of the faults, counted."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

COLUMNS = ("faults", "went on", "one line", "tracebacks", "otherwise", "steps lost", "mismatches")
"""went on: the run ended well, or a later resume did. one line: it was refused or ended in one line, exit code 2.
otherwise: in any other way, which is a fault of the program's. steps lost: of those that had been saved. mismatches:
runs whose weights, moments, completions or numbers are not, bit for bit, those of the run that nothing happened to."""
MUST_BE_ZERO = ("tracebacks", "otherwise", "steps lost", "mismatches")


@dataclass
class Tally:
    """rows: counts by what happened. notes: on each fault that did not end as it should."""

    rows: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: dict.fromkeys(COLUMNS, 0)))
    notes: list[str] = field(default_factory=list)

    def add(self, row: str, note: str = "", **counts: int) -> None:
        """counts: by COLUMNS, with _ for blanks."""
        for name, number in counts.items():
            self.rows[row][name.replace("_", " ")] += number
        if any(counts.get(name.replace(" ", "_")) for name in MUST_BE_ZERO):
            self.notes.append(f"{row}: {note}")

    def table(self) -> str:
        """In Markdown."""
        lines = ["| fault | " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
        lines += [f"| {row} | {' | '.join(str(each[name]) for name in COLUMNS)} |" for row, each in self.rows.items()]
        return "\n".join(lines)

    @property
    def failed(self) -> bool:
        """Whether anything happened that must not."""
        return any(each[name] for each in self.rows.values() for name in MUST_BE_ZERO)
