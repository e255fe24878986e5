"""Engines under test: the settings of how they sample in one flat dictionary with the others."""

from __future__ import annotations

from typing import Any

from local_distill.head.sampling import SamplingParams


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an engine: ``params`` out of its fields, which stand among the others in ``settings``."""
    rest = dict(settings)
    fields = {name: rest.pop(name) for name in ("choose", "group_size", "max_new_tokens", "seed")}
    return {"params": SamplingParams(stop_ids=frozenset(rest.pop("stop_ids")), **fields), **rest}
