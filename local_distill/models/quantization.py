"""Weights in few bits: a teacher that is packed while it is loaded, and models that come packed already."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.quantizers import AutoHfQuantizer

from local_distill.errors import UserError, first_sentence
from local_distill.models.file_settings import with_parts
from local_distill.models.footprint import Held, Place, Shape
from local_distill.packages import installed
from local_distill.process.distributed import runs_on_cuda

SETTINGS = ("quantization_config", "compression_config")
FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Where AutoGPTQ, AutoAWQ and ModelOpt say what config.json may not."""
UNPACKED_BY_TRANSFORMERS = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
FLAG = "--teacher_quantization"
PACKED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Bytes of a packed weight: 4bit has a scale of 8 bits for 64 weights, and a float32 for 256 scales (QLoRA)."""


def check_quantization(kind: str) -> None:
    """Raise UserError where a teacher cannot be held in ``4bit`` or ``8bit``: without a GPU, without the package."""
    if not runs_on_cuda():
        raise UserError(f"{FLAG} {kind}: needs a CUDA GPU, there is none here; drop it, or choose a smaller teacher")
    if not installed("bitsandbytes"):
        raise UserError(
            f"{FLAG} {kind}: needs the package bitsandbytes, which is not installed; "
            "pip install 'local-distill[quantization]'"
        )


def quantization_config(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return what packs linear layers other than the output head as they are loaded.

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


def held_packed(kind: str, shape: Shape, place: Place) -> Held:
    """Count a model whose linear layers are packed, and unpacked one by one as they are used."""
    standing = PACKED[kind] * shape.packable + place.item * (shape.parameters - shape.packable)
    return Held(kind, shape, standing, passing=place.item * shape.largest_linear)


def check_dense(flag: str, path: str, config: PretrainedConfig, purpose: str) -> None:
    """Raise UserError for a model that comes quantised; purpose: what for it needs to be dense."""
    kind = quantised_by(path, config)
    if kind is None:
        return
    unpack = ""
    if kind in UNPACKED_BY_TRANSFORMERS:
        unpack = (
            f", or unpack it: from_pretrained with quantization_config={UNPACKED_BY_TRANSFORMERS[kind]}"
            "(dequantize=True), then save_pretrained"
        )
    raise UserError(
        f"{flag} {path}: its weights are quantised ({kind}), needs ordinary ones {purpose}; give the model that it was "
        f"made from, in bf16, fp16 or fp32{unpack}"
    )


def check_readable(flag: str, path: str, config: PretrainedConfig) -> None:
    """Raise UserError where a model that comes quantised cannot be read here: what it needs is not installed."""
    kind = quantised_by(path, config)
    if kind is None:
        return
    settings = _settings(config)
    try:
        if settings is None:
            raise ValueError("its config.json does not say so")
        AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True).validate_environment(device_map=None)
    except Exception as error:  # each kind has a package of its own, which fails in its own way
        raise UserError(
            f"{flag} {path}: its weights are quantised ({kind}), which cannot be read here ({first_sentence(error)}); "
            "install what that asks for, or give the model that it was made from, in bf16, fp16 or fp32"
        ) from error


def _settings(config: PretrainedConfig) -> Any:
    """Return what transformers is told of the packing, as a dictionary or a class; None for ordinary weights."""
    found = (getattr(part, name, None) for part in with_parts(config) for name in SETTINGS)
    return next(filter(None, found), None)


def quantised_by(path: str, config: PretrainedConfig) -> str | None:
    """Return what a model is packed by, as its files call it: gptq, awq, fp8 …; None for ordinary weights."""
    settings = _settings(config)
    if settings is None:
        return next((name for name in FILES if (Path(path) / name).is_file()), None)
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    kind = settings.get("quant_method") or "bitsandbytes"
    return str(getattr(kind, "value", kind))
