"""Samplers and teachers on the same work: what each makes of a step.

    make test-servers                        # once: it sets vLLM up
    PYTHONPATH=. python benchmarks/engines.py

SmolLM2-135M with an adapter learns from itself without it. A server gets one processor core and training the other, in
all rows, as if each had a device of its own: so what --overlap gains is what waiting costs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers.vllm_server import MODEL, ROOT, VLLMServer

ITSELF = ["--teacher_backend", "self"]
SAMPLERS = {
    "hf": [*ITSELF, "--rollouts", "hf"],
    "vLLM server": [*ITSELF, "--rollouts_url", "URL"],
    "vLLM server, --overlap": [*ITSELF, "--rollouts_url", "URL", "--overlap"],
}
TEACHERS = {
    "in this process": ["--teacher_model", str(MODEL)],
    "itself": ITSELF,
    "offloaded": ["--teacher_model", str(MODEL), "--teacher_offload", "cpu"],
    "vLLM server": ["--teacher_url", "URL"],
}
KEYS = ("seconds/step", "seconds/sample", "seconds/score", "seconds/train", "tokens_per_second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="completions a step")
    parser.add_argument("--tokens", type=int, default=32, help="most new tokens of a completion")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    os.sched_setaffinity(0, {1})
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0"
    # With adapters, vLLM's CPU build cannot score: see tests/servers/vllm_server.py.
    for what, rows, lora in (("sampler", SAMPLERS, True), ("teacher", TEACHERS, False)):
        with tempfile.TemporaryDirectory() as folder:
            server = VLLMServer(Path(folder, "server.log"), lora=lora)
            try:
                server.start()
                rounds = [{name: measure(rows[name], server.url, args) for name in rows} for _ in range(args.rounds)]
            finally:
                server.kill()
        print(f"| {what} | s/step | sampling | scoring | training | tokens/s |\n| --- | --- | --- | --- | --- | --- |")
        for name in rows:
            numbers = [statistics.median(each[name][i] for each in rounds) for i in range(len(KEYS))]
            print(f"| {name} |", " | ".join(f"{number:.3g}" for number in numbers), "|", flush=True)


def measure(flags: list[str], url: str, args: argparse.Namespace) -> list[float]:
    """Medians over the steps after the second, by which what is ahead is ahead."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "local_distill.train_on_policy_local", "--student_model", str(MODEL), "--use_lora",
            "--lora_r", "16", "--loss", "importance_sampling", "--batch_size",
            str(args.batch), "--group_size", "1", "--max_new_tokens", str(args.tokens), "--max_prompt_tokens", "128",
            "--steps", str(args.steps), "--eval_prompts", "0", *(url if flag == "URL" else flag for flag in flags),
            "--output_dir", f"{folder}/run",
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        steps = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()][2:]
    return [statistics.median(step[key] for step in steps) for key in KEYS]


if __name__ == "__main__":
    main()
