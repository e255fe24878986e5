"""How far a student still is from its teacher, by the plainest means: dense logits, transformers' own sampling.

    python benchmarks/race_judge.py STUDENT TEACHER PROMPTS --tokens 48

Nothing of the package is in here, so that it can judge whatever trained the student. Printed as one line of JSON, for
completions of at most so many tokens, sampled at temperature 1:

    reverse_kl     KL(student‖teacher) at the tokens of the student's own completions, nats a token
    forward_kl     KL(teacher‖student) at the tokens of the teacher's completions, nats a token
    length         mean tokens of the student's completions, stop token included; teacher_length: of the teacher's
    repeated       share of the 4-grams in the student's completions that stood in the same completion before
    ..._se         standard errors over completions
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

Completion = tuple[list[int], list[int]]
"""Ids of a prompt, and of what follows it."""
AT_ONCE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("prompts", type=Path, help="one a line")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1234)
    args = parser.parse_args()
    print(json.dumps(judge(args.student, args.teacher, args.prompts, args.tokens, args.seed)))


def judge(student_folder: str, teacher_folder: str, prompts: Path, tokens: int, seed: int) -> dict[str, float]:
    """Return all measures of a student."""
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": line}], add_generation_prompt=True, return_dict=False
        )
        for line in prompts.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    student, teacher = load(student_folder), load(teacher_folder)
    own = sample(student, rendered, tokens, tokenizer.eos_token_id, seed)
    others = sample(teacher, rendered, tokens, tokenizer.eos_token_id, seed)
    reverse, reverse_se = per_token([divergence(student, teacher, each) for each in own])
    forward, forward_se = per_token([divergence(teacher, student, each) for each in others])
    return {
        "reverse_kl": reverse,
        "reverse_kl_se": reverse_se,
        "forward_kl": forward,
        "forward_kl_se": forward_se,
        "length": sum(len(completion) for _, completion in own) / len(own),
        "teacher_length": sum(len(completion) for _, completion in others) / len(others),
        "repeated": repeated([completion for _, completion in own]),
    }


def load(folder: str) -> PreTrainedModel:
    """A whole model, or the adapter of one."""
    if (Path(folder) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def sample(model: PreTrainedModel, prompts: Sequence[list[int]], tokens: int, stop: int, seed: int) -> list[Completion]:
    """One completion of each prompt, from the model's whole distribution."""
    torch.manual_seed(seed)
    found: list[Completion] = []
    for first in range(0, len(prompts), AT_ONCE):
        rows = prompts[first : first + AT_ONCE]
        width = max(map(len, rows))
        ids = torch.tensor([[stop] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        drawn = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=stop,
            pad_token_id=stop, max_new_tokens=tokens,
        )[:, width:].tolist()  # fmt: skip
        found += [(row, up_to(stop, completion)) for row, completion in zip(rows, drawn, strict=True)]
    return found


def up_to(stop: int, ids: list[int]) -> list[int]:
    """The ids to the first stop token, which is kept."""
    return ids[: ids.index(stop) + 1] if stop in ids else ids


@torch.no_grad()
def divergence(p: PreTrainedModel, q: PreTrainedModel, completion: Completion) -> Tensor:
    """KL(p‖q) over the whole vocabulary at each token of a completion, (T,) float64 nats."""
    prompt, drawn = completion
    ids = torch.tensor([prompt + drawn])
    # The logits at a position are of the token after it.
    log_p, log_q = (model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for model in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def per_token(values: Sequence[Tensor]) -> tuple[float, float]:
    """The mean over all tokens, and the standard error of this ratio of two sums over completions."""
    tokens = sum(len(each) for each in values)
    mean = float(sum(each.sum() for each in values)) / tokens
    off = [float(each.sum()) - mean * len(each) for each in values]
    n = len(values)
    return mean, math.sqrt(sum(each**2 for each in off) * n / max(n - 1, 1)) / tokens


def repeated(completions: Sequence[list[int]], n: int = 4) -> float:
    """Share of the n-grams that their own completion had before."""
    total = again = 0
    for ids in completions:
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        total += len(grams)
        again += len(grams) - len(set(grams))
    return again / max(total, 1)


if __name__ == "__main__":
    main()
