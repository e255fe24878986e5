"""The memory of each phase of a run, part by part, for one process."""

from __future__ import annotations

from dataclasses import dataclass

LOADING, SAMPLING, SCORING, TRAINING = "loading", "sampling", "scoring", "training"


@dataclass(frozen=True)
class Part:
    """Some bytes with a name. estimated: not counted from shapes, and no reason to refuse a run."""

    name: str
    bytes: float
    estimated: bool = False


@dataclass(frozen=True)
class Phase:
    """What one process holds in one phase, at its fullest."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> float:
        """All parts together."""
        return sum(part.bytes for part in self.parts)

    @property
    def certain_bytes(self) -> float:
        """All parts that are not estimated."""
        return sum(part.bytes for part in self.parts if not part.estimated)

    def of(self, name: str) -> float:
        """Bytes of the parts of this name."""
        return sum(part.bytes for part in self.parts if part.name == name)
