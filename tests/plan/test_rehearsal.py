"""What is counted on tensors without memory is what tensors with memory take, by torch's own record of allocations."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import masking_utils

from local_distill.batch import TokenBatch
from local_distill.head.logprobs import LOGITS_PER_CHUNK, Head, chunks
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.files import skeleton_of
from local_distill.models.scorer import TokenScorer
from local_distill.plan.rehearsal import Stage
from tests.tiny_models import gpt2_config, llama_config, make_model

V, WIDTH = 300, 96


def allocated(act):
    """Most bytes that the processor's allocator had given out while ``act`` ran, and at the end of it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = act()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, result


def batch(rows):
    ids = torch.ones(rows, WIDTH, dtype=torch.long)
    mask = torch.ones_like(ids)
    places = torch.arange(rows * WIDTH) % (rows * WIDTH - 1)
    return TokenBatch(ids, mask, places, ids.flatten(), torch.zeros(rows * WIDTH), (WIDTH,) * rows)


def forward_and_backward(scorer, tokens, dtype):
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = scorer(tokens, lambda hidden, *_: hidden.sum())
    loss.backward()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize(
    ("family", "dtype", "checkpointing", "adapter"),
    [
        (llama_config, torch.float32, False, False),
        (llama_config, torch.bfloat16, True, False),
        (llama_config, torch.bfloat16, False, True),
        (gpt2_config, torch.bfloat16, False, False),
        (gpt2_config, torch.float32, True, True),
    ],
)
def test_forward_and_backward_take_what_is_counted(family, dtype, checkpointing, adapter):
    size = {"n_layer": 3, "n_embd": 64} if family is gpt2_config else {"layers": 3, "hidden_size": 64}
    config = family(V, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, **size)

    def adapted(model):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return add_lora(model, LoraSettings(4, 8, 0.0, "all-linear"), seed=0) if adapter else model

    real = TokenScorer(adapted(make_model(config)), V).train()
    tokens = batch(4)
    tokens.attention_mask[1, -3:] = 0  # padding; attention has no mask all the same
    peak, _ = allocated(lambda: forward_and_backward(real, tokens, dtype))

    stage = Stage("cpu")
    model = stage.model(adapted(skeleton_of(config, False)), torch.float32, torch.float32)
    fake = TokenScorer(model, V).train()

    def rehearsed(storages):
        tokens = batch(4)
        before = storages.now
        storages.forget_peak()
        forward_and_backward(fake, tokens, dtype)
        return storages.peak - before

    assert stage.rehearse(rehearsed) == pytest.approx(peak, rel=0.08)  # kernels have scratch of their own


def test_what_was_there_before_is_not_counted_and_what_is_gone_is_given_back():
    stage = Stage("cpu")
    model = stage.model(torch.nn.Linear(100, 100, bias=False, device="meta"), torch.float32, torch.float32)

    def act(storages):
        view = model.weight.t()[:50]
        copies = [torch.empty(1000) for _ in range(3)]
        held = storages.now
        del copies
        return view.shape, held, storages.now, storages.peak

    assert stage.rehearse(act) == ((50, 100), 12_000, 0, 12_000)


def test_a_weight_that_is_tied_stays_one_weight():
    config = llama_config(tie_word_embeddings=True)
    model = Stage("cpu").model(skeleton_of(config, False), torch.float32, torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_is_trained_and_what_is_frozen_have_their_own_precision():
    model = skeleton_of(llama_config(), False)
    model.lm_head.weight.requires_grad_(False)
    model = Stage("cpu").model(model, torch.float32, torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16


def rows_of_the_first_chunk():
    head = Head(torch.empty(50_000, 1, device="meta"), 50_000)
    return next(iter(chunks(torch.empty(10_000, 1), head, None))).stop


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_logits_are_cut_as_on_the_device_that_is_planned_for(device):
    here = rows_of_the_first_chunk()
    found = Stage(device).rehearse(lambda _: rows_of_the_first_chunk())
    assert found == (here if device == "cpu" else LOGITS_PER_CHUNK["cuda"] // 50_000)
    assert here == rows_of_the_first_chunk(), "put back"


def test_what_another_thread_does_meanwhile_is_left_alone():
    """``train`` may be called from any thread, and a plan be made in another one at the same time."""
    packed = torch.tensor([[0, 1, 2, 0, 1]])
    alone = rows_of_the_first_chunk(), masking_utils.find_packed_sequence_indices(packed).tolist()
    rehearsing, looked = threading.Event(), threading.Event()

    def rehearsal(_):
        rehearsing.set()
        assert looked.wait(60)
        return rows_of_the_first_chunk(), masking_utils.find_packed_sequence_indices(torch.empty(1, 5))

    with ThreadPoolExecutor() as pool:
        planned = pool.submit(Stage("cuda").rehearse, rehearsal)
        assert rehearsing.wait(60)
        meanwhile = rows_of_the_first_chunk(), masking_utils.find_packed_sequence_indices(packed)
        looked.set()
    assert (meanwhile[0], meanwhile[1].tolist()) == alone
    assert planned.result() == (LOGITS_PER_CHUNK["cuda"] // 50_000, None)


def test_two_rehearsals_at_once_leave_transformers_as_it_was():
    found = masking_utils.find_packed_sequence_indices
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: Stage("cpu").rehearse(lambda _: torch.ones(10).sum()), range(20)))
    assert masking_utils.find_packed_sequence_indices is found


def test_what_is_asked_of_a_value_is_answered_with_no():
    def act(storages):
        del storages
        return bool(torch.ones(3).sum() > 0), float(torch.ones(3).sum()), int(torch.ones(1, dtype=torch.long))

    assert Stage("cpu").rehearse(act) == (False, 0.0, 0)
