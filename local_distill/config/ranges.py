"""What values a setting may have, written beside the setting itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
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


def refuse_empty(settings: DataclassInstance, but: Collection[str]) -> None:
    """Raise UserError for empty text, as from a shell variable that is not set; settings in ``but`` may be that."""
    for name, value in vars(settings).items():
        if value == "" and name not in but:
            raise UserError(f"--{name}: empty text given; give a value, or leave the flag out")


def check_ranges(settings: DataclassInstance) -> None:
    """Raise UserError for the first number that is not finite, or not within its range; None has not been given."""
    for field in dataclasses.fields(settings):
        value, within = getattr(settings, field.name), field.metadata["within"]
        if within is None or value is None:
            continue
        if isinstance(value, float):
            given, fits = f"{value:g}", math.isfinite(value)
            needed = within.needed if fits else f"a finite number, {within.needed}"
        else:
            given, fits = str(value), value <= within.most
            needed = within.needed if fits else f"at most {within.most}"
            given = given if len(given) <= 20 else f"a number of {len(given)} digits"
        if not (fits and within.holds(value)):
            raise UserError(f"--{field.name}: {given} given, needs to be {needed}")
