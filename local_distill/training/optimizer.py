"""One optimizer update out of several backward passes, with plain torch (one process or DDP) and with DeepSpeed.

Both put the student behind the same few verbs, so that the learner need not know which it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from local_distill.batch import TokenBatch
from local_distill.head.logprobs import Head
from local_distill.models.scorer import TokenScorer
from local_distill.process.launch import precision_of_sums

ADAM_BETA1 = 0.9
ADAM_EPS = 1e-8
LARGEST_BUCKET = 500_000_000
"""Gradients that ZeRO-2 reduces at a time: DeepSpeed's own number, where the student is not smaller."""
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Applied:
    """How an update went. grad_norm: global, before clipping. applied: False when it was skipped. settling: because
    fp16's loss scale was too large, which the next update has half of."""

    grad_norm: float
    applied: bool
    settling: bool = False


class ToCome(NamedTuple):
    """These bytes are still to come on a device. gradients: of an update, all micro-batches; moments: AdamW's two."""

    gradients: int
    moments: int


class Updates(Protocol):
    """The student is wrapped for training, with its optimizer."""

    student: nn.Module

    version: int
    """How often the weights have changed in this process: who keeps a copy knows when it is old."""

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Return context of one micro-batch's forward and backward; gradients meet only at the ``last``."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the loss's gradient. Over processes, gradients are averaged, not summed."""
        ...

    def apply(self, learning_rate: float, loss_is_finite: bool) -> Applied:
        """Clip, update, clear the gradient; or only clear it when the loss or the gradient is not finite."""
        ...

    @property
    def can_start_over(self) -> bool:
        """Say whether a failed backward pass can be made again: not while others wait for this one's gradient."""
        ...

    def start_over(self) -> None:
        """Forget the gradient so far, where ``can_start_over``."""
        ...

    def to_come(self) -> ToCome:
        """Count what the first update will still allocate, asked before it and after ``load_optimizer_state``."""
        ...

    def optimizer_state(self) -> dict[str, Tensor]:
        """All that the optimizer remembers, by parameter name, on the CPU of the main process, and nothing elsewhere;
        collective. No process has more than one whole tensor of it on its device."""
        ...

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``optimizer_state`` gave; collective."""
        ...

    def model_state(self) -> dict[str, Tensor]:
        """The student's weights in the precision that they are trained in, in the main process, and nothing elsewhere;
        collective. On the CPU, as ``optimizer_state``; weights that are not trained stay where they are."""
        ...


def make_updates(
    accelerator: Accelerator, scorer: TokenScorer, weight_decay: float, max_grad_norm: float, beta2: float = 0.999
) -> Updates:
    """Put AdamW on the student's trainable parameters, wrapped as the launch asks."""
    optimizer = _adamw(scorer, weight_decay, beta2)
    if accelerator.state.deepspeed_plugin is not None:
        return DeepSpeedUpdates(accelerator, scorer, optimizer, max_grad_norm)
    return TorchUpdates(accelerator, scorer, optimizer, max_grad_norm)


