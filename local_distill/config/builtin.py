"""The backends that come with the package, by name, each as ``module:name`` of its record."""

from __future__ import annotations

import importlib
import re
from typing import Any

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


BUILTIN_TEACHERS = {
    "local": "local_distill.teachers.local:BACKEND",
    "zero3": "local_distill.teachers.zero3:BACKEND",
    "server": "local_distill.teachers.server:BACKEND",
    "self": "local_distill.teachers.student_base:BACKEND",
}
BUILTIN_GIVES = {
    "local": TeacherView.whole_distribution,
    "zero3": TeacherView.top_tokens,
    "server": TeacherView.top_tokens,
    "self": TeacherView.whole_distribution,
}
"""What their records say that they give, for those who only read what a run has left, and need not wait for torch."""
BUILTIN_WORDS = {"self": "itself without its adapter"}
"""What the records say of teachers that have neither a model nor an address of their own, for the same readers."""
BUILTIN_SAMPLERS = {
    "hf": "local_distill.rollouts.hf:BACKEND",
    "continuous": "local_distill.rollouts.continuous:BACKEND",
    "vllm_server": "local_distill.rollouts.vllm_server:BACKEND",
    "vllm": "local_distill.rollouts.vllm_colocated:BACKEND",
}


class OrOutside(tuple[str, ...]):
    """Names to choose from, which leave room for ``package.module:name``."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_outside(name))


def is_outside(name: str) -> bool:
    """Whether a name has the form ``package.module:name``."""
    return len(name.partition(":")[0]) > 1 and OUTSIDE.fullmatch(name) is not None


def imported(path: str) -> Any:
    """Import what ``module:name`` stands for."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
