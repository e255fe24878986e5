"""What ``--dataset`` may name as package.module:name: a record of a source of prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from local_distill.config.registry import Registry
from local_distill.prompts.raw import RawPrompts


@dataclass(frozen=True)
class PromptRecord:
    """A source of prompts.

    open: gives its prompts; raises UserError where it cannot. split: of --dataset_split.
    """

    open: Callable[[str], RawPrompts]


SOURCES: Registry[PromptRecord] = Registry("--dataset", "local_distill.prompts.registry:PromptRecord", {})
