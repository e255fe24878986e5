"""The held-out reverse KL over the steps, as a picture that needs no program to draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from local_distill.runs.evaluations import Evaluation
from local_distill.wording import number

WIDTH, HEIGHT, MARGIN = 480, 200, 44
FONT = 'font-family="sans-serif" font-size="12" fill="#777"'


def curve_svg(evaluations: Sequence[Evaluation]) -> str | None:
    """An SVG image: a line, one standard error as bars; None with fewer than two evaluations to join."""
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
