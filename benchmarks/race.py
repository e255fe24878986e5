"""Who learns most in the same time: ways to distil the same teacher into the same student, on the same machine.

    pip install -e '.[bench]'
    python benchmarks/race.py runs/race --seconds 240 --seeds 3          # equal seconds of training
    python benchmarks/race.py runs/race --tokens 12000 --seeds 3         # equal completion tokens
    python benchmarks/race.py runs/race --seconds 240 --only ours

Contenders run in turn, seed after seed, each in a process of its own. A run's seconds are those of its steps: loading
and evaluating are left out on both sides. What each has learned is judged by race_judge.py, which knows neither, on
prompts that no run trains on. What a former call has finished is kept; the folder then holds race.json with all
numbers, and the table is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
PROMPTS = ROOT / "local_distill" / "prompts" / "builtin.txt"
STEPS = 100_000
"""More than any run comes to: a budget ends it."""
CONTENDERS: dict[str, dict[str, str]] = {
    **{f"trl, {rate}": {"learning_rate": rate} for rate in ("5e-5", "1e-4", "2e-4")},
    "ours": {},
    "ours, 2e-4": {"learning_rate": "2e-4"},
    "ours, β₂ 0.95": {"adam_beta2": "0.95"},
    "ours, two epochs": {"epochs_per_batch": "2"},
    "ours, four updates of 32 prompts": {"batch_size": "32", "num_substeps": "4"},
    "ours, half by the teacher": {"teacher_share": "0.5"},
    "ours, all by the teacher": {"teacher_share": "1"},
    "ours, all by the teacher, forward KL": {"teacher_share": "1", "loss": "forward_kl"},
}
"""What each is told beyond the common settings; one whose name begins with trl is TRL's DistillationTrainer."""
LEARNING_RATE = "1e-4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--student", default=str(ROOT / "models" / "smollm2-99m-pruned"))
    parser.add_argument("--teacher", default=str(ROOT / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="of steps; the step that passes it is the last")
    parser.add_argument("--tokens", type=float, default=math.inf, help="of completions, likewise")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="prompts a step")
    parser.add_argument("--new_tokens", type=int, default=48, help="most of a completion")
    parser.add_argument("--train_prompts", type=int, default=0, help="0: all that are not held out")
    parser.add_argument("--held_out", type=int, default=48)
    parser.add_argument("--only", default="", help="contenders whose names begin so")
    parser.add_argument("--trl_child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trl_child:
        trl(args, *args.trl_child)
        return
    if math.isinf(args.seconds) and math.isinf(args.tokens):
        parser.error("give --seconds or --tokens")
    args.folder.mkdir(parents=True, exist_ok=True)
    write_prompts(args)
    start = judged(args, args.student)
    results: list[dict[str, object]] = []
    for seed in range(args.seeds):
        for name in chosen(args.only):
            results.append({"contender": name, "seed": seed, **run(args, name, seed)})
            keep(args, start, results)
            print(json.dumps(results[-1]), flush=True)
    print(f"\n{table(start, results)}")


def chosen(only: str) -> list[str]:
    """The contenders that take part."""
    return [name for name in CONTENDERS if name.startswith(only)]


def write_prompts(args: argparse.Namespace) -> None:
    """Those to judge on and those to train on, apart."""
    lines = [line for line in PROMPTS.read_text(encoding="utf-8").splitlines() if line.strip()]
    held_out, rest = lines[: args.held_out], lines[args.held_out :]
    (args.folder / "held_out.txt").write_text("\n".join(held_out), encoding="utf-8")
    (args.folder / "prompts.txt").write_text("\n".join(rest[: args.train_prompts or None]), encoding="utf-8")


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """What a contender has learned when its budget is spent; from a file if it has been here before."""
    place = args.folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    told = place / "judged.json"
    if not told.is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        spent, model = (trl_run if name.startswith("trl") else our_run)(args, name, seed, place)
        told.write_text(json.dumps({**spent, **judged(args, str(model))}))
        shutil.rmtree(model)
    found: dict[str, float] = json.loads(told.read_text())
    return found


def judged(args: argparse.Namespace, model: str) -> dict[str, float]:
    """The measures of race_judge.py, in a process of its own."""
    judge = [sys.executable, str(ROOT / "benchmarks" / "race_judge.py"), model, args.teacher]
    told = ["--tokens", str(args.new_tokens)]
    found = subprocess.run(
        [*judge, str(args.folder / "held_out.txt"), *told], check=True, capture_output=True, text=True
    )
    measures: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return measures


def our_run(args: argparse.Namespace, name: str, seed: int, place: Path) -> tuple[dict[str, float], Path]:
    """The documented command, asked to stop as soon as its budget is spent."""
    settings = {
        "student_model": args.student, "teacher_model": args.teacher, "prompts_file": args.folder / "prompts.txt",
        "batch_size": args.batch, "group_size": 1, "max_new_tokens": args.new_tokens, "steps": STEPS, "seed": seed,
        "dtype": "fp32", "eval_prompts": 0, "save_every": 0, "output_dir": (place / "run").resolve(),
        "learning_rate": LEARNING_RATE,
        **CONTENDERS[name],
    }  # fmt: skip
    words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "local_distill.train_on_policy_local", *words]
    with (place / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None and not is_spent(args, *spent_so_far(place / "run")[:2]):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait()
    seconds, tokens, steps = spent_so_far(place / "run")
    checkpoint = place / "run" / f"step-{steps}"
    return {"seconds": seconds, "tokens": tokens, "steps": steps}, checkpoint


def spent_so_far(run: Path) -> tuple[float, float, int]:
    """Seconds, completion tokens and steps of the records that are there."""
    steps = list(records(run / "metrics.jsonl"))
    return sum(s["seconds/step"] for s in steps), sum(s["tokens"] for s in steps), len(steps)


def records(file: Path) -> Iterator[dict[str, float]]:
    """The whole lines about steps; the last one may be under way."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return (found for line in lines if line.endswith("\n") and "seconds/step" in (found := json.loads(line)))


def is_spent(args: argparse.Namespace, seconds: float, tokens: float) -> bool:
    """Whether one of the budgets is."""
    return seconds >= args.seconds or tokens >= args.tokens


def trl_run(args: argparse.Namespace, name: str, seed: int, place: Path) -> tuple[dict[str, float], Path]:
    """TRL's trainer in a process of its own: this script again."""
    rest = [word for key in ("student", "teacher", "seconds", "tokens", "batch", "new_tokens")
            for word in (f"--{key}", str(getattr(args, key)))]  # fmt: skip
    command = [sys.executable, __file__, str(args.folder), *rest, "--seeds", str(seed), "--trl_child", name, str(place)]
    with (place / "output.txt").open("w") as output:
        subprocess.run(command, check=True, stdout=output, stderr=subprocess.STDOUT)
    spent: dict[str, float] = json.loads((place / "spent.json").read_text())
    return spent, place / "model"


def trl(args: argparse.Namespace, name: str, place: str) -> None:
    """TRL's trainer with its own defaults for everything that is not part of the task."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    spent = {"seconds": 0.0, "tokens": 0.0, "steps": 0}

    class Budget(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            spent["seconds"] -= time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            spent["seconds"] += time.perf_counter()
            spent["steps"] += 1

        def on_log(self, *known: Any, logs: dict[str, float], **__: object) -> None:
            spent["tokens"] += logs.get("completions/mean_length", 0.0) * args.batch
            known[-1].should_training_stop = is_spent(args, spent["seconds"], spent["tokens"])

    prompts = (args.folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    config = DistillationConfig(
        output_dir=f"{place}/trl", per_device_train_batch_size=args.batch, gradient_accumulation_steps=1,
        max_steps=STEPS, max_completion_length=args.new_tokens, temperature=1.0, top_p=1.0, top_k=0, beta=1.0,
        bf16=False, use_cpu=not torch.cuda.is_available(), logging_steps=1, report_to=[], save_strategy="no",
        disable_tqdm=True, seed=args.seeds, lr_scheduler_type="constant",
        learning_rate=float(CONTENDERS[name]["learning_rate"]), teacher_model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(args.student)
    trainer = DistillationTrainer(
        model=args.student, teacher_model=args.teacher, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[Budget()],
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(f"{place}/model")
    tokenizer.save_pretrained(f"{place}/model")
    Path(place, "spent.json").write_text(json.dumps(spent))


def keep(args: argparse.Namespace, start: dict[str, float], results: list[dict[str, object]]) -> None:
    """All numbers so far, with what they were obtained on."""
    about = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
             "torch": torch.__version__, "command": " ".join(sys.argv)}  # fmt: skip
    text = json.dumps({"about": about, "start": start, "runs": results}, indent=1, ensure_ascii=False)
    (args.folder / "race.json").write_text(text + "\n", encoding="utf-8")


def table(start: dict[str, float], results: list[dict[str, object]]) -> str:
    """Means over seeds, with standard errors over seeds where there are several."""
    lines = ["| | seconds | tokens | steps | reverse KL | forward KL | length | repeated |", f"|{' --- |' * 8}"]
    lines.append(row("before", [start]))
    for name in dict.fromkeys(str(result["contender"]) for result in results):
        lines.append(row(name, [result for result in results if result["contender"] == name]))
    return "\n".join(lines)


def row(name: str, runs: list[dict[str, float]]) -> str:
    """One contender, over its seeds."""

    def mean(key: str, digits: int) -> str:
        values = [run[key] for run in runs if key in run]
        if not values:
            return ""
        error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{error}"

    columns = [("seconds", 0), ("tokens", 0), ("steps", 0), ("reverse_kl", 3), ("forward_kl", 3), ("length", 1),
               ("repeated", 3)]  # fmt: skip
    return f"| {name} | {' | '.join(mean(key, digits) for key, digits in columns)} |"


if __name__ == "__main__":
    main()
