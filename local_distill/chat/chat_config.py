"""The settings of ``local-distill chat``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from local_distill.config.parsing import argument, option, same_as
from local_distill.config.ranges import FROM_1, SEED, SHARE, TEMPERATURE, check_ranges
from local_distill.config.train_config import TrainConfig
from local_distill.eval.eval_config import SELF
from local_distill.export.export_config import ExportSettings

_model = partial(option, "models")
_sampling = partial(option, "sampling")
_output = partial(option, "output")


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """``local-distill chat`` has these settings. Raises UserError for what is out of its range."""

    model: str = argument("A hub id, a model folder, a run, a step folder of a run, an adapter, a GGUF file.")
    step: str = same_as(ExportSettings, "step")
    teacher_model: str | None = _model(
        "Answers as well, and colours the student's tokens. self: the model that MODEL's adapter was put on."
    )
    dtype: str = _model(
        "Precision of the weights. auto: bf16 on a GPU that has it, else fp32.",
        "auto",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    device: str = _model("Where both models are: cpu, cuda, cuda:1, mps. auto: a GPU if there is one.", "auto")
    trust_remote_code: bool = same_as(TrainConfig, "trust_remote_code")
    temperature: float = _sampling(
        "Of the answers; colours are always those of temperature 1.", 0.7, within=TEMPERATURE
    )
    top_p: float = _sampling("Draw from the likeliest tokens that together have this probability.", 0.9, within=SHARE)
    max_new_tokens: int = _sampling("Longest answer in tokens.", 512, within=FROM_1)
    seed: int = _sampling("The same seed and questions give the same answers.", 0, within=SEED)
    system_prompt: str | None = same_as(TrainConfig, "system_prompt", fixed=False)
    chat_template_kwargs: str | None = same_as(TrainConfig, "chat_template_kwargs", fixed=False)
    keep_control_tokens: bool = same_as(TrainConfig, "keep_control_tokens", fixed=False)
    numbers: bool = _output("Write each token's reverse KL behind it, in brackets.", False)

    @property
    def teacher_under_adapter(self) -> bool:
        """Tell whether the teacher is the model that MODEL's adapter was put on."""
        return self.teacher_model == SELF

    def __post_init__(self) -> None:
        check_ranges(self)
