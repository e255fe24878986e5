"""The one door to every source of prompts, each of which says in its record what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from local_distill.config.lookup import SOURCES
from local_distill.config.train_fields import TrainFields
from local_distill.prompts.raw import RawPrompts


@dataclass(frozen=True)
class PromptRecord:
    """A source of prompts states what it is.

    open: gives its prompts; raises UserError where it cannot. check: raises UserError for settings that it cannot do
    with. words: where the prompts came from, for people; None where that is what --dataset names.
    """

    open: Callable[[TrainFields], RawPrompts]
    check: Callable[[TrainFields], None] | None = None
    words: Callable[[TrainFields], str] | None = None


def open_prompts(settings: TrainFields) -> RawPrompts:
    """Return the prompts of the source that the settings name; the built-in ones only where they name none.

    Raises UserError when it cannot be read: it is never replaced by another.
    """
    return _record(settings.prompts_kind).open(settings)


def prompts_are_here(settings: TrainFields) -> bool:
    """Tell whether the prompts are read from this machine, and not downloaded."""
    place = settings.dataset_path or settings.dataset
    return place is None or Path(place).expanduser().exists()


def source_in_words(settings: TrainFields) -> str:
    """Tell where the prompts of a run came from; a source from outside need not be on this machine."""
    kind = settings.prompts_kind
    words = _record(kind).words if kind in SOURCES.names else None
    return words(settings) if words else str(settings.dataset)


def _record(kind: str) -> PromptRecord:
    found = SOURCES.get(kind)
    assert isinstance(found, PromptRecord)
    return found
