"""A whole training step against TRL's DistillationTrainer: the same models, prompts, batch and lengths.

    pip install -e '.[bench]'
    python benchmarks/whole_step.py                  # fp32, all weights
    python benchmarks/whole_step.py --dtype bf16
    python benchmarks/whole_step.py --lora
    python benchmarks/whole_step.py --group 8 --prompt_tokens 330 --steps 3    # 8 completions of one prompt a step

Both distil the exact reverse KL over the whole vocabulary. They run in turn, each in a process of its own, so that a
machine whose speed drifts slows both; the ratios are taken pair by pair and their median is what to quote. The first
step of every run, which warms up, is left out.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
PROMPTS = ROOT / "local_distill" / "prompts" / "builtin.txt"
LEARNING_RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default=str(ROOT / "models" / "smollm2-99m-pruned"))
    parser.add_argument("--teacher", default=str(ROOT / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="for ours too; TRL's default is on")
    parser.add_argument("--microbatch_tokens", help="for ours alone; TRL counts rollouts")
    parser.add_argument("--batch", type=int, default=8, help="completions a step")
    parser.add_argument("--group", type=int, default=1, help="completions of each prompt; TRL is given it as often")
    parser.add_argument("--prompt_tokens", type=int, default=0, help="of longer prompts, made of several built-in ones")
    parser.add_argument("--tokens", type=int, default=64, help="most new tokens of a completion")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("trl",), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(trl(args)))
        return
    rate = products_per_second()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s in a float32 product"
    )
    pairs = [(ours(args), in_process_of_its_own()) for _ in range(args.rounds)]
    for name, runs in zip(("local-distill", "TRL"), zip(*pairs, strict=True), strict=True):
        numbers = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(f"{name:14}", "  ".join(f"{key} {value:.2f}" for key, value in numbers.items()))
    speed = [mine["tokens/s"] / theirs["tokens/s"] for mine, theirs in pairs]
    memory = [mine["peak GiB"] / theirs["peak GiB"] for mine, theirs in pairs]
    for what, ratios in (("tokens/s", speed), ("peak memory", memory)):
        print(
            f"{what}, ours / TRL: {statistics.median(ratios):.2f} (", ", ".join(f"{r:.2f}" for r in ratios), ")", sep=""
        )


def ours(args: argparse.Namespace) -> dict[str, float]:
    """One run of the documented command."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.txt")
        prompts.write_text("\n".join(prompts_of(args)), encoding="utf-8")
        command = [
            sys.executable, "-m", "local_distill.train_on_policy_local",
            "--student_model", args.student, "--teacher_model", args.teacher, "--prompts_file", str(prompts),
            "--batch_size", str(args.batch // args.group), "--group_size", str(args.group),
            "--max_new_tokens", str(args.tokens), "--max_prompt_tokens", "1024",
            "--dtype", args.dtype,
            "--learning_rate", str(LEARNING_RATE), "--steps", str(args.steps), "--eval_prompts", "0",
            "--output_dir", f"{folder}/run", *(["--use_lora"] if args.lora else []),
            *(["--gradient_checkpointing"] if args.gradient_checkpointing else []),
            *(["--microbatch_tokens", args.microbatch_tokens] if args.microbatch_tokens else []),
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        steps = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()][1:]
    tokens = [step["completion_tokens"] * args.batch for step in steps]
    return {
        "s/step": statistics.median(step["seconds/step"] for step in steps),
        "tokens/s": sum(tokens) / sum(step["seconds/step"] for step in steps),
        "peak GiB": max(step["peak_memory_gib"] for step in steps),
        **{
            f"s {part}": statistics.median(s[f"seconds/{part}"] for s in steps) for part in ("sample", "score", "train")
        },
    }


def prompts_of(args: argparse.Namespace) -> list[str]:
    """As many as the steps take, each a line; longer ones are several lines of the built-in file."""
    from transformers import AutoTokenizer

    lines = [line for line in PROMPTS.read_text(encoding="utf-8").splitlines() if line.strip()]
    count = args.batch // args.group * args.steps
    if not args.prompt_tokens:
        return lines[:count]
    tokenizer = AutoTokenizer.from_pretrained(args.student)
    prompts = []
    for first in range(count):
        ids = tokenizer(" ".join(lines[first:] + lines[:first]), add_special_tokens=False).input_ids
        prompts.append(tokenizer.decode(ids[: args.prompt_tokens]).replace("\n", " "))
    return prompts


def in_process_of_its_own() -> dict[str, float]:
    """The same by TRL: this script again."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", "trl"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return numbers


def trl(args: argparse.Namespace) -> dict[str, float]:
    """TRL's trainer with its own defaults for everything that is not part of the task."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds[-1] += time.perf_counter()

    rows = [{"prompt": [{"role": "user", "content": p}]} for p in prompts_of(args) for _ in range(args.group)]
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[args.dtype]
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder, per_device_train_batch_size=args.batch, gradient_accumulation_steps=1,
            max_steps=args.steps, max_completion_length=args.tokens, learning_rate=LEARNING_RATE, temperature=1.0,
            top_p=1.0, top_k=0, beta=1.0, bf16=args.dtype == "bf16", use_cpu=not torch.cuda.is_available(),
            logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
            teacher_model_init_kwargs={"dtype": dtype},
        )  # fmt: skip
        trainer = DistillationTrainer(
            model=args.student, teacher_model=args.teacher, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(args.student), callbacks=[Clock()],
            peft_config=LoraConfig(r=32, lora_alpha=64, target_modules="all-linear") if args.lora else None,
        )  # fmt: skip
        trainer.train()
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "completions/mean_length" in log]
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tokens = [length * args.batch for length in lengths[: args.steps]]
    return {
        "s/step": statistics.median(seconds[1:]),
        "tokens/s": sum(tokens[1:]) / sum(seconds[1:]),
        "peak GiB": peak,
    }


def products_per_second(size: int = 2048) -> float:
    """What this machine can do: floating-point operations a second in a large float32 matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    start = time.perf_counter()
    for _ in range(3):
        a @ b
    return 3 * 2 * size**3 / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
