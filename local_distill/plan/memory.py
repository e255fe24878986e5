"""A run's memory is counted phase by phase and part by part: weights by arithmetic, everything else by rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

from local_distill.errors import with_type
from local_distill.models.footprint import WORK, DecodingBytes, Held, Part, Place, Shape, ToSample, shape_of
from local_distill.models.reach import freeze_towers
from local_distill.plan.planned_run import PlannedRun
from local_distill.plan.rehearsal import Costs, Rehearsed, TrainingBytes
from local_distill.rollouts.hf import while_sampling
from local_distill.training.optimizer import LARGEST_BUCKET

T = TypeVar("T")

FRAGMENTATION = 0.05
"""Share of what comes and goes on a GPU that its allocator cannot use. Estimated."""
LOST_BY_GLIBC = 0.5
"""Share of what comes and goes in training on a processor that is lost: small tensors split the blocks that large ones
left in glibc's heap, and the next large ones take new memory. Estimated, from what runs hold beyond their tensors
(docs/plan.md)."""
MASTER, MOMENTS = 4, 8
"""Bytes of a float32 weight, and of AdamW's two moments."""
NORM = 8
"""Bytes of a gradient while DeepSpeed takes its norm."""
STUDENT, TEACHER, OPTIMIZER, GRADIENTS = "student weights", "teacher weights", "optimizer", "gradients"
LAYERS = "teacher's layers, in passing"
LIBRARIES, SCORES, ACTIVATIONS, ALLOCATOR = "libraries", "rollouts and scores", "activations", "allocator"


