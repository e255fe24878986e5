"""A teacher in 4 or 8 bits a weight, by bitsandbytes: less memory, and log-probs that are off by a little."""

from __future__ import annotations

import importlib.util
import logging

import torch
from transformers import BitsAndBytesConfig

from local_distill.errors import UserError

FLAG = "--teacher_quantization"


def check_quantization(kind: str) -> None:
    """Raise UserError where a teacher cannot be held in ``4bit`` or ``8bit``: without the package, without a GPU."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{FLAG} {kind}: needs the package bitsandbytes, which is not installed; "
            "pip install 'local-distill[quantization]'"
        )
    if not torch.cuda.is_available():
        raise UserError(f"{FLAG} {kind}: needs a CUDA GPU, there is none here; drop it, or choose a smaller teacher")


def quantization_config(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What packs linear layers other than the output head as they are loaded.

    4bit: normal floats with scales that are packed as well (QLoRA, arXiv 2305.14314), products in ``dtype``.
    8bit: integers, with the largest activations kept apart (LLM.int8, arXiv 2208.07339), products in fp16.
    """
    if kind == "8bit":
        # It warns that it casts to fp16 at every layer of every call.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    assert kind == "4bit"
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
