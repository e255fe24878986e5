"""Chat templates with a clock in them, which would give other prompts tomorrow: here it stands still."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache

from local_distill.errors import UserError

CLOCK = "strftime_now"
"""The function by which transformers gives templates the time."""
DIRECTIVES = "aAbBcdDeFgGhHIjmMnpRSTuUVwWxXyYzZ"


def read_date(text: str | None) -> datetime | None:
    """The value of --template_date; None for None. Raises UserError for another form of date."""
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--template_date: {text} given, needs to be a date such as 2026-01-31") from None


def with_fixed_clock(template: str, date: datetime) -> str:
    """The template, to which it is always ``date``: in front of it stands a macro in the place of the clock.

    transformers takes values for a template, but no functions.
    """
    return _macro(date) + template


@lru_cache(maxsize=4)
def _macro(date: datetime) -> str:
    values = {f"%{letter}": date.strftime(f"%{letter}") for letter in DIRECTIVES}
    values |= {f"%-{letter}": values[f"%{letter}"].lstrip("0") or "0" for letter in DIRECTIVES}  # without leading zeros
    replaced = "".join(f" | replace({json.dumps(key)}, {json.dumps(value)})" for key, value in values.items())
    # The line break belongs to the block before it, so that the template still begins a line.
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"
