"""Backends by name: the built-in ones, and any other as ``package.module:name``, imported when they are asked for.

Settings are checked by the records of what they name. The table holds names of modules alone, so that nothing is
imported upwards, and ``--help`` needs no torch.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Generic, Protocol, TypeVar

from local_distill.batch import TeacherView
from local_distill.config.builtin import (
    BUILTIN_LOSSES,
    BUILTIN_SAMPLERS,
    BUILTIN_SOURCES,
    BUILTIN_TEACHERS,
    is_outside,
)
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError, one_line


class Rules(Protocol):
    """What the settings ask of a sampler, and of every other record; the whole ones are beside what they open."""

    @property
    def check(self) -> Callable[[TrainFields], None] | None:
        """Return what raises UserError for settings that it cannot do with; None where it takes them all."""
        ...


class LossRules(Rules, Protocol):
    """What the settings ask of a loss; the whole record is ``losses.registry.LossRecord``."""

    def needs(self, settings: TrainFields) -> TeacherView:
        """Return how much of the teacher's distribution it needs with these settings."""
        ...

    def note(self, settings: TrainFields) -> str:
        """Return a word for people about these settings, or nothing."""
        ...


class TeacherRules(Rules, Protocol):
    """What the settings ask of a teacher; the whole record is ``backends.TeacherBackend``."""

    @property
    def where(self) -> str:
        """Say where it is, for a message on what it cannot give: ``behind --teacher_url``."""
        ...

    def samples(self, settings: TrainFields) -> bool:
        """Return whether completions can be sampled with it here."""
        ...


Record = TypeVar("Record")


@dataclass(frozen=True)
class Registry(Generic[Record]):
    """Records of one kind are found by their names here.

    flag: the one that names them. kind: ``module:class`` of the records. names: the built-in ones → ``module:name``.
    """

    flag: str
    kind: str
    names: Mapping[str, str]

    def get(self, name: str) -> Record:
        """Return the record that ``name`` stands for. Raises UserError where there is none."""
        if name in self.names:
            found: Record = resolve_name(self.names[name])
            return found
        where = f"{self.flag} {name}"
        if not is_outside(name):
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{where}: unknown; needs one of {', '.join(self.names)}, or package.module:name{hint}")
        module, _, attribute = name.partition(":")
        try:
            home = importlib.import_module(module)
        # Whatever the module's own code raises, it cannot be used.
        except Exception as error:
            raise UserError(
                f"{where}: {module} cannot be imported ({one_line(error)}); mend it, or add its folder to PYTHONPATH"
            ) from error
        if not hasattr(home, attribute):
            raise UserError(f"{where}: {module} has no {attribute}; look at its spelling")
        found = getattr(home, attribute)
        kind: type = resolve_name(self.kind)
        if not isinstance(found, kind):
            what = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
            raise UserError(f"{where}: {what}, needs to be a {kind.__name__} (docs/extending.md)")
        return found


LOSSES: Registry[LossRules] = Registry("--loss", "local_distill.losses.registry:LossRecord", BUILTIN_LOSSES)
TEACHERS: Registry[TeacherRules] = Registry(
    "--teacher_backend",
    "local_distill.backends:TeacherBackend",
    {name: row.record for name, row in BUILTIN_TEACHERS.items()},
)
SAMPLERS: Registry[Rules] = Registry("--rollouts", "local_distill.backends:SamplerBackend", BUILTIN_SAMPLERS)
SOURCES: Registry[Rules] = Registry(
    "--dataset",
    "local_distill.prompts.opening:PromptRecord",
    {name: row.record for name, row in BUILTIN_SOURCES.items()},
)
