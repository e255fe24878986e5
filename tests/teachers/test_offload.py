"""A teacher whose weights only visit the device: the same readings, and nothing left there afterwards."""

import pytest
import torch

from local_distill.losses.registry import make_loss
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_head
from local_distill.teachers import offload
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, WholeDistributionTeacher
from local_distill.teachers.offload import lock_in_memory, offloaded
from local_distill.training.batching import collate
from tests.models.test_scorer import CONFIGS, ROLLOUTS, V
from tests.tiny_models import gpt2_config, llama_config, make_model

CPU = torch.device("cpu")


def a_pair(name, dtype=torch.float32):
    """The same teacher twice, in memory and passing through."""
    plain = TokenScorer(make_model(CONFIGS[name], 1, dtype), V)
    passing = offloaded(TokenScorer(make_model(CONFIGS[name], 1, dtype), V), CPU)
    return plain, passing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_readings_are_those_of_the_plain_teacher(name, dtype):
    plain, passing = a_pair(name, dtype)
    check_head(passing, "--teacher_model")
    batch = collate(ROLLOUTS, 0)
    for again in range(2):
        expected = TopTokensTeacher(plain, CPU, 5).score(batch)
        found = TopTokensTeacher(passing, CPU, 5).score(batch)
        for part in ("logprobs", "entropy"):
            assert torch.equal(getattr(found.signal, part), getattr(expected.signal, part)), again
        assert torch.equal(found.signal.top.ids, expected.signal.top.ids)
        assert torch.equal(found.signal.top.logprobs, expected.signal.top.logprobs)
    assert torch.equal(LocalTeacher(passing, CPU).score(batch).signal.logprobs, expected.signal.logprobs)
    expected, found = (WholeDistributionTeacher(each, CPU).score(batch).signal for each in (plain, passing))
    assert torch.equal(found.hidden, expected.hidden)
    assert torch.equal(found.head.weight, expected.head.weight)
    assert not found.hidden.requires_grad


def test_losses_and_gradients_are_the_same():
    loss = make_loss(
        "reverse_kl", kl_coef=1.0, kl_discount=0.0, ratio_cap=2.0, ppo_clip=0.2, jsd_beta=0.5, top_k=None,
        top_k_support="teacher",
    )  # fmt: skip
    batch, gradients = collate(ROLLOUTS, 0), []
    for teacher in a_pair("llama"):
        student = make_model(llama_config(layers=1), 2)
        scored = WholeDistributionTeacher(teacher, CPU).score(batch)
        TokenScorer(student, V)(batch, loss.reading(scored, 0)).total.backward()
        gradients.append([p.grad for p in student.parameters()])
    assert any(g.any() for g in gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2"])
def test_nothing_is_left_on_the_device_but_the_head(name):
    _, passing = a_pair(name)
    network, seen = passing.model, []
    block = next(module for module in network.modules() if type(module).__name__ in network._no_split_modules)
    inner = next(module for module in block.modules() if not list(module.children()))
    inner.register_forward_hook(lambda *_: seen.append(sum(not p.is_meta for p in network.base_model.parameters())))
    passing(collate(ROLLOUTS, 0))
    head = network.get_output_embeddings().weight
    left = [p for p in network.parameters() if not p.is_meta]
    assert [p is head for p in left] == [True]
    assert (network.get_input_embeddings().weight is head) == (name != "llama")
    layer = sum(1 for _ in block.parameters())
    assert seen == [layer + (0 if name == "llama" else 1)], "one layer at a time"


def test_a_layer_goes_even_when_it_fails():
    """Out of memory: the same is tried again with less at a time."""
    plain, passing = a_pair("llama")
    batch = collate(ROLLOUTS, 0)

    def fail(*_):
        raise torch.OutOfMemoryError

    handle = passing.model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        passing(batch)
    assert all(p.is_meta for p in passing.model.model.parameters())
    handle.remove()
    assert torch.equal(passing(batch).logprobs, plain(batch).logprobs)


def test_weights_move_to_few_large_pieces(monkeypatch):
    """Each by itself would be rounded up to a power of two."""
    model, expected = make_model(gpt2_config(), 1), make_model(gpt2_config(), 1).state_dict()
    monkeypatch.setattr(offload, "ARENA_BYTES", 2**14)
    lock_in_memory(model.parameters(), lock=False)
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    used = sum(p.nbytes for p in model.parameters())
    assert len(storages) < sum(1 for _ in model.parameters()) / 4
    assert used <= sum(storages.values()) <= used + 2 * 2**14
    assert all(p.data_ptr() % 64 == 0 for p in model.parameters())
    assert model.lm_head.weight is model.transformer.wte.weight, "tied weights move together"
