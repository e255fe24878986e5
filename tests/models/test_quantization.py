"""What a teacher is packed with, and where it cannot be."""

import importlib.util

import pytest
import torch

from local_distill.errors import UserError
from local_distill.models.quantization import check_quantization, quantization_config


def installed(monkeypatch, package, gpu):
    real, found = importlib.util.find_spec, object() if package else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "bitsandbytes" else real(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_four_bits(dtype):
    config = quantization_config("4bit", dtype)
    assert config.quantization_method() == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == dtype
    assert config.llm_int8_skip_modules is None, "transformers then leaves the output head as it is"


def test_eight_bits():
    config = quantization_config("8bit", torch.bfloat16)
    assert config.quantization_method() == "llm_int8"
    assert config.llm_int8_skip_modules is None


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_where_it_cannot_be_had(monkeypatch, kind):
    installed(monkeypatch, package=False, gpu=True)
    with pytest.raises(UserError) as caught:
        check_quantization(kind)
    assert str(caught.value) == (
        f"--teacher_quantization {kind}: needs the package bitsandbytes, which is not installed; "
        "pip install 'local-distill[quantization]'"
    )
    for package in (True, False):  # a package that would not help is not asked for
        installed(monkeypatch, package=package, gpu=False)
        with pytest.raises(UserError, match=f"^--teacher_quantization {kind}: needs a CUDA GPU, there is none here; "):
            check_quantization(kind)
    installed(monkeypatch, package=True, gpu=True)
    check_quantization(kind)
