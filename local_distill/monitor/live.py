"""A run at a terminal: what happened scrolls by, one line a step; below it stands how far the run is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from local_distill.monitor.course import Course
from local_distill.monitor.plain import write_past_streams
from local_distill.monitor.region import Region, style_of
from local_distill.monitor.silent import Fact, Terminal
from local_distill.runs.evaluations import Completion, Evaluation
from local_distill.wording import clean, number, percent

REFRESHES = 4
"""Times a second that the region is drawn."""
GAP = "  "
NARROW, WIDE = 70, 90
"""Below the first a line of an evaluation has shorter words; from the second on it says what a change is of."""
CAUTION = "yellow"


class LiveTerminal(Terminal):
    """One line a step stays on the screen; a region at the bottom is drawn anew by a thread of its own."""

    def __init__(self, console: Console, total_steps: int, first_step: int) -> None:
        self._console = console
        self._total_steps = total_steps
        self._course = Course()
        self._told = False
        self._region = Region(self._course, total_steps, first_step)
        self._live = Live(
            get_renderable=lambda: self._region, console=console, refresh_per_second=REFRESHES, auto_refresh=True
        )

    def __enter__(self) -> Terminal:
        self._live.start(refresh=True)
        return self

    def facts(self, facts: Sequence[Fact]) -> None:
        """Print them as a table of two columns."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in facts:
            grid.add_row(label, Text(clean(text)))
        self._console.print(grid)

    def say(self, text: str) -> None:
        """Print the message above the region."""
        self._console.print(Text(clean(text)))

    def warn(self, text: str) -> None:
        """Print it so that it is not overlooked."""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text("warning", style=f"bold {CAUTION}"), Text(clean(text), style=CAUTION))
        self._console.print(grid)

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show it in the region, from its next frame on."""
        self._region.doing(what, done, total)

    def notice(self, text: str) -> None:
        """Show it in the region, from its next frame on: another thread draws that, whatever this one is in."""
        if self._live.is_started:
            self._region.notice = text
        else:
            write_past_streams(text)

    def earlier(self, metrics: Sequence[Mapping[str, float]], evaluations: Sequence[Evaluation]) -> None:
        """Take it in; the region shows it as well."""
        self._course.earlier(metrics, evaluations)
        self._region.measured()
        for first in evaluations[:1]:
            for completion in first.completions[:1]:
                self._region.completion(first.step, completion)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print one line, with as much of it as the terminal is wide."""
        self._course.step(step, metrics)
        self._region.step(step, metrics)
        width = len(str(self._total_steps))
        first = Text.assemble(("step ", "dim"), f"{step:{width}}/{self._total_steps}")
        self._print_fitting([first, *self._fields(metrics)])

    def evaluation(self, evaluation: Evaluation) -> None:
        """Print one line."""
        self._course.evaluation(evaluation)
        self._region.measured()
        since = " since step 0" if self._console.width >= WIDE else ""
        shown = [
            Text.assemble((f"{label} ", "dim"), value) if label else Text(value, style=style_of(value))
            for label, value in self._course.of_evaluation(evaluation, since)
        ]
        if self._console.width < NARROW:  # the values themselves are worth more
            shown[0] = Text(shown[0].plain.replace(" reverse KL", "", 1))
        shown[0].stylize("cyan")
        width = len(str(self._total_steps))
        step = f"step {evaluation.step:{width}}".ljust(len("step /") + 2 * width)  # below those of the steps
        self._print_fitting([Text(step, style="cyan"), *shown])

    def completion(self, completion: Completion) -> None:
        """Show it in the region, beside what the same prompt was answered before training."""
        self._region.completion(max(self._course.held_out, default=0), completion)

    def close(self) -> None:
        """Leave the last state of the region on the screen, without what was going on."""
        self._region.end()
        self._live.stop()

    def _print_fitting(self, fields: Sequence[Text]) -> None:
        if not self._told:
            self._console.print()  # between what is about to happen and what happens
        self._told = True
        line = Text(GAP).join(fields[:2])
        for field in fields[2:]:
            if line.cell_len + len(GAP) + field.cell_len > self._console.width:
                break
            line.append(GAP).append_text(field)
        self._console.print(line)

    def _fields(self, metrics: Mapping[str, float]) -> Iterable[Text]:
        """Yield what is told of a step, the most important first, in columns."""
        for name, label, unit, write, width in _COLUMNS:
            if name in metrics:
                value = write(metrics[name]).rjust(width)
                yield Text.assemble((f"{label} " if label else "", "dim"), value, (unit, "dim"))
            if name == "reverse_kl":
                changed = self._course.change_in_training()
                yield Text(changed.rjust(6), style=style_of(changed))
            if name == "reverse_kl" and metrics.get("skipped"):
                yield Text("update skipped", style=f"bold {CAUTION}")


_COLUMNS: tuple[tuple[str, str, str, Callable[[float], str], int], ...] = (
    ("reverse_kl", "reverse KL", "", number, 6),
    ("completion_tokens", "length", "", number, 5),
    ("tokens_per_second", "", " tok/s", number, 5),
    ("seconds/step", "", " s", number, 5),
    ("truncated", "truncated", "", percent, 5),
    ("learning_rate", "lr", "", lambda value: f"{value:.2e}", 8),
    ("loss", "loss", "", number, 6),
    ("peak_memory_gib", "peak", " GiB", lambda value: f"{value:.1f}", 4),
)
"""A metric, what people call it, its unit, how it is written, and in how many characters."""
