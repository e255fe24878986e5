"""The model card and its picture: what a run knows of its model, and visible gaps for what only its owner knows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from local_distill.config.train_fields import recorded_loss
from local_distill.export.merging import Distance
from local_distill.export.origin import Origin, hub_id
from local_distill.runs.evaluations import Evaluation
from local_distill.wording import fenced, number, percent, with_error

CURVE_FILE = "curve.svg"
MOST_ROWS = 12
"""Of the table of evaluations; of more, some in between are left out."""
WIDTH, HEIGHT, MARGIN = 480, 200, 44
FONT = 'font-family="sans-serif" font-size="12" fill="#777"'
TODO = "**TODO (owner):**"
TOLD = (
    "loss", "temperature", "top_p", "learning_rate", "lr_scheduler", "batch_size", "group_size", "max_new_tokens",
    "seed",
)  # fmt: skip
TOLD_OF_LORA = ("lora_r", "lora_alpha", "lora_target_modules")


def model_card(title: str, origin: Origin, dtype: str, difference: Distance, has_curve: bool) -> ModelCard:
    """Return the card, its front matter as the hub reads it. has_curve: whether the picture lies beside it."""
    data = ModelCardData(
        base_model=hub_id(origin.base),
        datasets=[origin.hub_data_set] if origin.hub_data_set else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "on-policy-distillation", "local-distill", *(["lora"] if origin.adapter else [])],
    )
    means = [with_error(each.reverse_kl, each.standard_error) for each in origin.evaluations]
    return ModelCard.from_template(
        data,
        template_str=files("local_distill.export").joinpath("card.md.j2").read_text(encoding="utf-8"),
        todo=TODO,
        title=re.sub(r"([\\`*\[\]<>|])", r"\\\1", title),
        base=_code(origin.base),
        teacher=origin.teacher and _code(origin.teacher),
        adapter=origin.adapter,
        training=_table(("", ""), _training(origin)),
        evaluations=origin.evaluations,
        before=means[0] if means else "",
        after=means[-1] if means else "",
        measured=_measured(origin.evaluations),
        curve=CURVE_FILE if has_curve else "",
        command=origin.command and fenced(origin.command, "bash"),
        dtype=dtype,
        difference=difference,
        packages=origin.packages,
    )


def _training(origin: Origin) -> list[tuple[str, str]]:
    rows: list[tuple[str, Any]] = [
        ("base", _code(origin.base)),
        ("teacher", _code(origin.teacher) if origin.teacher else ""),
        ("prompts", _code(origin.hub_data_set or origin.data) if origin.data else ""),
        ("steps", origin.step),
    ]
    named = TOLD + (TOLD_OF_LORA if origin.settings.get("use_lora") else ())
    settings = {**origin.settings, "loss": recorded_loss(origin.settings) or None}
    rows += [(name.replace("_", " "), settings.get(name)) for name in named]
    if origin.tokens:
        rows += [
            ("completion tokens, whole run", number(origin.tokens)),
            ("seconds, whole run", number(origin.seconds)),
        ]
    told = [(name, str(value)) for name, value in rows if value not in (None, "")]
    return told if origin.settings else [*told, ("settings", f"{TODO} not known, the model was not trained here")]


def _measured(evaluations: Sequence[Evaluation]) -> str:
    """Return a table of the first evaluation, the last, and some evenly in between."""
    n = len(evaluations)
    if n > MOST_ROWS:
        evaluations = [evaluations[round(i * (n - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)]
    rows = [
        (str(e.step), with_error(e.reverse_kl, e.standard_error), number(e.length), percent(e.truncated))
        for e in evaluations
    ]
    return _table(("step", "reverse KL", "tokens a completion", "truncated"), rows)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [" | ".join(heading), " | ".join("---" for _ in heading), *map(" | ".join, cells)]
    return "\n".join(f"| {line} |" for line in lines)


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def curve_svg(evaluations: Sequence[Evaluation]) -> str | None:
    """Draw the held-out reverse KL as SVG: a line, one standard error as bars; None for fewer than two points."""
    points = [each for each in evaluations if math.isfinite(each.reverse_kl)]
    if len(points) < 2:
        return None
    last, top = max(each.step for each in points) or 1, max(each.reverse_kl + _error(each) for each in points) or 1.0

    def x(step: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * step / last

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(value, 0.0) / top

    line = " ".join(f"{x(each.step):.1f},{y(each.reverse_kl):.1f}" for each in points)
    bars = "".join(
        f'<line x1="{x(e.step):.1f}" x2="{x(e.step):.1f}" y1="{y(e.reverse_kl - _error(e)):.1f}" '
        f'y2="{y(e.reverse_kl + _error(e)):.1f}" stroke="#c0392b"/>'
        for e in points
    )
    bottom = HEIGHT - MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{WIDTH - MARGIN}" fill="none" stroke="#777"/>'
        f'<text x="{MARGIN - 4}" y="{MARGIN + 4}" text-anchor="end" {FONT}>{number(top)}</text>'
        f'<text x="{MARGIN - 4}" y="{bottom}" text-anchor="end" {FONT}>0</text>'
        f'<text x="{WIDTH - MARGIN}" y="{bottom + 18}" text-anchor="end" {FONT}>step {last}</text>'
        f'<text x="{MARGIN}" y="{MARGIN - 16}" {FONT}>held-out reverse KL, nats a token</text>'
        f'{bars}<polyline points="{line}" fill="none" stroke="#c0392b" stroke-width="2"/></svg>\n'
    )


def _error(evaluation: Evaluation) -> float:
    return 0.0 if math.isnan(evaluation.standard_error) else evaluation.standard_error
