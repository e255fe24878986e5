"""Every loss on the same student, teacher, prompts, lengths and seed: what it reaches, by tokens and by seconds.

    python benchmarks/losses.py runs/losses docs/images/losses.png

Runs the documented command once for each loss (two to three minutes each on two cores), skips what a former call has
finished, and draws the exact reverse KL on held-out prompts. Needs matplotlib: pip install -e '.[bench]'.
"""

import argparse
import json
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
COMMON = [
    "--config", "examples/pruned.yaml", "--batch_size", "8", "--steps", "9", "--eval_every", "3",
    "--eval_prompts", "16", "--learning_rate", "1.5e-4",
]  # fmt: skip
VARIANTS = {
    "policy_gradient": ["--loss", "policy_gradient"],
    "policy_gradient, T 0.8, top-p 0.95": ["--loss", "policy_gradient", "--temperature", "0.8", "--top_p", "0.95"],
    "importance_sampling, T 0.8": ["--loss", "importance_sampling", "--temperature", "0.8"],
    "reverse_kl": ["--loss", "reverse_kl"],
    "jsd 0.5": ["--loss", "jsd", "--jsd_beta", "0.5"],
    "forward_kl": ["--loss", "forward_kl"],
    "reverse_kl, teacher's top 64": ["--loss", "reverse_kl", "--top_k", "64"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    figure, (by_tokens, by_seconds) = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    print("| loss | 0 | 3 | 6 | 9 steps | seconds a step |\n| --- | --- | --- | --- | --- | --- |")
    for name, flags in VARIANTS.items():
        run = arguments.folder / name.replace(" ", "-").replace(",", "").replace("'", "")
        finish(run, flags)
        tokens, seconds, means, errors = curve(run)
        cells = [f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {seconds[-1] / 9:.1f} |", flush=True)
        style = {"marker": "o", "capsize": 2, "linestyle": "--" if "0.8" in name else "-"}
        by_tokens.errorbar(tokens, means, errors, label=name, **style)
        by_seconds.errorbar(seconds, means, errors, **style)
        draw(figure, by_tokens, by_seconds, arguments.picture)


def draw(figure: Figure, by_tokens: Axes, by_seconds: Axes, picture: Path) -> None:
    """Label what is there so far, and write the picture."""
    by_tokens.set(xlabel="completion tokens sampled", ylabel="held-out exact reverse KL (nats/token)", ylim=(0, None))
    by_seconds.set(xlabel="seconds of training")
    by_tokens.legend(frameon=False, fontsize="small")
    for axes in (by_tokens, by_seconds):
        axes.grid(visible=True, alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


def finish(run: Path, flags: list[str]) -> None:
    """Make the run, unless it is there."""
    if (run / "summary.json").exists():
        return
    command = [sys.executable, "-m", "local_distill.train_on_policy_local", *COMMON, *flags]
    subprocess.run([*command, "--output_dir", str(run.resolve())], cwd=ROOT, check=True, capture_output=True)


def curve(run: Path) -> tuple[list[float], list[float], list[float], list[float]]:
    """Tokens, seconds, reverse KL and its standard error at each evaluation."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "loss" in record]
    held = [record for record in records if "eval/reverse_kl" in record]
    tokens = [0.0, *accumulate(step["completion_tokens"] * 8 for step in steps)]
    seconds = [0.0, *accumulate(step["seconds/step"] for step in steps)]
    done = [int(record["step"]) for record in held]
    means, errors = ([record[key] for record in held] for key in ("eval/reverse_kl", "eval/reverse_kl_se"))
    return [tokens[step] for step in done], [seconds[step] for step in done], means, errors


if __name__ == "__main__":
    main()
