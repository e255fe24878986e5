"""The pretended GPU computes what a processor computes, and refuses what CUDA refuses."""

import copy

import pytest
import torch
from torch import nn

from tests.pretended_gpu.device import missing, pretended_gpu

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(autouse=True)
def _gpu():
    with pretended_gpu():
        yield


HERE, THERE = torch.arange(12.0).reshape(3, 4), "cuda"
REFUSED = {
    "a sum of both": lambda x: x + torch.ones(4),
    "a sum into a tensor on the host": lambda x: torch.ones(3, 4).add_(x),
    "a number on the device into one on the host": lambda x: torch.zeros(()).add_(x.sum()),
    "a product": lambda x: x @ torch.ones(4, 2),
    "a lookup": lambda x: nn.functional.embedding(torch.tensor([1]), x),
    "gather": lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
    "a choice": lambda x: torch.where(x > 5, x, torch.zeros(3, 4)),
    "a mask": lambda x: x.masked_fill(torch.ones(3, 4, dtype=torch.bool), 0.0),
    "rows side by side": lambda x: torch.cat([x, torch.ones(1, 4)]),
    "whether one is in the other": lambda x: torch.isin(x, torch.tensor([1.0, 2.0])),
    "places on the device in a tensor on the host": lambda x: torch.arange(5)[torch.tensor([1], device=x.device)],
    "a linear layer": lambda x: nn.Linear(4, 2)(x),
}
TAKEN = {
    "a number": lambda x: 2 * x + 1.5,
    "a number as a tensor on the host": lambda x: x * torch.tensor(2.0),
    "places on the host": lambda x: x[torch.tensor([2, 0])],
    "a boolean mask": lambda x: x[x > 4],
    "what is written through a view": lambda x: x.clone().index_put_((torch.tensor([1]),), torch.tensor(7.0)).T[1:],
    "an attention": lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    "an output of another size": lambda x: torch.add(x, 1, out=x.new_empty(0)),
    "types": lambda x: torch.autocast(x.device.type, torch.bfloat16)(torch.matmul)(x, x.T),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_on_two_devices(name):
    x = HERE.to(THERE)
    with pytest.raises(RuntimeError, match=r"same device|should be either on cpu or on the same device"):
        REFUSED[name](x)


@pytest.mark.parametrize("name", TAKEN)
def test_what_cuda_takes_has_the_numbers_of_a_processor(name):
    found, expected = TAKEN[name](HERE.to(THERE)), TAKEN[name](HERE)
    assert found.device == torch.device("cuda:0")
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.cpu(), expected)


def test_training_has_the_numbers_of_a_processor_and_the_optimizer_wants_its_step_there():
    there = copy.deepcopy(here := nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))).to(THERE)
    optimizers = {model: torch.optim.AdamW(model.parameters(), lr=0.1, fused=True) for model in (here, there)}

    def step(model):
        x = HERE.to(next(model.parameters()).device)
        optimizers[model].zero_grad()
        model(x).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers[model].step()
        return norm

    for _ in range(3):
        torch.testing.assert_close(step(there).cpu(), step(here))
    for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
        assert ours.is_cuda
        torch.testing.assert_close(ours.detach().cpu(), theirs.detach())
        optimizers[there].state[ours]["step"] = optimizers[here].state[theirs]["step"]
    with pytest.raises(RuntimeError, match=r"same device.*state_steps of aten::_fused_adamw_"):
        step(there)


def test_memory_is_counted_and_runs_out():
    before = torch.cuda.memory_allocated()
    held = torch.empty(1000, device=THERE)
    view = held[10:]
    assert torch.cuda.memory_allocated() - before == 4000
    del held
    assert torch.cuda.memory_allocated() - before == 4000, "a view keeps it"
    del view
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() >= before + 4000
    torch.cuda.set_per_process_memory_fraction((before + 3000) / torch.cuda.mem_get_info()[1])
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1000, device=THERE)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.empty(1000, device=THERE).is_cuda


def test_there_is_one_gpu_and_afterwards_none():
    assert torch.get_device_module() is torch.cuda
    torch.empty(1, device="cuda:0")
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.empty(1, device="cuda:1")
    with pretended_gpu():
        pass
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.empty(1, device="cuda:0")
