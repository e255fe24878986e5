"""A real GGUF file by llama.cpp's own converter, where there is one: set LLAMA_CPP_DIR."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from local_distill.errors import UserError
from local_distill.export.export_config import ExportSettings
from local_distill.export.export_model import export
from local_distill.export.merging import Distance, checked
from local_distill.models.files import open_model
from tests.tiny_models import llama_config, save_model

SMOLLM2 = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"
"""The converter knows tokenizers by name; of the demo's model, the tokenizer is used here."""


@pytest.mark.skipif("LLAMA_CPP_DIR" not in os.environ, reason="needs llama.cpp's converter: set LLAMA_CPP_DIR")
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs a tokenizer that the converter knows: make demo")
@pytest.mark.parametrize(("kind", "most"), [("f32", 1e-4), ("q8_0", 0.1)])
def test_the_file_is_the_model(tmp_path, kind, most):
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    model = save_model(
        tmp_path / "model", llama_config(len(tokenizer), hidden_size=64, intermediate_size=64), tokenizer
    )
    said = []
    settings = ExportSettings(run=str(model), output_dir=str(tmp_path / "out"), dtype="fp32", gguf=kind)
    file = export(settings, said.append) / f"model-{kind}.gguf"
    assert any(line.startswith(f"{file.name}, loaded again") for line in said)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        found, expected = (
            open_model("MODEL", str(path), trust_remote_code=False).load(torch.float32)(ids).logits
            for path in (file, model)
        )
    assert (found - expected).abs().mean() < most


def test_the_difference_is_weighed_by_probability():
    expected, found = (torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    difference = checked(expected.double(), found.double(), 1.0, "it")
    log2, log15 = 0.693147, 0.405465
    assert difference == Distance(pytest.approx((log2 + log15) / 2, rel=1e-5), pytest.approx(log2, rel=1e-5), 1)
    with pytest.raises(UserError, match=r"0\.549 nats"):
        checked(expected.double(), found.double(), 0.5, "it")
    with pytest.raises(UserError, match="nan nats"):
        checked(expected.double(), found.double() * float("nan"), 0.5, "it")