class TorchUpdates:
    """Plain torch updates the student, in one process or in several with DistributedDataParallel."""

    def __init__(
        self, accelerator: Accelerator, scorer: TokenScorer, optimizer: torch.optim.AdamW, max_grad_norm: float
    ) -> None:
        self._accelerator = accelerator
        self._scorer = scorer
        self._adamw = optimizer
        self._max_grad_norm = max_grad_norm or math.inf
        self.version = 0
        # Not in a group of one, as a launcher makes it: reduction lets no failed backward pass be made again.
        in_parallel = accelerator.num_processes > 1
        self.student = accelerator.prepare_model(scorer, evaluation_mode=not in_parallel)
        self._optimizer = accelerator.prepare_optimizer(optimizer)
        if in_parallel:
            self._put_gradients_into_buckets()

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = nullcontext() if last else self._accelerator.no_sync(self.student)
        return context

    def backward(self, loss: Tensor, last: bool) -> None:
        del last
        self._accelerator.backward(loss)

    def apply(self, learning_rate: float, loss_is_finite: bool) -> Applied:
        _set_learning_rate(self._adamw, learning_rate)
        grad_norm = float(self._accelerator.clip_grad_norm_(self._scorer.parameters(), self._max_grad_norm))
        finite = loss_is_finite and math.isfinite(grad_norm)
        scaler = self._accelerator.scaler
        settling = loss_is_finite and not finite and scaler is not None and scaler.get_scale() > 1
        if finite or (scaler is not None and not math.isfinite(grad_norm)):
            self._optimizer.step()  # the fp16 scaler skips an infinite gradient by itself, and learns from it
        elif scaler is not None:
            scaler.update()  # the gradient was fine, the loss was not: forget this update
        # Of several processes the gradients stay where they are, in the buckets of data parallelism: dropped, they
        # would be allocated again beside them by the next update's first micro-batch.
        self._optimizer.zero_grad(set_to_none=self._accelerator.num_processes == 1)
        self.version += finite
        return Applied(grad_norm, finite, settling)

    def to_come(self) -> ToCome:
        trained = [parameter for _, parameter in _trainable(self._scorer)]
        without_moments = sum(p.nbytes for p in trained if p not in self._adamw.state)
        return ToCome(sum(p.nbytes for p in trained if p.grad is None), len(MOMENTS) * without_moments)

    @property
    def can_start_over(self) -> bool:
        return self._accelerator.num_processes == 1

    def start_over(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def optimizer_state(self) -> dict[str, Tensor]:
        states = ((name, self._adamw.state[parameter]) for name, parameter in _trainable(self._scorer))
        values = ((f"{name}.{key}", value) for name, state in states for key, value in state.items())
        state = _in_main_process(self._accelerator, values)
        scaler = self._accelerator.scaler
        if scaler is not None and self._accelerator.is_main_process:
            state["scaler.scale"] = torch.tensor(scaler.get_scale())
            state["scaler.growth_tracker"] = torch.tensor(scaler.state_dict()["_growth_tracker"])
        return state

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in _trainable(self._scorer):
            if f"{name}.step" in state:  # absent when no update had been applied yet
                # All of it beside the parameter, the step as well: on a GPU the fused kernel reads that there too.
                beside = {key: state[f"{name}.{key}"].to(parameter.device) for key in ("step", *MOMENTS)}
                self._adamw.state[parameter] = beside
        scaler = self._accelerator.scaler
        if scaler is not None and "scaler.scale" in state:
            own = scaler.state_dict()
            own["scale"] = float(state["scaler.scale"])
            own["_growth_tracker"] = int(state["scaler.growth_tracker"])
            scaler.load_state_dict(own)

    def model_state(self) -> dict[str, Tensor]:
        return _whole_model(self._accelerator, self._scorer, nn.Parameter.detach)

    def _put_gradients_into_buckets(self) -> None:
        """Make gradients, all zero, where data parallelism reduces them, before there are moments or activations.

        Its buckets are there from the beginning, but gradients become views of them only in a backward pass that is
        reduced, and the pass after the first one that is allocates all buckets anew. So an update whose first
        micro-batches are not reduced would hold every gradient twice, and the second update for a moment as well.
        """
        was_training = self.student.training
        self.student.eval()
        device = next(self._scorer.parameters()).device
        ids = torch.zeros(1, 2, dtype=torch.long, device=device)
        one = ids.new_zeros(1)
        batch = TokenBatch(ids, torch.ones_like(ids), one, one, one.float(), (1,))
        for _ in range(2):
            self._accelerator.backward(self.student(batch, self._nothing))
            self._optimizer.zero_grad(set_to_none=False)
        self.student.train(was_training)

    def _nothing(self, hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
        """Return zero, with a gradient of zero for every weight, those of experts that no token went to included."""
        del head, targets
        everything = [hidden.sum(), *(parameter.sum() for _, parameter in _trainable(self._scorer))]
        return torch.stack([each.float() for each in everything]).sum() * 0


class DeepSpeedUpdates:
    """DeepSpeed updates it, ZeRO-1 or ZeRO-2: low-precision weights everywhere, fp32 masters and moments in shares."""

    def __init__(
        self, accelerator: Accelerator, scorer: TokenScorer, optimizer: torch.optim.AdamW, max_grad_norm: float
    ) -> None:
        self._accelerator = accelerator
        self._scorer = scorer
        self._adamw = optimizer
        self.version = 0
        # The engine casts the weights it is given, masters included; a resumed student's are kept to be put back.
        # In the machine's memory: on the device they would be as much again as a data-parallel student takes.
        self._masters = {
            name: p.detach().to("cpu", copy=True) for name, p in _trainable(scorer) if p.dtype == torch.float32
        }
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["gradient_clipping"] = max_grad_norm
        settings["gradient_accumulation_steps"] = 1  # we set the boundary ourselves
        settings["train_micro_batch_size_per_gpu"] = 1  # unused by the engine, which insists on a number
        zero = settings["zero_optimization"]
        if zero.get("reduce_bucket_size", "auto") == "auto":  # DeepSpeed allocates two, of 1 GB each by default
            trained = sum(p.numel() for _, p in _trainable(scorer))
            zero["reduce_bucket_size"] = min(LARGEST_BUCKET, trained)
        if precision_of_sums(settings) is None:
            settings["data_types"] = {**settings.get("data_types", {}), "grad_accum_dtype": "fp32"}
        self.student, _ = accelerator.prepare(scorer, optimizer)
        self._link_moments()
        self._stage = int(zero["stage"])

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        del last
        return nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        self.student.set_gradient_accumulation_boundary(is_boundary=last)
        self.student.backward(loss)

    def apply(self, learning_rate: float, loss_is_finite: bool) -> Applied:
        zero = self.student.optimizer
        _set_learning_rate(self._adamw, learning_rate)
        self._masters = {}  # a student that trains is past being put back
        del loss_is_finite  # the engine looks at the gradients, which are no better than the loss
        self.student.step()  # clips; skips, and sets overflow, when a gradient is not finite
        grad_norm = self.student.get_global_grad_norm()
        self.version += not zero.overflow
        return Applied(math.nan if grad_norm is None else float(grad_norm), not zero.overflow)

    def to_come(self) -> ToCome:
        """Count no moments, which were made with the engine; of gradients, with ZeRO-2, its share in float32.

        With ZeRO-1 in bf16 all of them in float32 were made with the engine too, and those of a micro-batch stay beside
        them. In fp16 they are float32 alone, and made when they come.
        """
        if self._stage == 2:
            return ToCome(sum(flat.nbytes for flat in self._flats), 0)
        trained = [parameter for _, parameter in _trainable(self._scorer)]
        return ToCome(sum(p.numel() * (2 if p.dtype == torch.bfloat16 else 4) for p in trained), 0)

    @property
    def can_start_over(self) -> bool:
        return False  # the engine counts its micro-batches

    def start_over(self) -> None:
        raise NotImplementedError

    def optimizer_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self._flat_states()[0]["step"]

        def whole() -> Iterator[tuple[str, Tensor]]:
            for name, parameter in _trainable(self._scorer):
                yield f"{name}.step", step.clone()
                for key in MOMENTS:
                    yield f"{name}.{key}", safe_get_full_optimizer_state(parameter, key)

        return _in_main_process(self._accelerator, whole())

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        # What comes from the machine's memory goes straight into this process's share on the device.
        for name, parameter in _trainable(self._scorer):
            if name in self._masters:
                safe_set_full_fp32_param(parameter, self._masters[name])
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[f"{name}.{key}"], key)
        self._masters = {}
        step = next(value for name, value in state.items() if name.endswith(".step"))
        for flat in self._flat_states():
            flat["step"].copy_(step)

    def model_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        return _whole_model(self._accelerator, self._scorer, safe_get_full_fp32_param)

    def _link_moments(self) -> None:
        """Make AdamW's moments now, all zero, and tell each parameter where its share lies.

        DeepSpeed does so after the first parameter group's first step, when the second has none yet.
        """
        for flat in self._flats:
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            self._adamw.state[flat] = {"step": torch.zeros((), device=flat.device), **moments}
        self.student.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _flats(self) -> list[nn.Parameter]:
        """Return this process's share of each parameter group, float32, which stands in place of the parameters."""
        return [flat for group in self._adamw.param_groups for flat in group["params"]]

    def _flat_states(self) -> list[dict[str, Any]]:
        return [self._adamw.state[flat] for flat in self._flats]


def learning_rate_at(step: int, *, peak: float, total: int, warmup: int, scheduler: str) -> float:
    """Return the rate of the update that makes step ``step`` (0-based), of a schedule that ends after ``total``.

    A pure function, so resuming is exact. After its end a schedule stays at what its last step had.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if scheduler == "constant":
        return peak
    progress = (min(step, max(total - 1, warmup)) - warmup) / max(1, total - warmup)
    return peak * (1 - progress) if scheduler == "linear" else peak * 0.5 * (1 + math.cos(math.pi * progress))


def _adamw(scorer: TokenScorer, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    parameters = [parameter for _, parameter in _trainable(scorer)]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},  # norms and biases
    ]
    # Fused: one pass over the memory and no temporaries, on processors too.
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=(ADAM_BETA1, beta2), eps=ADAM_EPS, fused=True)


def _set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _trainable(scorer: TokenScorer) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in scorer.named_parameters() if p.requires_grad)


def _in_main_process(accelerator: Accelerator, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Keep all on the CPU of the main process; elsewhere each is dropped before the next one is made."""
    kept = {}
    for name, tensor in tensors:
        if accelerator.is_main_process:
            kept[name] = tensor.cpu()
        del tensor
    return kept


def _whole_model(
    accelerator: Accelerator, scorer: TokenScorer, whole: Callable[[nn.Parameter], Tensor]
) -> dict[str, Tensor]:
    """Return the model's state in the main process. whole: of a parameter that is trained, maybe collective."""
    trained = dict(_trainable(scorer))
    kept = _in_main_process(accelerator, ((name, whole(parameter)) for name, parameter in trained.items()))
    if not accelerator.is_main_process:
        return {}
    by_parameter = {id(trained[name]): tensor for name, tensor in kept.items()}  # one that is tied has several names
    weights = scorer.model.state_dict(keep_vars=True)
    return {name: by_parameter.get(id(value), value.detach()) for name, value in weights.items()}
