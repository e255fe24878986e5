"""What is launched: precision, processes, DeepSpeed's file."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from local_distill.errors import UserError
from local_distill.process.launch import (
    Precision,
    check_deepspeed,
    check_launch,
    launch_in_words,
    resolve_precision,
    sums_in_words,
)

# --- precision -----------------------------------------------------------------------------------


@pytest.fixture
def hardware(monkeypatch):
    """Pretends to be a machine. bf16: whether it has the arithmetic; emulated bf16 is not meant."""

    def pretend(*, cuda=False, mps=False, bf16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    return pretend


BF16, FP16, FP32 = (torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "no")


@pytest.mark.parametrize(
    ("machine", "name", "expected"),
    [
        ({}, "auto", FP32),
        ({"bf16": True}, "auto", FP32),
        ({"mps": True}, "auto", FP32),
        ({"cuda": True}, "auto", FP32),
        ({"cuda": True, "bf16": True}, "auto", BF16),
        ({"cuda": True, "bf16": True}, "fp32", FP32),
        ({"cuda": True}, "fp16", FP16),
        ({"cuda": True, "bf16": True}, "bf16", BF16),
        ({"bf16": True}, "bf16", BF16),
        ({"mps": True}, "bf16", BF16),
    ],
    ids=str,
)
def test_precision_of_a_machine(hardware, machine, name, expected):
    hardware(**machine)
    assert resolve_precision(name) == Precision(*expected)


def test_a_run_on_a_processor_beside_a_gpu_has_the_processor_s_precision(hardware, monkeypatch):
    hardware(cuda=True, bf16=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert resolve_precision("auto") == Precision(*FP32)
    assert resolve_precision("auto", on_cuda=True).dtype == torch.bfloat16
    with pytest.raises(UserError, match="needs an NVIDIA or AMD GPU"):
        resolve_precision("fp16")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert resolve_precision("auto", on_cuda=False) == Precision(*FP32), "chat --device cpu"


def test_emulated_bf16_is_spoken_of(hardware):
    hardware()
    found = resolve_precision("bf16")
    assert (found.dtype, found.mixed) == BF16
    assert "emulates bf16" in found.note


@pytest.mark.parametrize(
    ("machine", "name", "message"),
    [
        ({}, "fp16", r"^--dtype fp16: needs an NVIDIA or AMD GPU.*use fp32 or bf16"),
        ({"mps": True}, "fp16", r"^--dtype fp16: needs an NVIDIA or AMD GPU"),
        ({"cuda": True}, "bf16", r"^--dtype bf16: Tesla T4 has no bf16 arithmetic; use fp16 or fp32"),
    ],
)
def test_precision_that_a_machine_does_not_have(hardware, machine, name, message):
    hardware(**machine)
    with pytest.raises(UserError, match=message):
        resolve_precision(name)


# --- the launch ----------------------------------------------------------------------------------


def launched(processes=1, deepspeed=None):
    """What of an Accelerator tells how the processes were launched."""
    plugin = None
    if deepspeed is not None:
        stage = deepspeed.get("zero_optimization", {}).get("stage", 0)
        plugin = SimpleNamespace(deepspeed_config=deepspeed, zero_stage=stage)
    return SimpleNamespace(
        num_processes=processes, state=SimpleNamespace(deepspeed_plugin=plugin), device=torch.device("cpu")
    )


def zero(stage, **more):
    return {"zero_optimization": {"stage": stage}, **more}


def test_launches_that_fit():
    check_launch(launched(), 1, Precision(*FP32))
    check_launch(launched(4), 4, Precision(*BF16))
    check_launch(launched(2, zero(2, bf16={"enabled": True}, fp16={"enabled": False})), 2, Precision(*BF16))
    check_launch(launched(2, zero(1, fp16={"enabled": True})), 2, Precision(*FP16))


@pytest.mark.parametrize(
    ("launch", "precision", "message"),
    [
        (launched(5), FP32, r"^--batch_size: 4 given for 5 processes, needs to be at least 5; .*fewer processes"),
        (launched(2, {}), BF16, r"^--deepspeed_config_file: ZeRO stage 0 for the student, needs to be 1 or 2"),
        (launched(2, zero(3, bf16={"enabled": True})), BF16, r"^--deepspeed_config_file: ZeRO stage 3"),
        (launched(2, zero(2)), BF16, r"^--dtype: bf16 does not match .* neither bf16 nor fp16; make them agree"),
        (launched(2, zero(2, bf16={"enabled": True})), FP32, r"^--dtype: fp32 does not match .* enables bf16"),
        (launched(2, zero(2, fp16={"enabled": True})), BF16, r"^--dtype: bf16 does not match .* enables fp16"),
        (launched(2, zero(2, bf16={"enabled": "auto"})), BF16, r"^--dtype: bf16 does not match"),
    ],
)
def test_launches_that_do_not(launch, precision, message):
    with pytest.raises(UserError, match=message):
        check_launch(launch, 4, Precision(*precision))


def test_launches_in_words():
    assert launch_in_words(Accelerator(cpu=True), Precision(*FP32)) == "1 process, fp32, on cpu"
    assert launch_in_words(launched(2), Precision(*BF16)) == "2 processes with data parallelism, bf16, on cpu"
    assert launch_in_words(launched(1, zero(2)), Precision(*BF16)) == "1 process with DeepSpeed ZeRO-2, bf16, on cpu"


@pytest.mark.parametrize(
    ("data_types", "said"),
    [
        ({}, "gradients are summed in fp32"),
        ({"data_types": {}}, "gradients are summed in fp32"),
        ({"data_types": {"grad_accum_dtype": "auto"}}, "gradients are summed in fp32"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, None),
        ({"data_types": {"grad_accum_dtype": "torch.float32"}}, None),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype bf16: the sum of 32 micro-batches"),
    ],
)
def test_what_a_deepspeed_file_says_of_sums_of_gradients_is_told_unless_it_is_what_one_wants(data_types, said):
    words = sums_in_words(launched(2, zero(2, **data_types)))
    assert said in words if said else words == ""
    assert sums_in_words(launched(2)) == ""


def test_a_deepspeed_that_rounds_rotary_frequencies_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.19.1")
    with pytest.raises(UserError, match=r"^--teacher_ds_zero3: DeepSpeed 0.19.1 is installed, needs .* 0.19.2"):
        check_deepspeed("--teacher_ds_zero3")
