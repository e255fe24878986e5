"""How far the log-probs that an engine says it drew with are from what training makes of the same tokens.

An engine of lower precision, one that was not sent the newest weights, a wrong temperature: all show here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from local_distill.errors import RunError
from local_distill.head.chunked_loss import PEAK
from local_distill.head.divergences import Distribution
from local_distill.head.logprobs import float32_products
from local_distill.runs.evaluations import Evaluation

KL, RATIO = "engine/kl", "engine/max_ratio"
MOST_KL = 0.02
"""Nats a token above which people are told: a bf16 engine is at a tenth of it."""
ROUNDING = {torch.bfloat16: 0.1, torch.float16: 0.01}
"""Nats a token that rounding may make of two ways to the same log-probs, by the precision of the products.

The divergence grows with the square of a log-prob's error. Measured on processors: in bf16 at most 7e-3, of a real
model on arbitrary tokens; in float32 at most 6e-9, of 120 architectures. fp16 rounds 8 times less than bf16."""
ROUNDING_OF_FLOAT32 = {"highest": 1e-5, "high": ROUNDING[torch.float16], "medium": ROUNDING[torch.bfloat16]}
"""By what torch makes of float32 products, if somebody asked: "high" is TF32, which has fp16's ten bits."""
EXPERTS = 0.01
"""The same where tokens choose experts: two that are all but equal may change places, for a token in thousands, which
moves it by tenths of a nat. There are few tokens in a check, and some such among the steps of any long run."""
WRONG_ENGINE = 1.0
"""Nats a token that nothing explains in another engine, of lower precision and with kernels of its own: above this it
has other weights, or another temperature."""


def rounding_of(dtype: torch.dtype, experts: bool = False) -> float:
    """The most that products in this precision explain, nats a token. experts: whether tokens choose among some."""
    products = ROUNDING.get(dtype) or ROUNDING_OF_FLOAT32[float32_products()]
    return max(products, EXPERTS if experts else 0.0)


def divergence(drawn_with: Tensor, logprobs: Tensor) -> float:
    """Return KL(engine‖training) a token, estimated from the log-probs (n,) of tokens that the engine drew."""
    log_ratio = (logprobs - drawn_with).double()
    return float((torch.expm1(log_ratio) - log_ratio).mean())


@dataclass(frozen=True)
class SamplerMismatch:
    """as_drawn: from log-probs at temperature 1 (n, V) and tokens (n,), what they are drawn with by training's
    account (n,): the sampling temperature and top-p applied."""

    as_drawn: Callable[[Tensor, Tensor], Tensor]
    names: ClassVar[tuple[str, str]] = (KL, PEAK + RATIO)

    def __call__(self, student: Distribution, targets: Tensor, drawn_with: Tensor) -> tuple[Tensor, Tensor]:
        """At every position: r − 1 − log r with r = p_training / p_engine, whose mean over the engine's own samples is
        KL(engine‖training); and max(r, 1/r). A token at the nucleus's very edge, in on one side only, is left out."""
        log_ratio = self.as_drawn(student.logprobs, targets) - drawn_with
        log_ratio = log_ratio.where(log_ratio.isfinite(), 0.0)
        return torch.expm1(log_ratio) - log_ratio, log_ratio.abs().exp()


class MismatchWatch:
    """A sink of the log that tells people, once, when engine and trainer drift apart.

    most: nats a token above which something is wrong; infinite where the student has moved since, or is another one in
    training. instead: what to do then.
    """

    def __init__(self, say: Callable[[str], None], most: float = math.inf, instead: str = "") -> None:
        self._say = say
        self._most = most
        self._instead = instead
        self._told = False

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at a step's metrics. Raises RunError above the most there may be."""
        if metrics.get(KL, 0.0) > self._most:
            raise RunError(
                f"step {step}: the samples' log-probs are {metrics[KL]:.3g} nats a token from training's ({KL}), of "
                f"which {self._most:g} can be explained: what is trained was not sampled from; {self._instead}"
            )
        if self._told or metrics.get(KL, 0.0) <= MOST_KL:
            return
        self._told = True
        self._say(
            f"step {step}: the engine's log-probs are {metrics[KL]:.3g} nats a token from training's (ratio up to "
            f"{metrics.get(RATIO, float('nan')):.3g}): its precision is low, or its weights are not the newest; "
            "--loss importance_sampling corrects for it (docs/engines.md)"
        )

    def evaluation(self, evaluation: Evaluation) -> None:
        """Nothing to see: evaluation scores its samples itself."""

    def close(self) -> None:
        """Nothing to close."""
