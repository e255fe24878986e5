"""Every architecture of the zoo through the real commands, and what became of it: docs/models.md.

python -m tests.architectures.sweep            try all of them; exit code 1 where the page says something else
python -m tests.architectures.sweep --write    and write what was found into the page
python -m tests.architectures.sweep OPT Bloom  these alone
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parent.parent.parent / "docs" / "models.md"
INTRODUCTION = """\
# Models

What is trained here is what `transformers` calls a causal language model, or one of text beside images, of which text
alone is trained. Each line of the table is a small model of that architecture with random weights, which the real
commands trained, saved, opened again, talked to and exported. Trains means that all of this held:

- a student that is its own teacher is at a reverse KL of 0, to 1e-6, with an adapter on it as well;
- the gradient is the same however its rollouts are cut into micro-batches, to 1 in 1,000;
- what was exported gives, read by `transformers` alone, the log-probs of what was trained.

`engine/kl` is how far what samples is from what is trained, in nats, and should be rounding alone: it is the larger
number of two steps. "Refused" comes with the line that the command ends with.

This page is written by `make test-models`, which fails where an architecture does not do what the page said before.

| architecture | `model_type` | | engine/kl |
| --- | --- | --- | --- |
"""
RUN = [
    "--batch_size", "2", "--group_size", "2", "--max_new_tokens", "5", "--max_prompt_tokens", "90", "--learning_rate",
    "1e-3", "--eval_prompts", "0", "--seed", "1", "--temperature", "1", "--top_p", "1",
]  # fmt: skip
ROUNDING = 1e-6
REFUSED, TRAINS, FAILS = "refused", "trains", "fails"


class Result(NamedTuple):
    """verdict: trains, refused or fails. line: why it was refused or failed. gap: engine/kl."""

    name: str
    kind: str
    verdict: str
    line: str = ""
    gap: float = 0.0

    def row(self) -> str:
        """Of the page's table."""
        said = self.verdict if self.verdict == TRAINS else f"{self.verdict}: {self.line}"
        gap = "" if self.verdict != TRAINS else f"below {_above(self.gap):.0e}"
        return f"| {self.name} | `{self.kind}` | {said} | {gap} |\n".replace("|  |", "| |")


class NotRightError(Exception):
    """A command that did not end well, or a number that is not what it should be."""


def try_out(name: str) -> Result:
    """Train, open again, talk to and export a small model of the architecture."""
    from tests.architectures.zoo import ARCHITECTURES, config_of
    from tests.tiny_models import make_tokenizer, save_model

    kind = ARCHITECTURES[name][0]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), _quiet():
        try:
            student = save_model(Path("student"), config_of(name), make_tokenizer(), seed=1)
            teacher = save_model(Path("teacher"), config_of(name), make_tokenizer(), seed=1)
            _disturb(teacher / "model.safetensors")
            return Result(name, kind, TRAINS, gap=_held(student, teacher))
        except NotRightError as error:
            line = str(error)
        except Exception as error:  # a traceback is what this is here to find
            line = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    refused = line.startswith("error: ")
    line = re.sub(r" \(.*\)", "", line.removeprefix("error: "))  # numbers in brackets are this processor's
    return Result(name, kind, REFUSED if refused else FAILS, line.replace("|", "/"))


