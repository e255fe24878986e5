"""Settings of ``local-distill plan``: those of a run, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from local_distill.config.parsing import option
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError

_plan = partial(option, "plan")


@dataclass(frozen=True, kw_only=True)
class PlanSettings(TrainConfig):
    """A run and the machine that it is planned for. Raises UserError when they contradict each other."""

    gpus: int | None = _plan(
        "GPUs of the run, one process for each. Default: 1, or with no --gpu_memory this machine's."
    )
    gpu_memory: float | None = _plan("Memory of each GPU (GB, as cards are sold). Default: this machine's memory.")
    zero2: bool = _plan(
        "The student's gradients and optimizer are sharded by DeepSpeed ZeRO-2, as accelerate_config_zero2.yaml asks.",
        False,
    )
    json: bool = _plan("Print JSON.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus is not None and self.gpus < 1:
            raise UserError(f"--gpus: {self.gpus} given, needs to be at least 1")
        if self.gpu_memory is not None and not 0 < self.gpu_memory < 1e6:
            raise UserError(f"--gpu_memory: {self.gpu_memory:g} given, needs to be above 0 (GB of one GPU)")
        if self.gpus is not None and self.batch_size < self.gpus:
            raise UserError(
                f"--batch_size: {self.batch_size} given for {self.gpus} GPUs, needs to be at least as many; raise it"
            )
