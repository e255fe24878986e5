"""Folders of runs with known numbers, written by the run's own writer of files."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import yaml

from local_distill.runs.evaluations import Completion, Evaluation, Piece
from local_distill.runs.records import RunFiles

ATTACK = "</script><img src=x onerror=\"document.title='attacked'\"><b>&amp;\u2028"
"""What a model may write that wants to be more than text."""

WORDS = (" the", " a", " river", "\n", " of", ",", " 河", " <b>", "", "\u202e")


def make_piece(rng: random.Random) -> Piece:
    student, teacher = -rng.expovariate(1.0), -rng.expovariate(0.5)
    top = tuple((rng.choice(WORDS), math.log(share)) for share in (0.5, 0.25, 0.12, 0.06, 0.03))
    return Piece(rng.choice(WORDS), student, teacher, reverse_kl=abs(student - teacher), top=top)


def make_completion(rng: random.Random, prompt: str, tokens: int) -> Completion:
    pieces = tuple(make_piece(rng) for _ in range(tokens))
    text = "".join(piece.text for piece in pieces)
    return Completion(prompt, text, tokens, "length", sum(p.reverse_kl for p in pieces) / tokens, pieces)


def make_evaluation(rng: random.Random, step: int, tokens: int, prompts: int = 2) -> Evaluation:
    completions = tuple(make_completion(rng, f"Prompt {i}: {ATTACK}", tokens) for i in range(prompts))
    reverse_kl = 3 / (1 + step)
    return Evaluation(step, reverse_kl, 0.1 * reverse_kl, float(tokens), 0.25, completions)


def make_step(rng: random.Random, step: int) -> dict[str, float]:
    return {
        "loss": 2 / step,
        "reverse_kl": 3 / step,
        "entropy": 1 + rng.random(),
        "grad_norm": math.nan if step == 2 else rng.random(),
        "learning_rate": 1e-4,
        "seconds/sample": 0.5,
        "seconds/step": 2.0,
        "tokens": 100.0,
        "tokens_per_second": 50.0,
        "skipped": 0.0,
        "some/new_metric": float(step),
    }


def write_run(
    folder: Path, steps: int = 4, every: int = 2, tokens: int = 12, seed: int = 0, **settings: object
) -> Path:
    """A finished run that evaluated every ``every`` steps."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    files = RunFiles(folder, None)
    files.evaluation(make_evaluation(rng, 0, tokens))
    for step in range(1, steps + 1):
        files.step(step, make_step(rng, step))
        if step % every == 0:
            files.evaluation(make_evaluation(rng, step, tokens))
    files.close()
    given = {"student_model": f"small {ATTACK}", "teacher_model": "large", "steps": steps, "batch_size": 8, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    start = {"python": "3.11.2", "packages": {"torch": "2.13.0"}, "devices": [{"name": "H100", "memory_gib": 79.1}]}
    (folder / "environment.json").write_text(json.dumps([start, {**start, "packages": {"torch": "2.14.0"}}]))
    return folder


def records_of(path: Path) -> list[dict]:
    """The records of a JSONL file; splitlines would cut them at U+2028."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").strip("\n").split("\n")]
