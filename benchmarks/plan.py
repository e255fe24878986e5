"""What local-distill plan says of a run's memory, against what the run takes: short real trainings on a processor.

    python benchmarks/plan.py              # all rows of docs/plan.md
    python benchmarks/plan.py --phases     # sampling, scoring and training apart as well
    python benchmarks/plan.py --only bf16
    LD_PRELOAD=libtcmalloc_minimal.so.4 python benchmarks/plan.py     # with another allocator than glibc's

Each training runs in a process of its own, which notes how much it holds when its libraries are loaded and nothing
else, and the most it has held when its models are loaded; its peak is the largest peak_memory_gib of metrics.jsonl.
With --phases, the allocator gives back what the phase before left behind, and the kernel begins its record of the most
resident memory anew, before each phase. The libraries and arithmetic are all that the prediction is made of, and with
glibc's allocator a guess of what its heap loses.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PROMPTS = ROOT / "local_distill" / "prompts" / "builtin.txt"
GIB = 2**30
PHASES = ("loading", "sampling", "scoring", "training")
COMMON = {
    "student_model": str(ROOT / "models" / "smollm2-99m-pruned"),
    "teacher_model": str(ROOT / "models" / "smollm2-135m-instruct"),
    "prompts_file": str(PROMPTS),
    "loss": "reverse_kl",
    "temperature": "1",
    "top_p": "1",
    "group_size": "1",
    "batch_size": "8",
    "max_new_tokens": "64",
    "max_prompt_tokens": "40",
    "steps": "4",
    "eval_prompts": "0",
    "save_every": "0",
}
ROWS: dict[str, dict[str, str | None]] = {
    "fp32, all weights": {},
    "bf16, all weights": {"dtype": "bf16"},
    "fp32, LoRA": {"use_lora": None},
    "bf16, LoRA": {"use_lora": None, "dtype": "bf16"},
    "fp32, gradient checkpointing": {"gradient_checkpointing": None, "batch_size": "16"},
    "fp32, LoRA, its own base as teacher": {"use_lora": None, "teacher_backend": "self"},
    "fp32, LoRA, gradient checkpointing": {"use_lora": None, "gradient_checkpointing": None, "batch_size": "16"},
    "fp32, LoRA, rank 8, 16 rollouts": {"use_lora": None, "lora_r": "8", "batch_size": "16"},
    "fp32, policy gradient, 512 new tokens": {"loss": "policy_gradient", "max_new_tokens": "512", "batch_size": "4"},
    "fp32, top 64": {"top_k": "64", "batch_size": "16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--student", default=COMMON["student_model"])
    parser.add_argument("--teacher", default=COMMON["teacher_model"])
    parser.add_argument("--phases", action="store_true", help="watch each phase apart")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args, settings = parser.parse_known_args()
    if args.child:
        train_and_watch(Path(args.child), args.phases, settings)
        return
    phases = PHASES if args.phases else PHASES[:1]
    print("GiB, predicted / measured\n")
    print(f"| run | libraries | {' | '.join(phases)} | peak | off by | seconds a step |")
    print("| --- | --- | --- | --- | --- |" + " --- |" * len(phases))
    models = {"student_model": args.student, "teacher_model": args.teacher}
    for name, changed in ROWS.items():
        if args.only in name:
            print(row(name, words({**models, **changed}), phases), flush=True)


def words(changed: dict[str, str | None]) -> list[str]:
    """The settings of a row as a command line."""
    settings = {**COMMON, **changed}
    if settings.get("teacher_backend") == "self":
        del settings["teacher_model"]
    return [word for name, value in settings.items() for word in (f"--{name}", value) if word is not None]


def row(name: str, settings: list[str], phases: tuple[str, ...]) -> str:
    """Predicted / measured, GiB; the median step."""
    measured = measure(settings, watched=len(phases) > 1)
    predicted = predict(settings, measured["libraries"])
    cells = [f"{measured['libraries'] / GIB:.2f}"]
    cells += [f"{predicted[phase] / GIB:.2f} / {measured[phase] / GIB:.2f}" for phase in phases]
    ours, peak = max(predicted.values()), measured["peak"]
    cells += [f"{ours / GIB:.2f} / {peak / GIB:.2f}", f"{100 * (ours / peak - 1):+.0f} %", f"{measured['seconds']:.2f}"]
    return f"| {name} | {' | '.join(cells)} |"


def measure(settings: list[str], watched: bool) -> dict[str, float]:
    """A real run."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "told.json")
        command = [sys.executable, __file__, "--child", str(told), *(["--phases"] if watched else []), *settings]
        subprocess.run([*command, "--output_dir", f"{folder}/run"], cwd=ROOT, check=True, capture_output=True)
        records = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        found: dict[str, float] = json.loads(told.read_text())
    peak = max(record.get("peak_memory_gib", 0.0) for record in records) * GIB
    seconds = [record["seconds/step"] for record in records if "seconds/step" in record]
    found["seconds"] = statistics.median(seconds[1:])  # the first step warms up
    return found | {"peak": max(peak, *(found.get(phase, 0.0) for phase in PHASES))}


def predict(settings: list[str], libraries: float) -> dict[str, float]:
    """The plan's phases for the same settings."""
    from dataclasses import replace

    from local_distill.commands.plan import PlanSettings
    from local_distill.config.parsing import parse
    from local_distill.plan.fitting import as_set
    from local_distill.plan.machine import planned_machine
    from local_distill.plan.memory import Memory
    from local_distill.plan.planned_run import open_run

    config = parse(PlanSettings, settings, prog="plan", usage="", description="")
    run = open_run(config, planned_machine(None, None), zero_stage=0)
    run = replace(run, machine=replace(run.machine, libraries=libraries))
    rows, rollouts = as_set(run)
    return {phase.name: phase.bytes for phase in Memory(run).phases(rollouts, rows)}


def train_and_watch(told: Path, phases: bool, settings: list[str]) -> None:
    """Train in this process; write down the most bytes at the points that are asked for."""
    from local_distill import build, loop, train_on_policy_local
    from local_distill.monitor.measuring import StepClock, _peak_resident_bytes
    from local_distill.plan.machine import resident

    found: dict[str, float] = {}
    names = dict(zip(("sample", "score", "train"), PHASES[1:], strict=True))

    class Watch(StepClock):
        @contextmanager
        def phase(self, name: str) -> Iterator[None]:
            forget_peak()
            with super().phase(name):
                yield
            found[names[name]] = max(found.get(names[name], 0.0), _peak_resident_bytes())

    def noting(act: Callable[..., Any], name: str, look: Callable[[], int]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            found[name] = float(look())
            return act(*arguments, **named)

        return noted

    if phases:
        loop.StepClock = Watch  # type: ignore[misc]
    build.distil = noting(build.distil, "loading", _peak_resident_bytes)
    build.load_student = noting(build.load_student, "libraries", resident)
    code = train_on_policy_local.main(settings)
    told.write_text(json.dumps(found))
    sys.exit(code)


def forget_peak() -> None:
    """Give back what was freed, and let the kernel begin its record of the most resident memory anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