@dataclass(frozen=True)
class Phase:
    """A phase is what one process holds in it at its fullest. standing: what is there before and after. passing: what
    comes and goes."""

    name: str
    standing: tuple[Part, ...]
    passing: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return all parts that take anything, in the order in which they are shown."""
        return tuple(part for part in self.standing + self.passing if part.bytes > 0)

    @property
    def bytes(self) -> float:
        """Return the bytes of all parts together."""
        return sum(part.bytes for part in self.parts)

    @property
    def passing_bytes(self) -> float:
        """Return the bytes of what comes and goes."""
        return sum(part.bytes for part in self.passing)

    @property
    def certain_bytes(self) -> float:
        """Return the bytes of all parts that are not estimated."""
        return sum(part.bytes for part in self.parts if not part.estimated)

    def of(self, name: str) -> float:
        """Return the bytes of the parts of this name."""
        return sum(part.bytes for part in self.parts if part.name == name)


@dataclass(frozen=True)
class StudentWeights:
    """A student is its weights, and the gradients and moments that train them.

    shape: without the adapter. trained: parameters that are trained. adapter: they are an adapter's, and the rest is
    frozen. item: bytes of a weight in the precision of the products. stage: of ZeRO, which shards the optimizer over
    ``processes``, and as 2 the gradients too; 0 without it.
    """

    shape: Shape
    trained: int
    adapter: bool
    item: int
    processes: int
    stage: int = 0

    @property
    def loaded(self) -> Part:
        """Return the weights as they come from their files: all in float32, but a base under an adapter."""
        frozen = self.item * self.shape.parameters if self.adapter else MASTER * (self.shape.parameters - self.trained)
        return Part(STUDENT, frozen + MASTER * self.trained)

    def resident(self) -> tuple[Part, ...]:
        """Return what is there in every phase but loading."""
        if self.stage:
            whole = self.shape.parameters + (self.trained if self.adapter else 0)
            return Part(STUDENT, self.item * whole), Part(OPTIMIZER, (MASTER + MOMENTS) * self.trained / self.processes)
        return self.loaded, Part(OPTIMIZER, MOMENTS * self.trained)

    @property
    def gradients_stay(self) -> bool:
        """Tell whether gradients are always there: those of several processes are, unless they are shared out."""
        return self.processes > 1 and self.stage < 2

    def gradients(self) -> Part:
        """Return the gradients of an update, in float32.

        Those of the last micro-batch are counted with it, but for ZeRO-1, where they stay.
        """
        if self.stage == 2:
            return Part(GRADIENTS, MASTER * self.trained / self.processes)
        return Part(GRADIENTS, (MASTER + (self.item if self.stage else 0)) * self.trained)

    def buckets(self) -> float:
        """Return what ZeRO-2 takes in backward: two buckets in turn, and the one that is reduced once more, flat."""
        return 3 * self.item * min(LARGEST_BUCKET, self.trained) if self.stage == 2 else 0.0

    def update(self) -> float:
        """Return what the update takes. ZeRO-2: a norm, in float64; ZeRO-1: all gradients, as they are sent."""
        if self.stage == 2:
            return NORM * min(self.shape.head, self.trained / self.processes)
        return self.item * self.trained if self.stage == 1 else 0.0


class Memory:
    """A run's memory is that of its busiest process, phase by phase.

    rehearsed: for other runs of the same models, which differ in their settings; it is not rehearsed again.
    """

    def __init__(self, run: PlannedRun, rehearsed: Rehearsed | None = None) -> None:
        self.run = run
        self.rehearsed: Rehearsed = {} if rehearsed is None else rehearsed
        self.not_counted = ""
        """Why activations are not counted, or nothing: some models' tensors have shapes that depend on values."""

    @cached_property
    def student(self) -> StudentWeights:
        """Count the student's weights and what trains them."""
        run, skeleton = self.run, self.run.skeleton(self.run.student)
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
    def teacher(self) -> Held | None:
        """Count the teacher's weights; None where there are none in this process."""
        run, held = self.run, self.run.teacher_memory.held
        if held is None or run.teacher is None:
            return None
        place = Place(run.machine.device, run.machine.processes, run.dtype.itemsize)
        return held(run.config, shape_of(run.skeleton(run.teacher)), place)

    def phases(self, rollouts: int, rows: int) -> tuple[Phase, ...]:
        """Count all phases, with so many rollouts sampled at a time, and so many in a micro-batch."""
        return self.loading(), self.sampling(rollouts), self.scoring(rows), self.training(rows)

    def loading(self) -> Phase:
        """Count both models as they come from their files."""
        return Phase("loading", (self._libraries, self.student.loaded, *self._teacher_weights))

    def sampling(self, rollouts: int) -> Phase:
        """Count what the sampler holds at its fullest; our own loop, at its last token.

        With the teacher's share: the sampler, or the teacher's weights in our own loop, whichever holds more.
        """
        run, size = self.run, self.run.config.group_size

        def decoding(by_teacher: bool = False) -> DecodingBytes:
            return self._counted(lambda: self._costs.sampling(rollouts, size, by_teacher), DecodingBytes())

        count = run.sampler_memory.sampling
        found = [count(self._to_sample, rollouts, decoding) if count else ((), ())]
        if run.config.teacher_share:
            found.append(while_sampling(self._to_sample, rollouts, partial(decoding, by_teacher=True)))
        phases = [
            Phase("sampling", (*self._resident, *standing), (*passing, self._allocator(sum(p.bytes for p in passing))))
            for standing, passing in found
        ]
        return max(phases, key=lambda phase: phase.bytes)

    def scoring(self, rows: int) -> Phase:
        """Count the teacher's forward pass, when all other scores of the step are there."""
        work, held = self._counted(lambda: self._costs.scoring(rows), 0.0), self.teacher
        layers = (Part(LAYERS, held.passing, estimated=not held.passing_is_certain),) if held else ()
        return Phase("scoring", self._resident, (self._scores, Part(WORK, work), *layers, self._allocator(work)))

    def training(self, rows: int) -> Phase:
        """Count forward and backward of a micro-batch, with all gradients there; or ZeRO's update, if that is more."""
        student, found = self.student, self._counted(lambda: self._costs.training(rows), None)
        if found is None:
            found = self._tried(lambda: self._costs.training_head(rows), TrainingBytes())
        parts: tuple[Part, ...] = Part(ACTIVATIONS, found.kept), Part(WORK, found.work)
        if student.stage:
            parts = *parts, Part("ZeRO-2 buckets", student.buckets(), estimated=True)
            if student.update() > sum(part.bytes for part in parts):
                parts = (Part(f"ZeRO-{student.stage} update", student.update(), estimated=True),)
        lost = self._allocator(sum(part.bytes for part in parts), LOST_BY_GLIBC)
        return Phase("training", self.standing().standing, (self._scores, *parts, lost))

    def standing(self) -> Phase:
        """Count what is there whenever it trains, without anything that goes through the models."""
        gradients = () if self.student.gradients_stay else (self.student.gradients(),)
        return Phase("training", (*self._resident, *gradients))

    @property
    def _libraries(self) -> Part:
        return Part(LIBRARIES, self.run.machine.libraries, estimated=True)

    @property
    def _teacher_weights(self) -> tuple[Part, ...]:
        return (Part(TEACHER, self.teacher.standing),) if self.teacher else ()

    @property
    def _resident(self) -> tuple[Part, ...]:
        """Return what is there in all phases after loading."""
        gradients = (self.student.gradients(),) if self.student.gradients_stay else ()
        sampler = self.run.sampler_memory.always(self._to_sample)
        return self._libraries, *self.student.resident(), *self._teacher_weights, *gradients, *sampler

    @property
    def _to_sample(self) -> ToSample:
        run, student = self.run, self.student
        masters = not student.adapter and student.item < MASTER and not student.stage  # ZeRO's are in the optimizer
        weights, there = student.item * student.shape.parameters, run.machine
        return ToSample(run.config, weights, masters, there.device, there.memory, run.rollouts, run.lengths.whole)

    @property
    def _scores(self) -> Part:
        tokens = self.run.rollouts * self.run.lengths.completion
        return Part(SCORES, tokens * self._counted(lambda: self._costs.answers(), 0.0))

    def _allocator(self, comes_and_goes: float, lost_by_glibc: float = 0.0) -> Part:
        machine = self.run.machine
        share = FRAGMENTATION if machine.device == "cuda" else lost_by_glibc if machine.glibc else 0.0
        return Part(ALLOCATOR, share * comes_and_goes, estimated=True)

    def _counted(self, count: Callable[[], T], nothing: T) -> T:
        """Return what is counted, or ``nothing`` of a model that cannot be rehearsed."""
        return nothing if self.not_counted else self._tried(count, nothing)

    def _tried(self, count: Callable[[], T], nothing: T) -> T:
        try:
            return count()
        except Exception as error:  # a model's own code, which may ask anything of its tensors
            self.not_counted = self.not_counted or with_type(error, 160)
            return nothing

    @cached_property
    def _costs(self) -> Costs:
        return Costs(self.run, self.rehearsed)
