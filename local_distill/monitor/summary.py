"""What a run ends with: the held-out prompts before and after, in numbers and side by side.

summary.md is for people, summary.json for programs, and ``show_summary`` for the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from local_distill.monitor.terminal import open_console
from local_distill.runs.evaluations import Completion, Evaluation
from local_distill.runs.jsonl import to_json
from local_distill.runs.layout import SUMMARY_FILE, SUMMARY_JSON_FILE
from local_distill.runs.whole_files import write_whole
from local_distill.wording import (
    change,
    clean,
    counted,
    duration,
    fenced,
    markdown_table,
    number,
    percent,
    share_with_error,
    shorten,
    with_error,
)

Facts = Mapping[str, str | int | float]

_ABSENT = "–"
_NOTHING_HELD_OUT = "No prompts were held out (--eval_prompts), so there is no before and after to compare."


def write_summary(output_dir: Path, before: Evaluation | None, after: Evaluation | None, facts: Facts) -> Path:
    """Write summary.md and summary.json into ``output_dir``; returns the path of the first.

    before, after: the evaluations before training and at its end; None where nothing was held out.
    facts: what else is worth knowing, in the order to show it. "seconds" (wall-clock) and "tokens" (completion
        tokens trained on) are written for people; the rest is shown as it is.

    Raises RunError when one of them cannot be written.
    """
    record = {
        "before": _in_json(before) if before else None,
        "after": _in_json(after) if after else None,
        "reverse_kl_ratio": _ratio(before.reverse_kl, after.reverse_kl) if before and after else None,
        "facts": dict(facts),
    }
    write_whole(output_dir / SUMMARY_JSON_FILE, to_json(record, indent=2) + "\n")
    markdown = output_dir / SUMMARY_FILE
    write_whole(markdown, _markdown(before, after, facts))
    return markdown


def show_summary(
    before: Evaluation | None, after: Evaluation | None, facts: Facts, console: Console | None = None
) -> None:
    """Print the summary on standard output, long texts cut; without colours where that is no terminal."""
    console = console or open_console()
    console.print(Rule("summary"))
    grid = Table.grid(padding=(0, 2))
    for label, value in _facts(facts):
        grid.add_row(Text(label, style="dim"), Text(value, overflow="fold"))
    console.print(grid)
    if not before and not after:
        console.print(Text(_NOTHING_HELD_OUT))
        return
    table = Table("held-out prompts", box=SIMPLE_HEAD)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for row in _comparison(before, after):
        table.add_row(*row)
    console.print(table)
    for prompt, completions in _by_prompt(before, after):
        console.print(Text(shorten(prompt, characters=300, lines=4), style="bold"))
        console.print(_side_by_side(completions))


def _side_by_side(completions: Mapping[str, Completion]) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True)
    for when, completion in completions.items():
        table.add_column(f"{when}: {_measured(completion)}", ratio=1, overflow="fold", header_style="dim")
    table.add_row(*(Text(shorten(each.text, characters=800, lines=12)) for each in completions.values()))
    return table


def _in_json(evaluation: Evaluation) -> dict[str, object]:
    """Return all but the tokens one by one, which completions.jsonl has: megabytes where they are many."""
    return asdict(replace(evaluation, completions=tuple(replace(c, pieces=()) for c in evaluation.completions)))


def _markdown(before: Evaluation | None, after: Evaluation | None, facts: Facts) -> str:
    blocks = ["# Summary", markdown_table(("run", ""), _facts(facts))]
    heading = ("held-out prompts", "before", "after", "change")
    blocks.append(markdown_table(heading, _comparison(before, after)) if before or after else _NOTHING_HELD_OUT)
    for place, (prompt, completions) in enumerate(_by_prompt(before, after), start=1):
        blocks += [f"## Prompt {place}", fenced(prompt)]
        for when, completion in completions.items():
            blocks += [f"**{when}** ({_measured(completion)})", fenced(completion.text)]
    return "\n\n".join(blocks) + "\n"


def _comparison(before: Evaluation | None, after: Evaluation | None) -> list[tuple[str, ...]]:
    """Return rows of a label, before, after, and the change where that means something."""
    both = (before, after)

    def changed(name: str) -> str:
        earlier, now = (getattr(each, name, math.nan) for each in both)
        return change(earlier, now) if earlier > 0 and math.isfinite(now) else _ABSENT

    def accuracy(each: Evaluation | None) -> str:
        if each is None or math.isnan(each.accuracy):
            return _ABSENT
        return share_with_error(each.accuracy, each.accuracy_standard_error)

    verified = [("accuracy (verified)", accuracy(before), accuracy(after), "")]
    return [
        (
            "reverse KL (nats/token)",
            *(with_error(each.reverse_kl, each.standard_error) if each else _ABSENT for each in both),
            changed("reverse_kl"),
        ),
        *(verified if any(each and not math.isnan(each.accuracy) for each in both) else []),
        ("completion length (tokens)", *(number(each.length) if each else _ABSENT for each in both), changed("length")),
        ("truncated", *(percent(each.truncated) if each else _ABSENT for each in both), ""),
    ]


def _ratio(before: float, after: float) -> float:
    return after / before if before else float("nan")


def _by_prompt(before: Evaluation | None, after: Evaluation | None) -> Iterator[tuple[str, dict[str, Completion]]]:
    """Yield each prompt that evaluations show, with its completions under "before" and "after", if any."""
    for pair in zip_longest(before.completions if before else (), after.completions if after else ()):
        completions = {when: each for when, each in zip(("before", "after"), pair, strict=True) if each}
        yield next(iter(completions.values())).prompt, completions


def _measured(completion: Completion) -> str:
    return f"{counted(completion.tokens, 'token')}, reverse KL {number(completion.reverse_kl)}"


def _facts(facts: Facts) -> list[tuple[str, ...]]:
    return [_fact(name, value) for name, value in facts.items()]


def _fact(name: str, value: str | int | float) -> tuple[str, str]:
    if name == "seconds":
        return "wall-clock", duration(float(value))
    if name == "tokens":
        return "completion tokens", number(float(value))
    return name.replace("_", " "), clean(str(value))
