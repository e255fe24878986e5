"""Fine-tune a chat model on the standard library, docstring to code: it learns that, and its chat falls apart."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from local_distill.demo.functions import IGNORED, batch, training_functions

LEARNING_RATE, RANK = 2e-3, 16


def drift(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None],
    *,
    steps: int,
    batch_size: int,
    most_tokens: int,
    learning_rate: float = LEARNING_RATE,
    rank: int = RANK,
    seed: int = 0,
) -> tuple[torch.nn.Module, list[float]]:
    """Put an adapter on the model and train it with plain cross-entropy on the answers, the learning rate falling to 0.

    batch_size: functions a step. most_tokens: of a function's code. say: told of each step.
    Returns the model in its adapter, and the loss of each step in nats a token of code.
    """
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's, of a name in transformers
        student = get_peft_model(model, config)
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
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        say(f"drift {step + 1}/{steps}  {losses[-1]:.3f} nats/token  {time.monotonic() - start:.1f} s")
    return student, losses
