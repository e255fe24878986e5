"""Runs → one HTML file that needs nothing else: no network, no other file.

The page is made of parts, so that one which is watched while its runs go on can be given those that have changed.

Whatever a model wrote is untrusted. In the page it is text (Jinja escapes it) or JSON that no script tag can end,
and the page's own policy lets nothing run, load or be styled but the scripts and styles that were put into it here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from local_distill import __version__
from local_distill.errors import UserError, with_type
from local_distill.report.curves import charts_of, columns_of
from local_distill.report.reading import NothingMeasuredError, ReportedRun, read_run
from local_distill.report.tables import completions_by_prompt, environment_rows, outcome_of, settings_rows
from local_distill.report.tokens import Texts, evaluations_of

REPORT_FILE = "report.html"
SCRIPTS = ("vendor/uPlot.iife.min.js", "theme.js", "charts.js", "tokens.js", "page.js")
WATCHING = "watching.js"
"""The script that a page has besides when it is watched."""
STYLES = ("vendor/uPlot.min.css", "page.css")
CURVES, TOKENS = "curves", "evaluations"
"""Parts that the page's scripts draw. The others are markup."""
OF_SAMPLES = ("completions", "tokens")
"""Markup that changes only with the completions."""

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
        ended = replace(read_run(folder), goes_on=False)  # its folder is let go last of all
        return f"report: {write_report([ended], folder / REPORT_FILE)}"
    except NothingMeasuredError:
        return "report: none, for the run ended before anything was measured"
    except Exception as error:
        again = f"local-distill report {shlex.quote(str(folder))}"
        return f"report: could not be written ({with_type(error)}); try again: {again}"


def render(runs: Sequence[ReportedRun]) -> str:
    """Return the page about one run, or several to compare."""
    return assemble(title_of(runs), {**markup_of(runs), **samples_of(runs), CURVES: curves_json(runs)})


def title_of(runs: Sequence[ReportedRun]) -> str:
    """Return what the page is called."""
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"


def assemble(title: str, parts: Mapping[str, str], versions: Mapping[str, str] | None = None) -> str:
    """Return the page that is made of these parts. versions: of the parts, in a page that is watched."""
    scripts = (*SCRIPTS, WATCHING) if versions is not None else SCRIPTS
    script = "\n".join(['"use strict";', *map(_asset, scripts)])
    style = "\n".join(map(_asset, STYLES))
    return _template("page.html").render(
        title=title,
        script_hash=_hash(script),
        style_hash=_hash(style),
        script=script,
        style=style,
        parts=parts,
        data=f'{{"{CURVES}":{parts[CURVES]},"{TOKENS}":{parts[TOKENS]}}}',
        versions=None if versions is None else json.dumps(versions),
    )


def markup_of(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """Return the parts that are written out here: how the runs ended, their settings."""
    facts = {
        "runs": runs,
        "title": title_of(runs),
        "version": __version__,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "outcomes": [outcome_of(run) for run in runs],
        "settings": settings_rows(runs),
        "environment": environment_rows(runs),
    }
    return {name: _template(f"{name}.html").render(facts) for name in ("outcome", "settings")}


def samples_of(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """Return the parts about completions: the tokens as JSON, and what is written out here."""
    texts = Texts()
    told = [evaluations_of(run, texts) for run in runs]
    facts = {"runs": runs, "completions": completions_by_prompt(runs)}
    markup = {name: _template(f"{name}.html").render(facts) for name in OF_SAMPLES}
    return {**markup, TOKENS: _json({"runs": told, "texts": texts.all})}


def curves_json(runs: Sequence[ReportedRun]) -> str:
    """Return what the page draws as curves, as JSON that may stand inside a script element."""
    told = [{"name": run.name, **columns_of(run)} for run in runs]
    return _json({"charts": [asdict(chart) for chart in charts_of(runs)], "runs": told})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_NO_MARKUP)


def _template(name: str) -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_asset),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _asset(name: str) -> str:
    return files("local_distill.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return how a Content-Security-Policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
