"""Draw the three pictures at the top of docs/results.md from the numbers in docs/results.json.

python scripts/plot_findings.py

Needs matplotlib: pip install -e '.[dev]'.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
BLUE, ORANGE, SKY, DEEP_SKY = "#0072b2", "#d55e00", "#56b4e9", "#2a86bd"
GREY, INK, FAINT = "#6b7280", "#1f2328", "#e6e8eb"
TOP = "reverse_kl, teacher's top 64"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "local-distill",  # the same file every time
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "figure.facecolor": "white",  # a card of its own on a dark page
}


def repair(numbers: dict[str, Any]) -> Figure:
    """What was forgotten and what was learned, at the three stages."""
    figure, (forgotten, learned) = plt.subplots(1, 2, figsize=(7.4, 3.4), layout="constrained", sharey=True)
    figure.get_layout_engine().set(wspace=0.08)
    colours = (GREY, ORANGE, BLUE)
    stages = ["original", "fine-tuned\non code", "then\nrepaired"]
    bars(forgotten, stages, numbers["answered"], colours, numbers["answered_error"])
    forgotten.set_title(f"Chat: questions answered, of {numbers['questions']}")
    bars(learned, stages, numbers["learned_kept"], colours)
    learned.set_title("Code: how much of the gain is kept")
    return figure


def bars(axes: Axes, names: list[str], shares: list[float], colours: tuple[str, ...], errors: Any = None) -> None:
    """Bars in percent, each with its number."""
    axes.bar(names, shares, color=colours, width=0.62, yerr=errors, error_kw={"ecolor": INK, "capsize": 4})
    for place, share in enumerate(shares):
        above = share + (errors[place] if errors else 0)
        axes.annotate(
            f"{share:.0f} %", (place, above), (0, 5), textcoords="offset points", ha="center", weight="bold", size=15
        )
    axes.set(ylim=(0, 115), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def losses(numbers: dict[str, Any]) -> Figure:
    """The exact divergence on held-out prompts over the steps, for every loss."""
    figure, axes = plt.subplots(figsize=(7.4, 4.4), layout="constrained")
    looks = {"token": (ORANGE, "policy_gradient"), "top": (SKY, ""), "all": (BLUE, "reverse_kl")}
    for run in numbers["runs"]:
        colour, first = looks[run["sees"]]
        leads = run["loss"] in (first, TOP)
        axes.errorbar(
            numbers["steps"], run["mean"], run["error"], color=colour, marker="o", markersize=7 if leads else 4,
            linewidth=2.6 if leads else 1.1, alpha=1 if leads else 0.55, capsize=3, zorder=3 if leads else 2,
        )  # fmt: skip
    ends = {run["loss"]: run["mean"] for run in numbers["runs"]}
    right = 9.25
    for height, text, colour, weight in (
        (1.91, "one sampled token a place", ORANGE, "bold"),
        (1.72, f"policy_gradient: {ends['policy_gradient'][-1]:.2f}", ORANGE, "normal"),
        (1.45, f"teacher's top 64 and a tail: {ends[TOP][-1]:.2f}", DEEP_SKY, "bold"),
        (1.18, "whole distributions", BLUE, "bold"),
        (0.99, f"reverse_kl: {ends['reverse_kl'][-1]:.2f}", BLUE, "normal"),
    ):
        axes.text(right, height, text, color=colour, weight=weight, va="center")
    early = ends["reverse_kl"][1]
    axes.annotate(
        f"{early:.2f} after three steps:\nlower than {ends['policy_gradient'][-1]:.2f} after nine", (3, early - 0.05),
        (2.2, 0.42), color=BLUE, arrowprops={"arrowstyle": "-", "color": BLUE, "shrinkB": 6},
    )  # fmt: skip
    axes.set(xlim=(-0.2, 13.4), ylim=(0, 3.4), xticks=numbers["steps"])
    axes.set_xlabel("steps", x=4.7 / 13.6)
    axes.spines["bottom"].set_bounds(0, 9)
    axes.set_title("How far from the teacher on held-out prompts: reverse KL, nats per token")
    axes.hlines(axes.get_yticks()[1:-1], 0, 9, color=FAINT, linewidth=0.8, zorder=0)
    return figure


def against_trl(rows: list[dict[str, Any]]) -> Figure:
    """Completion tokens a second, for each setting two bars."""
    figure, axes = plt.subplots(figsize=(7.4, 4.6), layout="constrained")
    for place, row in enumerate(rows):
        ours, theirs = row["tokens_per_second"]
        axes.barh(place - 0.19, ours, 0.36, color=BLUE)
        axes.barh(place + 0.19, theirs, 0.36, color=GREY)
        axes.text(ours - 1, place - 0.19, f"local-distill {ours:.0f}", color="white", ha="right", va="center")
        axes.text(theirs - 1, place + 0.19, f"TRL {theirs:.0f}", color="white", ha="right", va="center")
        axes.text(ours + 1, place - 0.19, f"{row['ratio']:.1f} ×", color=BLUE, weight="bold", size=16, va="center")
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set(ylim=(len(rows) - 0.45, -0.55), xlim=(0, 80), xticks=[])
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("Completion tokens per second, over whole steps", x=-0.49)
    return figure


PICTURES: dict[str, Callable[[Any], Figure]] = {"repair": repair, "losses": losses, "against_trl": against_trl}


def main(folder: Path = DOCS / "images") -> None:
    numbers = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    with plt.rc_context(STYLE):
        for name, draw in PICTURES.items():
            target = folder / f"finding_{name}.svg"
            kept = {"Date": None, "Description": json.dumps(numbers[name])}  # what it was drawn from
            draw(numbers[name]).savefig(target, metadata=kept, bbox_inches="tight", pad_inches=0.25)
            print(target)
    plt.close("all")


if __name__ == "__main__":
    main()
