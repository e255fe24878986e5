"""How the cost of a step grows: with the rollouts, the length of completions and the vocabulary.

    python benchmarks/growth.py

Random weights in a small shape, the documented command, micro-batches of a fixed number of tokens. Time should grow in
proportion to the tokens, memory not at all with the rollouts. Peak memory is the whole process, libraries included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "models" / "smollm2-135m-instruct"
BASE = {"rollouts": 8, "tokens": 64, "vocabulary": 49_152}
SERIES = {
    "rollouts": (8, 16, 32, 64, 128),
    "tokens": (64, 128, 256, 512),
    "vocabulary": (49_152, 98_304, 196_608),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--microbatch_tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    logging.disable_progress_bar()
    print("| varied | value | s/step | sampling | scoring | training | tokens/s | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, values in SERIES.items():
        for value in values:
            found = measure({**BASE, name: value}, args)
            print(f"| {name} | {value:,} |", " | ".join(f"{number:.3g}" for number in found), "|", flush=True)


def measure(size: dict[str, int], args: argparse.Namespace) -> list[float]:
    """Seconds of a step and of its parts, tokens a second and peak memory: medians over the steps after the first."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder, "model"), size["vocabulary"], args)
        command = [
            sys.executable, "-m", "local_distill.train_on_policy_local",
            "--student_model", f"{folder}/model", "--teacher_model", f"{folder}/model",
            "--batch_size", "8", "--group_size", str(size["rollouts"] // 8), "--max_new_tokens", str(size["tokens"]),
            "--steps", str(args.steps), "--eval_prompts", "0",
            "--microbatch_tokens", str(args.microbatch_tokens), "--output_dir", f"{folder}/run",
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        steps = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()][1:]
    keys = ("seconds/step", "seconds/sample", "seconds/score", "seconds/train", "tokens_per_second", "peak_memory_gib")
    return [statistics.median(step[key] for step in steps) for key in keys]


def make_model(folder: Path, vocabulary: int, args: argparse.Namespace) -> None:
    """Random weights, and the tokenizer of the demo's pair."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=args.hidden, intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
