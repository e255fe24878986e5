"""What an examination finds: one line each, with what to do where something is not right."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, BAD = "ok", "warn", "bad"
"""Right; worth knowing; what makes training impossible."""


@dataclass(frozen=True)
class Finding:
    """A finding is about one thing. mark: OK, WARN or BAD. remedy: what to do; empty where there is nothing to do."""

    about: str
    mark: str
    words: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.words}; {self.remedy}" if self.remedy else self.words
