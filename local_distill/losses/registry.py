"""What ``--loss`` names: a record of each loss, which says all that others ask about it.

A loss from elsewhere is a ``LossRecord`` as well, named as package.module:name; docs/extending.md shows one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from local_distill.batch import TeacherView
from local_distill.config.lookup import LOSSES
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.head.divergences import Divergence, JensenShannon, forward_kl, reverse_kl
from local_distill.losses.loss import Loss, SampledTokenLoss, TopTokensLoss, WholeDistributionLoss
from local_distill.losses.sampled_token import PPO, ImportanceSampling, Objective, policy_gradient
from local_distill.losses.sampler_mismatch import SamplerMismatch


@dataclass(frozen=True)
class LossSettings:
    """What a loss may be made of; see docs/flags.md.

    mismatch: what measures the sampler. stale: the samples are not the student's own but older.
    """

    kl_coef: float = 1.0
    kl_discount: float = 0.0
    ratio_cap: float = 10.0
    ppo_clip: float = 0.2
    jsd_beta: float = 0.5
    top_k: int | None = None
    top_k_support: str = "teacher"
    mismatch: SamplerMismatch | None = None
    stale: bool = False


def make_loss(
    loss: str, *, kl_coef: float, kl_discount: float, ratio_cap: float, ppo_clip: float, jsd_beta: float,
    top_k: int | None, top_k_support: str, mismatch: SamplerMismatch | None = None, stale: bool = False,
) -> Loss:  # fmt: skip
    """Return the loss that ``--loss`` and its settings name."""
    record = LOSSES.get(loss)
    assert isinstance(record, LossRecord)
    return record.make(
        LossSettings(
            kl_coef, kl_discount, ratio_cap, ppo_clip, jsd_beta, top_k, top_k_support, mismatch, stale
        )
    )  # fmt: skip


def takes_all_settings(settings: TrainFields) -> None:
    """Accept any settings."""
    del settings


def needs_tokens(settings: TrainFields) -> TeacherView:
    """Ask the teacher for no more than the log-probs of the sampled tokens."""
    del settings
    return TeacherView.tokens


def says_nothing(settings: TrainFields) -> str:
    """Return no note."""
    del settings
    return ""


@dataclass(frozen=True)
class LossRecord:
    """All that is known of a loss: how it is made, what it needs of the teacher, and what its settings may be.

    check: raises UserError for settings that it cannot use. note: a word for people about its settings, or nothing.
    """

    make: Callable[[LossSettings], Loss]
    needs: Callable[[TrainFields], TeacherView] = needs_tokens
    check: Callable[[TrainFields], None] = takes_all_settings
    note: Callable[[TrainFields], str] = says_nothing


def _no_top_tokens(settings: TrainFields) -> None:
    if settings.top_k is not None:
        others = ", ".join(name for name in LOSSES.names if LOSSES.get(name).needs(settings) > TeacherView.tokens)
        given = settings.loss_name if settings.loss != "auto" else f"{settings.loss_name} (auto, with --kl_discount)"
        raise UserError(
            f"--top_k: given with --loss {given}, which looks at the sampled token alone; drop it, or use {others}"
        )


def _ratios_note(settings: TrainFields) -> str:
    if settings.top_p == 1:
        return ""
    return (
        f"samples at temperature {settings.temperature:g} and top-p {settings.top_p:g} never show the tail of the "
        "student's distribution, which no ratio corrects: --temperature 1 --top_p 1 is exact (docs/method.md)"
    )


def _own_samples_note(settings: TrainFields) -> str:
    if settings.temperature == 1 and settings.top_p == 1:
        return ""
    return (
        f"samples at temperature {settings.temperature:g} and top-p {settings.top_p:g} are not quite the student's "
        "own, which policy_gradient takes them for: --temperature 1 --top_p 1 is exact (docs/method.md)"
    )


def _policy_gradient(settings: LossSettings) -> Loss:
    """Make −Σ A_t s_t; of samples that are older than the student it needs the ratio of importance sampling."""
    weighed = ImportanceSampling(settings.ratio_cap)
    now = weighed if settings.stale else policy_gradient
    return SampledTokenLoss(now, weighed, settings.kl_coef, settings.kl_discount, settings.mismatch)


def _with_ratio(objective: Objective, settings: LossSettings) -> Loss:
    return SampledTokenLoss(objective, objective, settings.kl_coef, settings.kl_discount, settings.mismatch)


POLICY_GRADIENT = LossRecord(_policy_gradient, check=_no_top_tokens, note=_own_samples_note)
IMPORTANCE_SAMPLING = LossRecord(
    lambda settings: _with_ratio(ImportanceSampling(settings.ratio_cap), settings),
    check=_no_top_tokens,
    note=_ratios_note,
)
CLIPPED = LossRecord(
    lambda settings: _with_ratio(PPO(settings.ppo_clip), settings), check=_no_top_tokens, note=_ratios_note
)


def _no_discount(settings: TrainFields) -> None:
    if settings.kl_discount:
        raise UserError(
            f"--kl_discount: {settings.kl_discount:g} given with --loss {settings.loss}, which has no advantages to "
            "discount; drop it, or use a sampled-token loss"
        )


def _compared(settings: TrainFields) -> TeacherView:
    by_top_tokens = settings.loss_top_k is not None and settings.top_k_support == "teacher"
    return TeacherView.top_tokens if by_top_tokens else TeacherView.whole_distribution


def _divergence(divergence: Callable[[LossSettings], Divergence]) -> LossRecord:
    """Return the record of a divergence of whole distributions, which top tokens and a tail may stand for."""

    def make(settings: LossSettings) -> Loss:
        kind = divergence(settings)
        if settings.top_k is not None and settings.top_k_support == "teacher":
            return TopTokensLoss(kind, settings.kl_coef, settings.mismatch)
        return WholeDistributionLoss(kind, settings.kl_coef, settings.top_k, settings.mismatch)

    return LossRecord(make, _compared, _no_discount)


REVERSE_KL = _divergence(lambda _: reverse_kl)
FORWARD_KL = _divergence(lambda _: forward_kl)
JSD = _divergence(lambda settings: JensenShannon(settings.jsd_beta))
