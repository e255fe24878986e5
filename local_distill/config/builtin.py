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


class Source(NamedTuple):
    """A source of prompts is where its record is; a data set has a hub id besides, which is another name of it."""

    record: str
    hub_id: str = ""


OTHER_SET, PROMPTS_FILE, NO_SOURCE = "--dataset", "--prompts_file", ""
BUILTIN_SOURCES = {
    "deepmath": Source("local_distill.prompts.data_sets:DEEPMATH", "zwhe99/DeepMath-103K"),
    "tulu3": Source("local_distill.prompts.data_sets:TULU3", "allenai/tulu-3-sft-mixture"),
    OTHER_SET: Source("local_distill.prompts.data_sets:OTHER"),
    PROMPTS_FILE: Source("local_distill.prompts.prompt_files:WRITTEN"),
    NO_SOURCE: Source("local_distill.prompts.prompt_files:BUILTIN"),
}
"""By what --dataset names; what it does not know by name, a file, and no source at all by their flags."""
NAMED_SOURCES = {name: row for name, row in BUILTIN_SOURCES.items() if name and not name.startswith("--")}


class OrOutside(tuple[str, ...]):
    """Names to choose from leave room for ``package.module:name`` here."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_outside(name))


def is_outside(name: str) -> bool:
    """Tell whether a name has the form ``package.module:name``."""
    return len(name.partition(":")[0]) > 1 and OUTSIDE.fullmatch(name) is not None
