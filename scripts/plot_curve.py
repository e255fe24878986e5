"""Draw reverse KL over the steps of one or more runs, as docs/results.md shows it.

python scripts/plot_curve.py docs/images/demo.png runs/demo runs/demo-lora
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt


def read(run: Path) -> list[dict[str, float]]:
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run, colour in zip(arguments.runs, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False):
        records = read(run)
        train = [(r["step"], r["reverse_kl"]) for r in records if "reverse_kl" in r]
        held = [
            (r["step"], r["eval/reverse_kl"], r.get("eval/reverse_kl_se", 0.0))
            for r in records
            if "eval/reverse_kl" in r
        ]
        axes.plot(*zip(*train, strict=True), color=colour, alpha=0.35, label=f"{run.name}: own samples, each step")
        steps, means, errors = zip(*held, strict=True)
        axes.errorbar(steps, means, errors, color=colour, marker="o", capsize=3, label=f"{run.name}: held out ± s.e.")
    axes.set(xlabel="step", ylabel="reverse KL (nats/token)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=150)


if __name__ == "__main__":
    main()
