"""Runs → one HTML file that needs nothing else: no network, no other file.

Whatever a model wrote is untrusted. In the page it is text (Jinja escapes it) or JSON that no script tag can end,
and the page's own policy lets nothing run, load or be styled but the scripts and styles that were put into it here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from local_distill import __version__
from local_distill.errors import UserError, with_type
from local_distill.report.curves import charts_of, columns_of
from local_distill.report.reading import ReportedRun, read_run
from local_distill.report.tables import completions_by_prompt, environment_rows, outcome_of, settings_rows
from local_distill.report.tokens import Texts, evaluations_of

REPORT_FILE = "report.html"
SCRIPTS = ("vendor/uPlot.iife.min.js", "theme.js", "charts.js", "tokens.js", "page.js")
STYLES = ("vendor/uPlot.min.css", "page.css")

_NO_MARKUP = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def write_report(runs: Sequence[ReportedRun], target: Path) -> Path:
    """Write the page about these runs. Returns its path. Raises UserError when it cannot be written there."""
    try:
        target.write_text(render(runs), encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); name another --output") from error
    return target


def report_of_ended_run(folder: Path) -> str:
    """Write the report of a run that has just ended into its folder. Returns what to tell of that.

    A run is worth more than a page about it, so whatever goes wrong here is told in one line, with how to try again.
    """
    try:
        return f"report: {write_report([read_run(folder)], folder / REPORT_FILE)}"
    except Exception as error:
        again = f"local-distill report {shlex.quote(str(folder))}"
        return f"report: could not be written ({with_type(error)}); try again: {again}"


def render(runs: Sequence[ReportedRun]) -> str:
    """Return the page about one run, or several to compare."""
    scripts = "\n".join(['"use strict";', *map(_asset, SCRIPTS)])
    styles = "\n".join(map(_asset, STYLES))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_asset("page.html"))
    return page.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        version=__version__,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        script_hash=_hash(scripts),
        style_hash=_hash(styles),
        scripts=scripts,
        styles=styles,
        data=data_json(runs),
        runs=runs,
        outcomes=[outcome_of(run) for run in runs],
        settings=settings_rows(runs),
        environment=environment_rows(runs),
        completions=completions_by_prompt(runs),
    )


def data_json(runs: Sequence[ReportedRun]) -> str:
    """Return what the page's scripts draw, as JSON that may stand inside a script element."""
    texts = Texts()
    told: list[dict[str, Any]] = [
        {"name": run.name, **columns_of(run), "evaluations": evaluations_of(run, texts)} for run in runs
    ]
    data = {"charts": [asdict(chart) for chart in charts_of(runs)], "runs": told, "texts": texts.all}
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_NO_MARKUP)


def _asset(name: str) -> str:
    return files("local_distill.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return how a Content-Security-Policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
