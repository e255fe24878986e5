"""The backends that come with the package, by name, each as ``module:name`` of its record."""

from __future__ import annotations

import re
from typing import NamedTuple

from local_distill.batch import TeacherView

OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""``package.module:name``; the word before the colon has two letters at least, so that it is no drive of Windows."""

_LOSSES = "local_distill.losses.registry"
BUILTIN_LOSSES = {
    "policy_gradient": f"{_LOSSES}:POLICY_GRADIENT",
    "importance_sampling": f"{_LOSSES}:IMPORTANCE_SAMPLING",
    "ppo": f"{_LOSSES}:CLIPPED",
    "reverse_kl": f"{_LOSSES}:REVERSE_KL",
    "forward_kl": f"{_LOSSES}:FORWARD_KL",
    "jsd": f"{_LOSSES}:JSD",
}


class TeacherRow(NamedTuple):
    """A teacher says here too what its record says, for those who read what a run has left and need not wait for torch.

    gives: the most that it gives. words: of a teacher that has neither a model nor an address of its own.
    """

    record: str
    gives: TeacherView
    words: str = ""


BUILTIN_TEACHERS = {
    "local": TeacherRow("local_distill.teachers.local:BACKEND", TeacherView.whole_distribution),
    "zero3": TeacherRow("local_distill.teachers.zero3:BACKEND", TeacherView.top_tokens),
    "server": TeacherRow("local_distill.teachers.server:BACKEND", TeacherView.top_tokens),
    "self": TeacherRow(
        "local_distill.teachers.student_base:BACKEND", TeacherView.whole_distribution, "itself without its adapter"
    ),
}
BUILTIN_SAMPLERS = {
    "hf": "local_distill.rollouts.hf:BACKEND",
    "continuous": "local_distill.rollouts.continuous:BACKEND",
    "vllm_server": "local_distill.rollouts.vllm_server:BACKEND",
    "vllm": "local_distill.rollouts.vllm_colocated:BACKEND",
}


class SourceRow(NamedTuple):
    """A source of prompts has its record; a data set has a hub id besides, which is another name of it."""

    record: str
    hub_id: str = ""


OTHER_SET, PROMPTS_FILE, NO_SOURCE = "--dataset", "--prompts_file", ""
BUILTIN_SOURCES = {
    "deepmath": SourceRow("local_distill.prompts.data_sets:DEEPMATH", "zwhe99/DeepMath-103K"),
    "tulu3": SourceRow("local_distill.prompts.data_sets:TULU3", "allenai/tulu-3-sft-mixture"),
    OTHER_SET: SourceRow("local_distill.prompts.data_sets:OTHER"),
    PROMPTS_FILE: SourceRow("local_distill.prompts.prompt_files:WRITTEN"),
    NO_SOURCE: SourceRow("local_distill.prompts.prompt_files:BUILTIN"),
}
"""By what --dataset names; what it does not know by name, a file, and no source at all by their flags."""
NAMED_SOURCES = {name: row for name, row in BUILTIN_SOURCES.items() if name and not name.startswith("--")}


def nameless_teacher(kind: object) -> str:
    """Say in words who a teacher is that has neither a model nor an address of its own; empty for the others."""
    return BUILTIN_TEACHERS[kind].words if isinstance(kind, str) and kind in BUILTIN_TEACHERS else ""


class OrOutside(tuple[str, ...]):
    """Names to choose from leave room for ``package.module:name`` here."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_outside(name))


def is_outside(name: str) -> bool:
    """Tell whether a name has the form ``package.module:name``."""
    return len(name.partition(":")[0]) > 1 and OUTSIDE.fullmatch(name) is not None
