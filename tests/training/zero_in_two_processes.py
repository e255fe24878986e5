"""One process of a student under ZeRO, for torchrun: STAGE KIND FOLDER. KIND is full (head and embedding tied) or lora.

Writes what it found to FOLDER/rank-N.json; sizes in bytes, of the tensors that were made meanwhile.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from functools import partial
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, GenerationConfig

from local_distill.batch import TokenBatch
from local_distill.models.adapters import LoraSettings, add_lora, load_lora
from local_distill.models.scorer import TokenScorer
from local_distill.plan.rehearsal import StorageCount
from local_distill.process.distributed import on_main_process
from local_distill.runs.checkpoints import open_checkpoint
from local_distill.serving.client import HttpClient
from local_distill.serving.publishing import AdapterPublisher, WeightsPublisher
from local_distill.training.checkpoint import Checkpointer, moments_of
from local_distill.training.optimizer import Updates, make_updates
from tests.fake_vllm import FakeVLLM
from tests.tiny_models import llama_config, make_model, make_tokenizer

V, MICRO_BATCHES = 300, 32


class OnDevice(TorchFunctionMode):
    """Counts the whole tensors that DeepSpeed has gathered, into zeros, and that were not moved to the CPU since."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.now = self.now + 1 if func is torch.zeros_like else 0 if func is torch.Tensor.cpu else self.now
        self.most = max(self.most, self.now)
        return func(*args, **(kwargs or {}))


def wrap(model: nn.Module, stage: int) -> tuple[Accelerator, Updates]:
    AcceleratorState._reset_state()
    accelerator = Accelerator()
    accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"] = stage
    return accelerator, make_updates(accelerator, TokenScorer(model, V), weight_decay=0.0, max_grad_norm=0.1)


def batch_of(process: int) -> TokenBatch:
    ids = torch.arange(1, 17)[None] + 7 * process
    return TokenBatch(ids, torch.ones_like(ids), torch.arange(15), ids[0, 1:], torch.zeros(15), (15,))


def loss_of(hidden: Tensor, head: object, _: Tensor) -> Tensor:
    return (hidden @ head.weight.T).float().square().mean()


def half(updates: Updates, process: int, last: bool) -> None:
    with updates.accumulating(last):
        updates.backward(updates.student(batch_of(process), loss_of), last)


def backward(updates: Updates, process: int, times: int) -> None:
    for i in range(times):
        half(updates, process, last=i == times - 1)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative one of a weight's gradients."""
    return max(float((ours[n] - g).norm() / g.norm()) for n, g in theirs.items() if g.any())


def published(
    updates: Updates, accelerator: Accelerator, model: nn.Module, folder: Path, kind: str
) -> tuple[int, Path]:
    """(bytes at most, where the server was told that they are); the adapter's in the model's own precision."""
    server = FakeVLLM()
    client = HttpClient([server.url], flag="--x", key_variable="NONE", timeout=5, patience=1, concurrency=1)
    on_main, barrier = partial(on_main_process, accelerator), accelerator.wait_for_everyone
    shared = client, lambda: updates.version, folder, on_main, barrier
    publisher = (
        AdapterPublisher(*shared, model=model)
        if kind == "lora"
        else WeightsPublisher(*shared, model=model, base="base", dtype=torch.bfloat16)
    )
    with StorageCount() as storages:
        publisher.publish()
    where = Path(str(next(iter(server.adapters.values()), server.loaded)))
    client.close()
    server.close()
    return storages.peak, where


def main(stage: int, kind: str, folder: Path) -> None:
    process = PartialState(cpu=True).process_index
    model = make_model(llama_config(layers=2, tie_word_embeddings=kind == "full"))
    if kind == "lora":
        model = add_lora(model.bfloat16(), LoraSettings(4, 8, 0.0, "all-linear"), seed=0)
    plain = TokenScorer(copy.deepcopy(model).bfloat16(), V)
    accelerator, updates = wrap(model, stage)
    sizes = [p.numel() for p in trained(model).values()]
    found: dict[str, object] = {"trained": sum(sizes), "largest": max(sizes)}

    found["to_come"] = updates.to_come()
    with StorageCount() as storages:
        half(updates, process, last=False)
        accelerator.wait_for_everyone()  # gloo's thread lets go of what it sent last
    found["gradients"] = storages.now
    half(updates, process, last=True)
    updates.apply(0.0, loss_is_finite=True)
    updates.backward(updates.student(batch_of(process), loss_of) * (math.nan if process else 1.0), last=True)
    found["applied"] = updates.apply(1e-2, loss_is_finite=True).applied
    backward(updates, process, 1)
    once = {name: safe_get_full_grad(p).clone() for name, p in trained(model).items()}
    for each in range(2):
        (plain(batch_of(each), loss_of) / 2).backward()
    found["off_by_processes"] = distance(once, {n: p.grad.float() for n, p in trained(plain.model).items()})
    updates.apply(0.0, loss_is_finite=True)
    backward(updates, process, MICRO_BATCHES)
    often = {name: safe_get_full_grad(p).clone() for name, p in trained(model).items()}
    found["off_by_micro_batches"] = distance(often, {n: MICRO_BATCHES * g for n, g in once.items()})
    updates.apply(1e-2, loss_is_finite=True)

    settings = GenerationConfig(eos_token_id=0), {}, folder, 1
    with StorageCount() as storages, OnDevice() as gathered:
        Checkpointer(accelerator, updates, model, make_tokenizer(), *settings).save(2)
    found["saving"], found["gathered"] = storages.peak, gathered.most
    masters = {name: safe_get_full_fp32_param(p) for name, p in trained(model).items()}
    found["publishing"], where = published(updates, accelerator, model, folder, kind)
    if process == 0:
        weights = load_file(next(where.glob("*.safetensors")))
        pairs = [(weights[n.replace(".default", "")], master) for n, master in masters.items()]
        found["published"] = all(torch.equal(sent, master.bfloat16()) for sent, master in pairs)

    checkpoint = open_checkpoint(folder / "step-2")
    if kind == "lora":
        again = load_lora(make_model(llama_config(layers=2, tie_word_embeddings=False)).bfloat16(), checkpoint.path)
    else:
        again = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    _, resumed = wrap(again, stage)
    resumed.load_optimizer_state(moments_of(checkpoint))
    for each in (updates, resumed):
        backward(each, process, 2)
        each.apply(1e-2, loss_is_finite=True)
    ours, theirs = (each.model_state() | each.optimizer_state() for each in (updates, resumed))
    found["resumed"] = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    found["kept"] = len(ours)
    (folder / f"rank-{process}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()
    accelerator.end_training()  # else gloo's threads may still run when the interpreter has ended, which aborts it


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
