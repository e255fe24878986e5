"""Where the time of a step goes: a torch profiler trace of a few steps, and one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch.profiler import profile

from local_distill.monitor.measuring import PHASE
from local_distill.process.distributed import runs_on_cuda
from local_distill.runs.whole_files import writing

TRACE_FILE = "trace.json.gz"
TABLE_FILE = "profile.md"
OPERATORS = 12
"""Operators that the table names; the rest is one line."""


class Profiler:
    """A profiler watches the steps; this one does nothing, for a run that nobody watches."""

    def start_step(self) -> None:
        """Note that a step begins."""

    def end_step(self) -> None:
        """Note that a step is over."""


class StepProfiler(Profiler):
    """This profiler records ``steps`` whole steps after the first, which warms up, then writes ``folder`` and is done.

    folder: gets trace.json.gz, for chrome://tracing or ui.perfetto.dev, and profile.md. say: told when it is written.
    """

    def __init__(self, steps: int, folder: Path, say: Callable[[str], None]) -> None:
        self._steps = steps
        self._folder = folder
        self._say = say
        self._started = 0
        self._profile = profile()  # of all that the machine has

    def start_step(self) -> None:
        """See Profiler."""
        self._started += 1
        if self._started == 2:
            self._profile.start()

    def end_step(self) -> None:
        """See Profiler."""
        if self._started == self._steps + 1:
            self._profile.stop()
            self._write()

    def _write(self) -> None:
        table = self._table()
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            self._profile.export_chrome_trace(str(self._folder / TRACE_FILE))
            (self._folder / TABLE_FILE).write_text(table, encoding="utf-8")
        self._say(f"profile of {self._steps} steps, trace in {self._folder / TRACE_FILE}")
        self._say(table)

    def _table(self) -> str:
        """Return seconds a step of each phase, and of the operators that take most, by their own time."""
        on_gpu = runs_on_cuda()
        averages = self._profile.key_averages()
        phases = [(e.key.removeprefix(PHASE), e.cpu_time_total) for e in averages if e.key.startswith(PHASE)]
        own = [
            (e.key, e.self_device_time_total if on_gpu else e.self_cpu_time_total, e.count)
            for e in averages
            if not e.key.startswith(PHASE)
        ]
        own.sort(key=lambda each: -each[1])
        total = sum(time for _, time, _ in own) or 1.0
        rest = own[OPERATORS:]
        named = [*own[:OPERATORS], (f"{len(rest)} others", sum(t for _, t, _ in rest), sum(n for _, _, n in rest))]
        device = "GPU" if on_gpu else "CPU"
        micro = 1e6 * self._steps
        return "\n".join(
            [
                "| phase | seconds a step |",
                "| --- | --- |",
                *(f"| {name} | {time / micro:.3f} |" for name, time in phases),
                "",
                f"| operator | {device} seconds a step | share | calls a step |",
                "| --- | --- | --- | --- |",
                *(f"| {key} | {t / micro:.3f} | {t / total:.0%} | {n / self._steps:.0f} |" for key, t, n in named),
                "",
            ]
        )