def _held(student: Path, teacher: Path) -> float:
    """engine/kl of a run that did all that it should. Raises NotRightError."""
    one = _train(student, teacher, "one", "--steps", "2", "--grad_accum", "1")
    four = _train(student, teacher, "four", "--steps", "1", "--grad_accum", "4")
    same = _train(student, student, "same", "--steps", "1", "--use_lora", "--lora_r", "2")
    if not abs(same[0]["reverse_kl"]) < ROUNDING:
        raise NotRightError(f"a student that is its own teacher is at a reverse KL of {same[0]['reverse_kl']:.1e}")
    ratio = four[0]["grad_norm"] / one[0]["grad_norm"]
    if not abs(ratio - 1) < 1e-3:
        raise NotRightError(f"in four micro-batches the gradient's norm is {ratio:.4f} of that in one")
    if not abs(one[0]["reverse_kl"]) > ROUNDING:
        raise NotRightError("a disturbed teacher is at a reverse KL of 0")
    _command("chat", "one", "--max_new_tokens", "4", "--device", "cpu")
    for run in ("one", "same"):
        _command("export", run, "--dtype", "fp32", "--output_dir", f"out-{run}")
    _compare(Path("one/step-2"), Path("out-one"))
    return max(line["engine/kl"] for line in one)


def _train(student: Path, teacher: Path, folder: str, *more: str) -> list[dict[str, float]]:
    """The metrics of each step."""
    models = ["--student_model", str(student), "--teacher_model", str(teacher)]
    _command("train", *models, *RUN, "--output_dir", folder, *more)
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _command(*words: str) -> None:
    from accelerate.state import AcceleratorState, GradientState

    from local_distill.commands import main

    errors = io.StringIO()
    stdin, sys.stdin = sys.stdin, io.StringIO("why is the sky blue\n")
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main(words)
    finally:
        sys.stdin = stdin
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    if code != 0:
        told = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
        raise NotRightError(told[-1] if told else f"{words[0]} ended with {code}")


def _disturb(weights: Path) -> None:
    """Another model, not far away."""
    import torch
    from safetensors.torch import load_file, save_file

    draw = torch.Generator().manual_seed(0)
    disturbed = {
        name: value + 0.05 * value.std() * torch.randn(value.shape, generator=draw) if value.numel() > 1 else value
        for name, value in load_file(weights).items()
    }
    save_file(disturbed, weights, metadata={"format": "pt"})


def _compare(trained: Path, exported: Path) -> None:
    """Whether transformers alone reads the same in both."""
    import torch

    from local_distill.models.files import open_model
    from tests.tiny_models import kind_of

    config = open_model("MODEL", str(trained), False).config
    kind, ids = kind_of(config), torch.arange(1, 9)[None]
    with torch.no_grad():
        ours, theirs = (kind.from_pretrained(folder).eval()(input_ids=ids).logits for folder in (trained, exported))
    if not (ours - theirs).abs().max() < 1e-4:
        raise NotRightError("what was exported gives other logits than what was saved")


@contextlib.contextmanager
def _quiet() -> Iterable[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def _above(gap: float) -> float:
    """The next power of ten, so that another processor writes the same page."""
    bound = ROUNDING
    while bound < gap:
        bound *= 10
    return bound


def rows_of_page() -> dict[str, str]:
    """By architecture; what stands in the table now."""
    lines = PAGE.read_text(encoding="utf-8").splitlines(keepends=True) if PAGE.exists() else []
    table = lines[lines.index("| --- | --- | --- | --- |\n") + 1 :] if lines else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in table}


def main(arguments: Sequence[str]) -> int:
    """Try the architectures that are named, or all, two at a time. Returns 1 where the page says something else."""
    from tests.architectures.zoo import ARCHITECTURES

    chosen = [each for each in arguments if not each.startswith("--")] or list(ARCHITECTURES)
    before, found = rows_of_page(), {}
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=20) as pool:
        for result in pool.imap(try_out, chosen):
            found[result.name] = result.row()
            print(result.row(), end="", flush=True)
    if "--write" in arguments:
        rows = before | found
        PAGE.write_text(INTRODUCTION + "".join(rows[name] for name in ARCHITECTURES if name in rows), encoding="utf-8")
    changed = [name for name in found if found[name] != before.get(name)]
    for name in changed:
        print(f"{name}: the page says {before.get(name, 'nothing').strip()}")
    return int(bool(changed))


if __name__ == "__main__":
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    sys.exit(main(sys.argv[1:]))
