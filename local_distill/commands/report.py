"""local-distill report: one page about one run, or several to compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from local_distill.commands import Command
from local_distill.config.parsing import argument, option

USAGE = """\
local-distill report RUN [RUN …] [--output FILE] [--open]

examples:
  local-distill report runs/demo                          # writes runs/demo/report.html
  local-distill report runs/demo --open                   # and shows it in the browser
  local-distill report runs/lora runs/full                # both on one page, ./report.html
  local-distill report runs/* --output comparison.html
"""


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """``local-distill report`` has these settings."""

    runs: tuple[str, ...] = argument("Folders of runs; several are compared on one page.", many=True)
    output: str | None = option(
        "output", "File to write. Default: report.html in the folder of the run, or here when there are several."
    )
    open: bool = option("output", "Open the page in the browser.", False)


def run(settings: ReportSettings) -> int:
    """Write the page and say where it is."""
    from local_distill.report.page import REPORT_FILE, write_report
    from local_distill.report.reading import read_runs

    runs = read_runs(settings.runs)
    default = runs[0].path / REPORT_FILE if len(runs) == 1 else Path(REPORT_FILE)
    target = write_report(runs, Path(settings.output).expanduser() if settings.output else default)
    print(target)
    if settings.open:
        import webbrowser

        webbrowser.open(target.resolve().as_uri())
    return 0


COMMAND = Command(
    "report", ReportSettings, run, USAGE, "One self-contained HTML page about a run: curves, settings, tokens."
)
