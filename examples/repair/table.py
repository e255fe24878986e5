"""What forgetting broke and what the repair mended, as one table: the original, the drifted and the repaired model.

python examples/repair/table.py runs/repair
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from local_distill.eval.statistics import (
    Difference,
    Estimate,
    Total,
    mean_over_questions,
    mean_per_token,
    paired_difference,
    paired_ratios,
)

STAGES = ("original", "drifted", "repaired")


class Row(NamedTuple):
    """One measure. values: of each stage. changes: drifted − original, repaired − drifted, repaired − original."""

    name: str
    values: list[Estimate]
    changes: list[Difference]


def main() -> None:
    run = Path(sys.argv[1])
    text = markdown([answers(run / "questions"), reverse_kl(run / "chat"), code_loss(run / "code_loss.json")])
    (run / "table.md").write_text(text, encoding="utf-8")
    print(text)


def answers(folder: Path) -> Row:
    """Share of the questions answered correctly, from what ``local-distill eval`` wrote; exact paired tests."""
    right = [[int(line["correct"]) for line in lines] for lines in _by_model(folder / "answers.jsonl")]
    values = [mean_over_questions(each) for each in right]
    return Row("questions answered", values, [paired_difference(*pair, 1) for pair in _pairs(right)])


def reverse_kl(folder: Path) -> Row:
    """From the original, on chat prompts that nothing was trained on, nats a token."""
    lines = _by_model(folder / "reverse_kl.jsonl")
    return _per_token("reverse KL in chat", [[Total(x["reverse_kl"], x["tokens"]) for x in each] for each in lines])


def code_loss(file: Path) -> Row:
    """Of functions that nothing was trained on, nats a token."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return _per_token("loss on unseen functions", [[Total(*each) for each in totals] for totals in found.values()])


def markdown(rows: list[Row]) -> str:
    """The rows, a line on what they come to, and nothing else."""
    heading = ["measured", *STAGES, "drifted − original", "repaired − drifted", "repaired − original"]
    lines = [heading, ["---"] * len(heading)]
    for row in rows:
        values = [f"{each.mean:.3f} ± {each.standard_error:.3f}" for each in row.values]
        changes = [f"{each.mean:+.3f} ± {each.standard_error:.3f} ({_p(each.p_value)})" for each in row.changes]
        lines.append([row.name, *values, *changes])
    learned, _, kept = (change.mean for change in rows[-1].changes)
    said = f"Of what was learned about unseen functions, {kept / learned:.0%} is kept."
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", said, ""])


def _per_token(name: str, totals: list[list[Total]]) -> Row:
    return Row(name, [mean_per_token(each) for each in totals], [paired_ratios(*pair) for pair in _pairs(totals)])


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _pairs(stages: list) -> list[tuple]:
    original, drifted, repaired = stages
    return [(original, drifted), (drifted, repaired), (original, repaired)]


def _by_model(file: Path) -> list[list[dict]]:
    """The lines of each model, models in the order in which they were asked, lines in that of the questions."""
    found: dict[str, list[dict]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found.setdefault(record["model"], []).append(record)
    return [sorted(lines, key=lambda each: each["question"]) for lines in found.values()]


if __name__ == "__main__":
    main()
