"""How large micro-batches are where nobody said: as large as the plan finds, on what is free beside what is there."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.scorer import TokenScorer
from local_distill.plan import fitting
from local_distill.plan.fitting import make_plan, micro_batch_tokens
from local_distill.plan.memory import GRADIENTS, OPTIMIZER, Memory
from local_distill.training.device_memory import ENOUGH_TOKENS
from local_distill.training.optimizer import ToCome, make_updates
from tests.plan.test_memory import run
from tests.tiny_models import llama_config, make_model

V = 300
LONG = {"lengths": (30, 90), "batch_size": 64, "group_size": 2, "loss": "reverse_kl"}


def updates_of(model):
    return make_updates(Accelerator(cpu=True), TokenScorer(model, V), weight_decay=0.0, max_grad_norm=1.0)


def adapted():
    return add_lora(make_model(llama_config()), LoraSettings(4, 8, 0.0, "all-linear"), seed=0)


@pytest.mark.parametrize("use_lora", [False, True])
def test_one_process_still_allocates_what_the_plan_says_a_resumed_one_its_gradients_alone(use_lora):
    model = adapted() if use_lora else make_model(llama_config())
    planned = Memory(run(use_lora=use_lora)).standing()
    new = updates_of(model)
    assert new.to_come() == (planned.of(GRADIENTS), planned.of(OPTIMIZER))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    new.apply(1e-3, loss_is_finite=True)
    resumed = updates_of(adapted() if use_lora else make_model(llama_config()))
    resumed.load_optimizer_state({})
    assert resumed.to_come() == (planned.of(GRADIENTS), planned.of(OPTIMIZER)), (
        "a checkpoint from before the first update has no moments"
    )
    resumed.load_optimizer_state(new.optimizer_state())
    assert resumed.to_come() == (planned.of(GRADIENTS), 0)


@pytest.fixture
def found(monkeypatch):
    """``found(free, run, to_come) -> (tokens, what was said)``, on a GPU with so many bytes free."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(fitting, "SHARE_OF_FREE", 1.0)
    monkeypatch.setattr(fitting, "reduce_max", lambda _, number: number)
    accelerator = SimpleNamespace(device=torch.device("cuda"))

    def find(free, planned, to_come, scorer=None):
        machine = dataclasses.replace(planned.machine, memory=free, libraries=0.0)
        here = dataclasses.replace(planned, machine=machine)
        monkeypatch.setattr(fitting, "run_that_starts", lambda *_: here)
        said = []
        inputs = SimpleNamespace(config=planned.config)
        return micro_batch_tokens(inputs, accelerator, scorer, to_come, said.append), said

    return find


@pytest.mark.parametrize(
    "launch",
    [{}, {"use_lora": True}, {"processes": 2}, {"processes": 4, "zero_stage": 2}, {"gradient_checkpointing": True}],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_run_finds_what_its_plan_found(found, launch, rows):
    """What is there when it looks: weights; of several processes the gradients; of ZeRO the moments."""
    planned = run(**launch, **LONG)
    memory = Memory(planned)
    full = max(memory.training(rows).bytes, memory.scoring(rows).bytes) * 1.0001
    plan = make_plan(Memory(dataclasses.replace(planned, machine=dataclasses.replace(planned.machine, memory=full))))
    standing = memory.standing()
    to_come = ToCome(
        0 if launch.get("processes") == 2 else standing.of(GRADIENTS),
        0 if launch.get("zero_stage") else standing.of(OPTIMIZER),
    )
    tokens, said = found(full - standing.bytes + sum(to_come), planned, to_come)
    assert tokens == plan.most_rows * planned.lengths.whole == rows * planned.lengths.whole
    assert said == []


def test_no_more_than_fills_the_device(found):
    assert found(2**50, run(**LONG), ToCome(0, 0)) == (ENOUGH_TOKENS["cuda"], [])


@pytest.mark.parametrize("free", [0, -5, 1000])
def test_where_not_one_rollout_fits_it_is_said_and_they_go_one_by_one(found, free):
    tokens, said = found(free, run(**LONG), ToCome(10, 10))
    assert tokens == 1
    assert "the longest, of 120 tokens, may not fit" in said[0]
    assert "--gradient_checkpointing" in said[0]


def test_a_model_that_cannot_be_rehearsed_is_tried_and_its_head_is_rehearsed_still(found, monkeypatch):
    monkeypatch.setattr("local_distill.plan.rehearsal.Costs.training", lambda *_: torch.ones(2).nonsense)
    planned, scorer = run(**LONG), TokenScorer(make_model(llama_config()), V)
    memory = Memory(planned)
    head = memory.training(3).passing
    assert memory.not_counted
    kept = fitting.activation_bytes(scorer)
    free = sum(part.bytes for part in head) + kept.fixed + 3 * 120 * kept.per_token
    assert found(free * 1.0001, planned, ToCome(0, 0), scorer)[0] == 3 * 120
    assert memory._costs.training_head(3).work > 3 * 90 * V * 4


def test_on_a_processor_it_is_what_fills_it():
    assert micro_batch_tokens(None, SimpleNamespace(device=torch.device("cpu")), None, ToCome(0, 0), print) == 1024
