"""Scoring and training of one group, each prompt read once against once for each rollout, in turn.

    python benchmarks/shared_prompts.py                          # groups of 8, prompts of 256 and 512 tokens
    python benchmarks/shared_prompts.py --prompt 330 --new 64 --lora

Both are the program's own parts: the teacher's pass, and the student's forward, exact reverse KL and backward. Seconds
are medians of the rounds; kept is what forward keeps for backward, as autograd counts it.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from local_distill.batch import Prompt, Rollout, ScoredBatch, TokenBatch
from local_distill.head.divergences import reverse_kl
from local_distill.losses.loss import WholeDistributionLoss
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.files import recompute_activations
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import can_share_prompts, check_scorer
from local_distill.training.batching import collate
from local_distill.training.device_memory import bytes_kept

MODELS = Path(__file__).parent.parent / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default=str(MODELS / "smollm2-99m-pruned"))
    parser.add_argument("--teacher", default=str(MODELS / "smollm2-135m-instruct"))
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, nargs="+", default=[256, 512], help="tokens of the prompt")
    parser.add_argument("--new", type=int, nargs="+", default=[64, 128], help="tokens of each completion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the products")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    args = parser.parse_args()
    student, teacher = load(args.student), load(args.teacher)
    if args.lora:
        student.model = add_lora(student.model, LoraSettings(32, 64, 0.0, "all-linear"), seed=0)
    if args.gradient_checkpointing:
        recompute_activations(student.model)
    for scorer, flag in ((student, "--student"), (teacher, "--teacher")):
        check_scorer(scorer, flag)
        if not can_share_prompts(scorer):
            raise SystemExit(f"{flag}: its attention cannot take several completions of one prompt")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.dtype}, group {args.group}")
    print("prompt  new   tokens       score s        train s     score + train   kept MiB     ratio")
    for prompt in args.prompt:
        for new in args.new:
            compare(args, student, teacher, prompt, new)


def load(model: str) -> TokenScorer:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return TokenScorer(loaded, loaded.config.vocab_size)


def compare(args: argparse.Namespace, student: TokenScorer, teacher: TokenScorer, prompt: int, new: int) -> None:
    """Print one line: each number plain → shared."""
    shared = collate(rollouts(args.group, prompt, new), 0, share=True)
    batches = {"plain": replace(shared, shared=None), "shared": shared}
    for scorer in (student, teacher):
        scorer.shares_prompts = True  # a batch without a layout goes the plain way
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in batches}
    with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16"):
        student.train()
        kept = {name: bytes_kept(student, batch) / 2**20 for name, batch in batches.items()}
        for _ in range(args.rounds + 1):
            for name, batch in batches.items():
                found[name].append(score_and_train(student, teacher, batch))
    score, train, both = (
        {name: statistics.median(map(of, times[1:])) for name, times in found.items()}
        for of in (lambda t: t[0], lambda t: t[1], sum)
    )
    ratio = statistics.median(sum(s) / sum(p) for p, s in zip(found["plain"][1:], found["shared"][1:], strict=True))
    cells = [f"{each['plain']:6.2f} → {each['shared']:5.2f}" for each in (score, train, both)]
    print(
        f"{prompt:6} {new:4} {batches['plain'].tokens_read:5} → {shared.tokens_read:4}  {'  '.join(cells)}"
        f"  {kept['plain']:5.0f} → {kept['shared']:5.0f}  {ratio:5.2f}",
        flush=True,
    )


def rollouts(group: int, prompt: int, new: int) -> list[Rollout]:
    """One prompt, and completions of one length: where padding is no advantage of either."""
    draw = torch.Generator().manual_seed(0)
    ids = Prompt(tuple(torch.randint(5, 4000, (prompt,), generator=draw).tolist()), "", "")
    return [
        Rollout(ids, 0, torch.randint(5, 4000, (new,), generator=draw), torch.zeros(new), "length")
        for _ in range(group)
    ]


def score_and_train(student: TokenScorer, teacher: TokenScorer, batch: TokenBatch) -> tuple[float, float]:
    """Return the seconds of the teacher's pass, and those of the student's forward and backward."""
    start = time.perf_counter()
    with torch.no_grad():
        states = teacher.states(batch)
    scored = time.perf_counter()
    student.train()
    student.zero_grad()
    loss, _ = student(batch, WholeDistributionLoss(reverse_kl).reading(ScoredBatch(batch, states), 0))
    loss.backward()
    return scored - start, time.perf_counter() - scored


if __name__ == "__main__":
    main()
