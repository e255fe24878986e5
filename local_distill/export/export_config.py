"""The settings of ``local-distill export``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from local_distill.config.parsing import argument, option, same_as
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError

_model = partial(option, "models")
_output = partial(option, "output")
_gguf = partial(option, "GGUF")
_hub = partial(option, "hub")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """``local-distill export`` has these settings. Raises UserError when they contradict each other."""

    run: str = argument("A run, a step folder of a run, an adapter or a model.")
    step: str = _model("Of a run: last, best (the lowest held-out reverse KL among those kept) or a number.", "last")
    trust_remote_code: bool = same_as(TrainConfig, "trust_remote_code")
    dtype: str = _output("Precision of the weights.", "bf16", choices=("bf16", "fp16", "fp32"))
    output_dir: str | None = _output("Folder to write, new or empty. Default: export-step-N in the run.")
    max_shard_size: str = _output("Largest file of weights.", "5GB")
    gguf: str = _gguf(
        "Write a GGUF file as well, for llama.cpp and Ollama.", "none", choices=("none", "q8_0", "f16", "bf16", "f32")
    )
    gguf_converter: str | None = _gguf(
        "llama.cpp's convert_hf_to_gguf.py. Default: the one in LLAMA_CPP_DIR, else in PATH."
    )
    push_to_hub: str | None = _hub("Upload as this model, owner/name; with the token of hf auth login, or HF_TOKEN.")
    private: bool = _hub("For you alone.", False)

    def __post_init__(self) -> None:
        if self.gguf_converter is not None and self.gguf == "none":
            raise UserError("--gguf_converter: given without --gguf; add --gguf q8_0, or drop it")
        if self.private and self.push_to_hub is None:
            raise UserError("--private: given without --push_to_hub; add it, or drop the switch")
        size = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*[KMGT]B", self.max_shard_size.strip(), re.IGNORECASE)
        if size is None or float(size[1]) == 0:
            raise UserError(
                f"--max_shard_size: {self.max_shard_size!r} given, needs a size such as 5GB or 500MB; give one"
            )
        if self.push_to_hub == "":
            raise UserError("--push_to_hub: empty text given; give owner/name, or leave the flag out")
