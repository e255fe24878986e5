"""Sampling, scoring and training apart, on random weights in the shapes of real models: no weights, no network.

    python benchmarks/phases.py                                            # Qwen3-0.6B learns from Qwen3-8B, on a GPU
    python benchmarks/phases.py --student tiny --teacher tiny --batch 4    # that it runs, anywhere

Model FLOPs: two for each weight but the embedding's and each token, the head's on completion tokens alone, and four
for each pair of attending positions and channel; three times as many with backward. With --group they count a prompt
for each completion, though it is read once. MFU is their rate over ``--peak_tflops``; decoding's share of the bandwidth
counts each step's read of the weights and of the KV cache. The last line is the same step as one writes it with
transformers alone: ``generate``, the logits of both models, KL, backward, AdamW.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from local_distill.batch import Prompt
from local_distill.head.divergences import reverse_kl
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.losses.loss import SampledTokenLoss, WholeDistributionLoss
from local_distill.losses.sampled_token import policy_gradient
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import can_share_prompts
from local_distill.rollouts.hf import HFRollouts
from local_distill.teachers.local import LocalTeacher, WholeDistributionTeacher
from local_distill.training.batching import MicroBatches, split_substeps
from local_distill.training.device_memory import SmallerMicroBatches
from local_distill.training.learner import Learner
from local_distill.training.optimizer import make_updates

# hidden size, feed-forward size, layers, heads, key-value heads, tied embeddings
SHAPES = {
    "tiny": (64, 128, 2, 2, 1, True),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, True),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, True),
    "qwen3-8b": (4096, 12288, 36, 32, 8, False),
}
VOCABULARY = 151_936


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--teacher", choices=SHAPES, default="qwen3-8b")
    parser.add_argument("--batch", type=int, default=64, help="completions a step")
    parser.add_argument("--group", type=int, default=1, help="completions of each prompt, which is then read once")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a completion")
    parser.add_argument("--microbatch_tokens", type=int, default=16_384)
    losses = ("reverse_kl", "policy_gradient")  # the first is what --loss auto takes here
    parser.add_argument("--loss", choices=losses, default=losses[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="dense bf16; an H100's by default")
    parser.add_argument("--bandwidth", type=float, default=3350.0, help="GB/s; an H100's by default")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    """Measure and print each phase; the first step warms up."""
    accelerator = Accelerator(mixed_precision="bf16")
    student = make_model(args.student, torch.float32).to(accelerator.device)
    teacher_model = make_model(args.teacher, torch.bfloat16).to(accelerator.device)
    engine = HFRollouts(
        student, params=SamplingParams(NucleusSampling(1.0, 1.0), args.group, args.tokens, frozenset(), 0), pad_id=0,
        vocab_size=VOCABULARY, batch_size=args.batch, autocast=accelerator.autocast, say=print,
    )  # fmt: skip
    scorer, judge = TokenScorer(student, VOCABULARY), TokenScorer(teacher_model, VOCABULARY)
    if args.loss == "reverse_kl":
        teacher, loss = WholeDistributionTeacher(judge, accelerator.device), WholeDistributionLoss(reverse_kl)
    else:
        teacher = LocalTeacher(judge, accelerator.device)
        loss = SampledTokenLoss(policy_gradient, policy_gradient, 1.0, 0.0)
    updates = make_updates(accelerator, scorer, weight_decay=0.0, max_grad_norm=1.0)
    for each in (scorer, judge):
        each.shares_prompts = args.group > 1 and can_share_prompts(each)
    shared = scorer.shares_prompts and judge.shares_prompts
    micro_batches = MicroBatches(args.microbatch_tokens, shares_prompts=shared)
    learner = Learner(accelerator, updates, loss, lambda _: 1e-6, 0, SmallerMicroBatches(micro_batches, print))
    prompts = [(i, Prompt(tuple(range(i + 1, i + 1 + args.prompt)), "", "")) for i in range(args.batch // args.group)]
    cut = partial(
        split_substeps, batch_size=args.batch // args.group, group_size=args.group, num_substeps=1, grad_accum=1,
        num_processes=1, micro_batches=micro_batches, pad_id=0,
    )  # fmt: skip
    for step in range(args.steps + 1):
        sampling, rollouts = timed(accelerator, lambda step=step: engine.sample(prompts, step))
        batches = cut(rollouts)
        scoring, scored = timed(accelerator, lambda batches=batches: [[teacher.score(b) for b in s] for s in batches])
        training, metrics = timed(accelerator, lambda scored=scored, step=step: learner.update(scored, step))
        if step:
            report(args, student, teacher_model, sampling, scoring, training, metrics["reverse_kl"])
    ids = torch.tensor([prompt.ids for _, prompt in prompts for _ in range(args.group)], device=accelerator.device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
    for step in range(args.steps + 1):
        work = partial(plain_step, args, accelerator, student, teacher_model, optimizer, ids)
        seconds, divergence = timed(accelerator, work)
        if step:
            rate = args.batch * args.tokens / seconds
            print(f"plain    {seconds:8.3f} s {rate:9.0f} tok/s  reverse KL {divergence:.3f}", flush=True)


def plain_step(
    args: argparse.Namespace, accelerator: Accelerator, student: PreTrainedModel, teacher: PreTrainedModel,
    optimizer: torch.optim.Optimizer, ids: Tensor,
) -> float:  # fmt: skip
    """On-policy distillation without this package; as many rows at a time as keep the logits within 8 GiB."""
    with torch.no_grad(), accelerator.autocast():
        drawn = student.generate(
            ids, do_sample=True, top_k=0, max_new_tokens=args.tokens, min_new_tokens=args.tokens, pad_token_id=0
        )
    total = 0.0
    for rows in drawn.split(max(1, 2**31 // (drawn.shape[1] * VOCABULARY))):
        with torch.no_grad():
            q = teacher(rows).logits[:, args.prompt - 1 : -1].float().log_softmax(-1)
        with accelerator.autocast():
            p = student(rows).logits[:, args.prompt - 1 : -1].float().log_softmax(-1)
        loss = (p.exp() * (p - q)).sum() / (args.batch * args.tokens)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def report(
    args: argparse.Namespace, student: PreTrainedModel, teacher: PreTrainedModel, sampling: float, scoring: float,
    training: float, divergence: float,
) -> None:  # fmt: skip
    """One line a phase."""
    tokens, peak = args.batch * args.tokens, args.peak_tflops * 1e12
    weights = sum(p.numel() for p in student.parameters()) * 4  # decoded from the fp32 masters under autocast
    cache = 2 * student.config.num_hidden_layers * student.config.num_key_value_heads * student.config.head_dim * 2
    read = args.tokens * (weights + args.batch * (args.prompt + args.tokens / 2) * cache)
    mfu_scoring = forward_flops(teacher, args) / scoring / peak
    mfu_training = 3 * forward_flops(student, args) / training / peak
    share = read / sampling / (args.bandwidth * 1e9)
    print(f"sampling {sampling:8.3f} s {tokens / sampling:9.0f} tok/s  {share:.1%} of the memory bandwidth")
    print(f"scoring  {scoring:8.3f} s {tokens / scoring:9.0f} tok/s  MFU {mfu_scoring:.1%}")
    print(f"training {training:8.3f} s {tokens / training:9.0f} tok/s  MFU {mfu_training:.1%}")
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    total = sampling + scoring + training
    print(
        f"step     {total:8.3f} s {tokens / total:9.0f} tok/s  peak {memory:.1f} GiB  reverse KL {divergence:.3f}",
        flush=True,
    )


def forward_flops(model: PreTrainedModel, args: argparse.Namespace) -> float:
    """Of one pass over the whole batch."""
    config, length = model.config, args.prompt + args.tokens
    embeddings = VOCABULARY * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    layers = 2 * (sum(p.numel() for p in model.parameters()) - embeddings) * length
    head = 2 * VOCABULARY * config.hidden_size * args.tokens
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length**2 / 2
    return args.batch * (layers + head + attention)


def make_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights of a real shape."""
    hidden, feed_forward, layers, heads, kv_heads, tied = SHAPES[name]
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=128, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: PreTrainedModel = Qwen3ForCausalLM._from_config(config, dtype=dtype)
    return model


def timed(accelerator: Accelerator, work: Callable[[], object]) -> tuple[float, object]:
    """Seconds of a piece of work, to the end of what it queued, and its result."""
    start = time.perf_counter()
    result = work()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
