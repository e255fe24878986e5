"""Fine-tune a chat model on the standard library, docstring to code: it learns that, and its chat falls apart.

python examples/repair/drift.py models/smollm2-135m-instruct runs/repair/drifted
"""

import argparse
import time
from pathlib import Path

import torch
from functions import IGNORED, batch, training_functions
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id or local folder of the chat model")
    parser.add_argument("adapter", type=Path, help="folder for the adapter")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=8, help="functions a step")
    parser.add_argument("--most_tokens", type=int, default=96, help="of a function's code")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    drift(**vars(parser.parse_args()))


def drift(
    model: str, adapter: Path, steps: int, batch_size: int, most_tokens: int, learning_rate: float, rank: int, seed: int
) -> list[float]:
    """Train an adapter and save it. Returns the loss of each step, in nats a token of code."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    student = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    functions = training_functions(seed)
    trainable = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for step in range(steps):
        start = time.monotonic()
        ids, labels = batch(tokenizer, functions[step * batch_size : (step + 1) * batch_size], most_tokens)
        logits = student(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        print(f"drift {step + 1}/{steps}  {losses[-1]:.3f} nats/token  {time.monotonic() - start:.1f} s", flush=True)
    student.save_pretrained(adapter)
    return losses


if __name__ == "__main__":
    main()
