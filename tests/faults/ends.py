"""Runs that are killed, stopped, or robbed of their folder; two at a time in one."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.processes import Command
from tests.faults.site import STEPS, Site, newest

KILLED_RUNS, KILLS_EACH, STOPS, REMOVALS, PAIRS = 24, 3, 24, 6, 6


def at_any_time(site: Site, run: Path) -> Callable[[], bool]:
    """A moment anywhere in the length of a run, loading included."""
    del run
    ends = time.monotonic() + site.rng.uniform(0.0, site.seconds)
    return lambda: time.monotonic() >= ends


def while_saving(site: Site, run: Path) -> Callable[[], bool]:
    """Some time after half a checkpoint is there."""
    later, seen = site.rng.uniform(0.0, 0.03), [0.0]

    def now() -> bool:
        if not seen[0] and run.exists() and any(run.glob(".partial-step-*/model.safetensors")):
            seen[0] = time.monotonic()
        return bool(seen[0]) and time.monotonic() >= seen[0] + later

    return now


def while_recording(site: Site, run: Path) -> Callable[[], bool]:
    """Just after a line of metrics, or of completions, has begun."""
    file, lines = run / site.rng.choice(["metrics.jsonl", "completions.jsonl"]), site.rng.randint(1, 3)

    def size() -> int:
        return file.stat().st_size if file.exists() else 0

    seen = [size(), lines]

    def now() -> bool:
        if (found := size()) != seen[0]:
            seen[0], seen[1] = found, seen[1] - 1
        return seen[1] <= 0

    return now


MOMENTS = {"at any time": at_any_time, "while saving": while_saving, "while recording": while_recording}


def _at(moment: Callable[[], bool], command: Command) -> bool:
    """Wait for the moment; False where the command ended before it came."""
    while command.running():
        if moment():
            return True
        time.sleep(0.0005)
    return False


def kills(site: Site) -> None:
    """SIGKILL, several times to the same run, in all phases; then it is gone on with."""
    for number in range(KILLED_RUNS):
        run = site.new()
        kind = list(MOMENTS)[number % len(MOMENTS)]
        row = f"SIGKILL {kind}"
        for _ in range(KILLS_EACH):
            resumes = any(run.glob("step-*"))
            if not resumes:
                shutil.rmtree(run, ignore_errors=True)
            command = site.train(run, *(["--resume"] if resumes else []))
            if _at(MOMENTS[kind](site, run), command):
                command.send(signal.SIGKILL)
            ended = command.wait()
            wrong = ended.code not in (-signal.SIGKILL, 0)
            site.tally.add(row, ended.err[-900:], faults=ended.code != 0, tracebacks=ended.tracebacks, otherwise=wrong)
        site.goes_on(run, row)


def stops(site: Site) -> None:
    """Ctrl-C and SIGTERM: the step is finished and saved; while nothing is there yet, the process just ends."""
    for number in range(STOPS):
        run, what = site.new(), (signal.SIGINT, signal.SIGTERM)[number % 2]
        command = site.train(run)
        if _at(at_any_time(site, run), command):
            command.send(what)
        ended = command.wait()
        # Before there is anything to save, and after all of it was, a signal just ends the process.
        right = ended.code in (128 + what, 0) or (ended.code == -what and newest(run) in (0, STEPS))
        site.tally.add(
            f"{what.name}",
            f"{ended.code} {ended.err[-900:]}",
            faults=1,
            tracebacks=ended.tracebacks,
            otherwise=not right,
        )
        site.goes_on(run, what.name)


def removals(site: Site) -> None:
    """The folder is removed while the run goes on in it."""
    row = "output folder removed"
    for _ in range(REMOVALS):
        run = site.new()
        command = site.train(run, steps=60)
        lines = while_recording(site, run)
        while command.running() and not (run / "metrics.jsonl").exists():
            time.sleep(0.001)
        if _at(lines, command):
            shutil.rmtree(run, ignore_errors=True)
            shutil.rmtree(run, ignore_errors=True)  # what was written while the first was at it
        ended = command.wait()
        note = f"{ended.code} {ended.err[-900:]}"
        site.tally.add(
            row,
            note,
            faults=1,
            one_line=ended.in_one_line,
            tracebacks=ended.tracebacks,
            otherwise=not ended.in_one_line,
        )


def pairs(site: Site) -> None:
    """Two runs, or two resumes, of one folder in the same moment: one goes on, the other is told of it."""
    row = "two in one folder"
    for number in range(PAIRS):
        run = site.new()
        more = []
        if number % 2:
            site.train(run, steps=2).wait()
            more = ["--resume"]
        both = [site.train(run, *more) for _ in range(2)]
        ended = [each.wait() for each in both]
        well, told = sum(each.code == 0 for each in ended), sum(each.in_one_line for each in ended)
        # The slower one may find a run that is finished, and go on with it or refuse it.
        wrong = well < 1 or well + told != 2
        note = "\n".join(f"{each.code} {each.err[-900:]}" for each in ended)
        tracebacks = sum(each.tracebacks for each in ended)
        differs = not number % 2 and not site.is_the_reference(run)
        site.tally.add(
            row, note, faults=1, went_on=well, one_line=told, tracebacks=tracebacks, otherwise=wrong, mismatches=differs
        )
