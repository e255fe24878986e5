"""A run's memory, phase by phase and part by part: its weights by arithmetic, everything else by rehearsal."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from local_distill.inputs import loss_of
from local_distill.models.files import recompute_activations, skeleton_of
from local_distill.models.footprint import Part, shape_of
from local_distill.models.reach import freeze_towers
from local_distill.plan.machine import GIB
from local_distill.plan.planned_run import PlannedRun
from local_distill.plan.rehearsal import Costs, Decoding, Stage, Training
from local_distill.plan.weights import LIVE_PARAMETERS, MASTER, StudentWeights, TeacherWeights
from local_distill.rollouts.continuous import PAGE
from local_distill.rollouts.sampling import NucleusSampling
from local_distill.teachers.zero3 import zero3_config

T = TypeVar("T")

FRAGMENTATION = 0.05
"""Of what comes and goes on a GPU: what its allocator cannot use. Estimated."""
LOST_BY_GLIBC = 0.5
"""Of what comes and goes in training on a processor: small tensors split the blocks that large ones left in the heap of
glibc, and the next large ones take new memory. Estimated, from what runs hold beyond their tensors (docs/plan.md)."""
VLLM_CPU_CACHE = 4 * GIB
"""Keys and values of vLLM on a processor, where nobody sets VLLM_CPU_KVCACHE_SPACE."""
LIBRARIES, SCORES, COPIES, CACHE = "libraries", "rollouts and scores", "weights for decoding", "KV cache"
ACTIVATIONS, WORK, ENGINE, ALLOCATOR = "activations", "work", "vLLM engine", "allocator"


@dataclass(frozen=True)
class Phase:
    """What one process holds in one phase, at its fullest. standing: what is there before and after. passing: what
    comes and goes."""

    name: str
    standing: tuple[Part, ...]
    passing: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that take anything."""
        return tuple(part for part in self.standing + self.passing if part.bytes > 0)

    @property
    def bytes(self) -> float:
        """All parts together."""
        return sum(part.bytes for part in self.parts)

    @property
    def passing_bytes(self) -> float:
        """All parts that come and go."""
        return sum(part.bytes for part in self.passing)

    @property
    def certain_bytes(self) -> float:
        """All parts that are not estimated."""
        return sum(part.bytes for part in self.parts if not part.estimated)

    def of(self, name: str) -> float:
        """Bytes of the parts of this name."""
        return sum(part.bytes for part in self.parts if part.name == name)


