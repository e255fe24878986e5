"""The output head and the loss alone, forward and backward: chunk by chunk against the plain way.

    python benchmarks/head.py                                   # 1,024 tokens, H = 2048, V = 151,936
    python benchmarks/head.py --tokens 16384 --only ours        # memory where the plain way does not fit

Each contender runs in a process of its own, in turn; its time is the best of ``--repeats``, its memory the peak of
the process over what it held before. ``products`` is the head's matrix products alone: the least there is to do.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from local_distill.batch import HeadStates, SampledLogprobs, ScoredBatch, TokenBatch
from local_distill.head.divergences import reverse_kl
from local_distill.head.logprobs import Head, chunks
from local_distill.losses.loss import SampledTokenLoss, WholeDistributionLoss
from local_distill.losses.sampled_token import policy_gradient
from local_distill.process.launch import keep_freed_memory

CONTENDERS = ("ours", "dense", "products")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=151_936)
    losses = ("reverse_kl", "policy_gradient")  # the first is what --loss auto takes here
    parser.add_argument("--loss", choices=losses, default=losses[0])
    parser.add_argument("--frozen", action="store_true", help="the head does not train, as under LoRA")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    names = [args.only] if args.only else CONTENDERS
    rounds = [{name: in_process_of_its_own(name) for name in names} for _ in range(args.rounds)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device}; {args.tokens} tokens, H {args.hidden}, V {args.vocab}, {args.loss}")
    for name in names:
        seconds, extra = (statistics.median(r[name][key] for r in rounds) for key in ("seconds", "extra GiB"))
        ratios = [r[name]["seconds"] / r[names[-1]]["seconds"] for r in rounds]
        print(f"{name:9} {seconds:8.3f} s  extra {extra:6.2f} GiB  time / {names[-1]} {statistics.median(ratios):.2f}")
    if args.only is None:
        ratios = [r["ours"]["seconds"] / r["dense"]["seconds"] for r in rounds]
        print(f"ours / dense: {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def in_process_of_its_own(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return numbers


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds, and GiB over the inputs and the gradients, of one contender."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    torch.manual_seed(0)
    if device.type == "cpu":
        keep_freed_memory()  # as the program does

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype) / args.hidden**0.25

    hidden, weight = random(args.tokens, args.hidden).requires_grad_(), random(args.vocab, args.hidden)
    weight.requires_grad_(not args.frozen)
    teacher = HeadStates(random(args.tokens, args.hidden), Head(random(args.vocab, args.hidden), args.vocab))
    targets = torch.randint(args.vocab, (args.tokens,), device=device)
    work = {"ours": ours, "dense": dense, "products": products}[args.child]
    # The gradients exist either way; made before, they do not count as extra.
    hidden.grad = torch.zeros_like(hidden)
    if not args.frozen:
        weight.grad = torch.zeros_like(weight)
    before, seconds = peak_gib(device), []
    for _ in range(args.repeats):
        start = time.perf_counter()
        work(args, hidden, weight, teacher, targets)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "extra GiB": peak_gib(device) - before}


def peak_gib(device: torch.device) -> float:
    """The most memory held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def ours(args: argparse.Namespace, hidden: Tensor, weight: Tensor, teacher: HeadStates, targets: Tensor) -> None:
    zeros = torch.zeros(len(targets), device=hidden.device)
    tokens = TokenBatch(targets, targets, targets, targets, zeros, (len(targets),))
    if args.loss == "policy_gradient":
        loss = SampledTokenLoss(policy_gradient, policy_gradient, 1.0, 0.0)
        batch = ScoredBatch(tokens, SampledLogprobs(zeros))
        loss.reading(batch, 0)(hidden, Head(weight, args.vocab), targets).total.backward()
    else:
        batch = ScoredBatch(tokens, teacher)
        whole = WholeDistributionLoss(reverse_kl)
        whole.reading(batch, 0)(hidden, Head(weight, args.vocab), targets).total.backward()


def dense(args: argparse.Namespace, hidden: Tensor, weight: Tensor, teacher: HeadStates, targets: Tensor) -> None:
    student = (hidden @ weight.t()).float().log_softmax(-1)
    if args.loss == "policy_gradient":
        s = student.gather(1, targets[:, None])
        (s.detach() * s).sum().backward()
    else:
        with torch.no_grad():
            logprobs = (teacher.hidden @ teacher.head.weight.t()).float().log_softmax(-1)
        (student.exp() * (student - logprobs)).sum().backward()


def products(args: argparse.Namespace, hidden: Tensor, weight: Tensor, teacher: HeadStates, targets: Tensor) -> None:
    """The same products in the same chunks, with nothing in between."""
    del targets
    with torch.no_grad():
        for part in chunks(hidden, Head(weight, args.vocab), None):
            states = hidden[part]
            logits = states @ weight.t()
            if args.loss == "reverse_kl":
                teacher.hidden[part] @ teacher.head.weight.t()
            logits @ weight
            if weight.grad is not None:
                weight.grad.addmm_(logits.t(), states)


if __name__ == "__main__":
    main()
