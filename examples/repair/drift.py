"""Fine-tune a chat model on the standard library, docstring to code: it learns that, and its chat falls apart.

python examples/repair/drift.py models/smollm2-135m-instruct runs/repair/drifted
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from local_distill.demo.drift import LEARNING_RATE, RANK, drift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id or local folder of the chat model")
    parser.add_argument("adapter", type=Path, help="folder for the adapter")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=8, help="functions a step")
    parser.add_argument("--most_tokens", type=int, default=96, help="of a function's code")
    parser.add_argument("--learning_rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--seed", type=int, default=0)
    save_drifted(**vars(parser.parse_args()))


def save_drifted(model: str, adapter: Path, **settings: float) -> list[float]:
    """Train an adapter and save it. Returns the loss of each step, in nats a token of code."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    student, losses = drift(whole, AutoTokenizer.from_pretrained(model), print, **settings)
    student.save_pretrained(adapter)
    return losses


if __name__ == "__main__":
    main()
