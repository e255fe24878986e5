"""What numbers a setting may have, written beside the setting itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from local_distill.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LARGEST = 2**31 - 1
"""Of whole numbers, so that their products still fit the machine."""
LOWEST_TEMPERATURE = 1e-3
"""Below it, logits divided by the temperature leave what float32 can hold."""


class Range(NamedTuple):
    """A number is in here where ``holds`` says so and, if it is a whole one, it is at most ``most``."""

    holds: Callable[[float], bool]
    needed: str
    most: int = LARGEST


FROM_1 = Range(lambda v: v >= 1, "at least 1")
FROM_0 = Range(lambda v: v >= 0, "0 or more")
SEED = FROM_0._replace(most=2**63 - 1)
ABOVE_0 = Range(lambda v: v > 0, "above 0")
SHARE = Range(lambda v: 0 < v <= 1, "above 0 and at most 1")
BETWEEN = Range(lambda v: 0 < v < 1, "above 0 and below 1")
FROM_0_TO_1 = Range(lambda v: 0 <= v <= 1, "between 0 and 1")
BELOW_1 = Range(lambda v: 0 <= v < 1, "at least 0 and below 1")
TEMPERATURE = Range(lambda v: v >= LOWEST_TEMPERATURE, f"at least {LOWEST_TEMPERATURE:g}; 0.01 is nearly greedy")


def check_ranges(settings: DataclassInstance) -> None:
    """Raise UserError for the first setting that is not within its range; one that is None has not been given."""
    for field in dataclasses.fields(settings):
        value, within = getattr(settings, field.name), field.metadata["within"]
        if within is not None and value is not None:
            require(field.name, value, *within)


def require(name: str, value: float, holds: Callable[[float], bool], needed: str, most: int = LARGEST) -> None:
    """Raise UserError unless the number given as --``name`` is finite, not above ``most``, and as ``holds`` says."""
    if isinstance(value, float):
        given, fits = f"{value:g}", math.isfinite(value)
        needed = needed if fits else f"a finite number, {needed}"
    else:
        given, fits = str(value), value <= most
        needed = needed if fits else f"at most {most}"
        given = given if len(given) <= 20 else f"a number of {len(given)} digits"
    if not (fits and holds(value)):
        raise UserError(f"--{name}: {given} given, needs to be {needed}")