class Memory:
    """The phases of a run, for its busiest process."""

    def __init__(self, run: PlannedRun) -> None:
        self.run = run
        self.not_counted = ""
        """Why activations are not in it, or nothing: models whose tensors' shapes depend on their values."""

    @cached_property
    def student(self) -> StudentWeights:
        """Its weights and what trains them."""
        run, skeleton = self.run, self._skeleton(self.run.student)
        shape = shape_of(skeleton)
        if run.adapter:
            trained = run.adapter.number_of_parameters(skeleton)
        else:
            freeze_towers(skeleton)
            trained = sum(p.numel() for p in skeleton.parameters() if p.requires_grad)
        return StudentWeights(
            shape, trained, run.adapter is not None, run.dtype.itemsize, run.machine.processes, run.zero_stage
        )

    @cached_property
    def teacher(self) -> TeacherWeights | None:
        """Its weights; None where there are none in this process."""
        run, config = self.run, self.run.config
        if run.teacher is None:
            return None
        kind, live = config.teacher_kind, LIVE_PARAMETERS
        if kind == "zero3":
            zero = zero3_config(config.teacher_ds_config)["zero_optimization"]
            given = zero.get("stage3_max_live_parameters", LIVE_PARAMETERS)
            live = float(given) if isinstance(given, int | float) else LIVE_PARAMETERS
        elif config.teacher_quantization != "none":
            kind = config.teacher_quantization
        elif config.teacher_offload != "none":
            kind = "offload"
        shape = shape_of(self._skeleton(run.teacher))
        return TeacherWeights(shape, kind, run.dtype.itemsize, run.machine.processes, run.machine.device, live)

    def phases(self, rollouts: int, rows: int) -> tuple[Phase, ...]:
        """All of them, with so many rollouts sampled at a time, and so many in a micro-batch."""
        return self.loading(), self.sampling(rollouts), self.scoring(rows), self.training(rows)

    def loading(self) -> Phase:
        """Both models, as they come from their files."""
        return Phase("loading", (self._libraries, self.student.loaded, *self._teacher_weights))

    def sampling(self, rollouts: int) -> Phase:
        """Our own loop's at its last token; or another engine's."""
        kind, config = self.run.config.rollouts_kind, self.run.config
        if kind == "vllm":
            return Phase("sampling", self._resident, self._engine_awake())
        found = self._counted(lambda: self._costs.sampling(rollouts, config.group_size), Decoding())
        copies, cache = found.copies, found.cache
        if kind == "continuous":  # the copies are there in all phases, and keys and values lie in pages
            at_once = self.run.rollouts if self.run.machine.device == "cpu" else 1  # a GPU's cache takes what is free
            pages = -(-self.run.lengths.whole // PAGE) + 1
            copies, cache = 0.0, cache / rollouts * at_once * pages * PAGE / self.run.lengths.whole
        parts = Part(COPIES, copies), Part(CACHE, cache), Part(WORK, found.work)
        return Phase("sampling", self._resident, (*parts, self._allocator(cache + found.work)))

    def scoring(self, rows: int) -> Phase:
        """The teacher's forward pass, when all other scores of the step are there."""
        work = self._counted(lambda: self._costs.scoring(rows), 0.0)
        layers = (self.teacher.passing(),) if self.teacher else ()
        return Phase("scoring", self._resident, (self._scores, Part(WORK, work), *layers, self._allocator(work)))

    def training(self, rows: int) -> Phase:
        """Forward and backward of a micro-batch, gradients and moments there; of ZeRO the update, if that is more."""
        student, found = self.student, self._counted(lambda: self._costs.training(rows), None)
        if found is None:
            found = self._tried(lambda: self._costs.training_head(rows), Training())
        parts: tuple[Part, ...] = Part(ACTIVATIONS, found.kept), Part(WORK, found.work)
        if student.stage:
            parts = *parts, Part("ZeRO-2 buckets", student.buckets(), estimated=True)
            if student.update() > sum(part.bytes for part in parts):
                parts = (Part(f"ZeRO-{student.stage} update", student.update(), estimated=True),)
        lost = self._allocator(sum(part.bytes for part in parts), LOST_BY_GLIBC)
        return Phase("training", self.standing().standing, (self._scores, *parts, lost))

    def standing(self) -> Phase:
        """What is there whenever it trains, without anything that goes through the models."""
        gradients = () if self.student.gradients_stay else (self.student.gradients(),)
        return Phase("training", (*self._resident, *gradients))

    @property
    def _libraries(self) -> Part:
        return Part(LIBRARIES, self.run.machine.libraries, estimated=True)

    @property
    def _teacher_weights(self) -> tuple[Part, ...]:
        return (self.teacher.resident(),) if self.teacher else ()

    @property
    def _resident(self) -> tuple[Part, ...]:
        """What is there in all phases after loading."""
        gradients = (self.student.gradients(),) if self.student.gradients_stay else ()
        return self._libraries, *self.student.resident(), *self._teacher_weights, *gradients, *self._engine()

    def _engine(self) -> tuple[Part, ...]:
        """What another engine than our own loop holds in all phases."""
        config, student = self.run.config, self.student
        low = student.item * student.shape.parameters
        if config.rollouts_kind == "continuous" and not student.adapter and student.item < MASTER:
            return (Part(COPIES, low),)
        if self._engine_inside and self.run.machine.device == "cpu":  # where it cannot sleep
            return (Part(ENGINE, low + VLLM_CPU_CACHE, estimated=True),)
        return ()

    def _engine_awake(self) -> tuple[Part, ...]:
        if not self._engine_inside or self.run.machine.device == "cpu":
            return ()
        return (Part(ENGINE, self.run.config.rollouts_memory_share * self.run.machine.memory, estimated=True),)

    @property
    def _engine_inside(self) -> bool:
        return self.run.config.rollouts_kind == "vllm" and not self.run.config.rollouts_url

    @property
    def _scores(self) -> Part:
        tokens = self.run.rollouts * self.run.lengths.completion
        return Part(SCORES, tokens * self._counted(lambda: self._costs.answers(), 0.0))

    def _allocator(self, comes_and_goes: float, lost_by_glibc: float = 0.0) -> Part:
        machine = self.run.machine
        share = FRAGMENTATION if machine.device == "cuda" else lost_by_glibc if machine.glibc else 0.0
        return Part(ALLOCATOR, share * comes_and_goes, estimated=True)

    def _counted(self, count: Callable[[], T], nothing: T) -> T:
        """What is counted; nothing, and a word on it, of a model whose tensors' shapes depend on their values."""
        return nothing if self.not_counted else self._tried(count, nothing)

    def _tried(self, count: Callable[[], T], nothing: T) -> T:
        try:
            return count()
        except Exception as error:  # a model's own code, which may ask anything of its tensors
            self.not_counted = self.not_counted or f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            return nothing

    @cached_property
    def _costs(self) -> Costs:
        run, config, on_cpu = self.run, self.run.config, self.run.machine.device == "cpu"
        stage = Stage(run.machine.device)
        skeleton = self._skeleton(run.student)
        freeze_towers(skeleton)
        student: nn.Module = run.adapter.put_shapes_on(skeleton) if run.adapter else skeleton
        stage.model(student, run.dtype if run.zero_stage else torch.float32, run.dtype)
        if config.gradient_checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the name is on its way out
                recompute_activations(student)
        teacher: nn.Module | None = student if config.teacher_kind == "self" else None
        if run.teacher is not None:
            teacher = stage.model(self._skeleton(run.teacher).requires_grad_(False), run.dtype, run.dtype)
        return Costs(
            stage, student, teacher, loss_of(config), NucleusSampling(config.temperature, config.top_p),
            dtype=run.dtype, under_autocast=not run.zero_stage, packs=on_cpu and config.rollouts_kind == "hf",
            vocab_size=run.vocab_size, top_k=config.top_k or 0, lengths=run.lengths,
        )  # fmt: skip

    def _skeleton(self, config: PretrainedConfig) -> PreTrainedModel:
        return skeleton_of(config, self.run.config.trust_remote_code)
