"""Weights, gradients and moments of one process, by arithmetic; bytes."""

from __future__ import annotations

from dataclasses import dataclass

from local_distill.models.footprint import Part, Shape
from local_distill.training.optimizer import LARGEST_BUCKET

MASTER, MOMENTS = 4, 8
"""Bytes of a float32 weight, and of AdamW's two moments."""
NORM = 8
"""Bytes of a gradient while DeepSpeed takes its norm."""
PACKED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Bytes of a packed weight: 4bit has a scale of 8 bits for 64 weights, and a float32 for 256 scales (QLoRA)."""
LIVE_PARAMETERS = 1e9
"""ZeRO-3's stage3_max_live_parameters, most that are gathered at a time, unless its settings have another."""
STUDENT, TEACHER, OPTIMIZER, GRADIENTS = "student weights", "teacher weights", "optimizer", "gradients"


@dataclass(frozen=True)
class StudentWeights:
    """shape: without the adapter. trained: parameters that are trained. adapter: they are an adapter's, and the rest
    is frozen. item: bytes of a weight in the precision of the products. stage: of ZeRO, which shards the optimizer over
    ``processes``, and as 2 the gradients too; 0 without it."""

    shape: Shape
    trained: int
    adapter: bool
    item: int
    processes: int
    stage: int = 0

    @property
    def loaded(self) -> Part:
        """As they come from their files: all in float32, but a base under an adapter."""
        frozen = self.item * self.shape.parameters if self.adapter else MASTER * (self.shape.parameters - self.trained)
        return Part(STUDENT, frozen + MASTER * self.trained)

    def resident(self) -> tuple[Part, ...]:
        """What is there in every phase but loading."""
        if self.stage:
            whole = self.shape.parameters + (self.trained if self.adapter else 0)
            return Part(STUDENT, self.item * whole), Part(OPTIMIZER, (MASTER + MOMENTS) * self.trained / self.processes)
        return self.loaded, Part(OPTIMIZER, MOMENTS * self.trained)

    @property
    def gradients_stay(self) -> bool:
        """Of several processes they are there from the beginning to the end, unless they are shared out."""
        return self.processes > 1 and self.stage < 2

    def gradients(self) -> Part:
        """Of an update, in float32; the last micro-batch's besides what is counted with it, but with ZeRO-1, where they
        stay."""
        if self.stage == 2:
            return Part(GRADIENTS, MASTER * self.trained / self.processes)
        return Part(GRADIENTS, (MASTER + (self.item if self.stage else 0)) * self.trained)

    def buckets(self) -> float:
        """Of ZeRO-2 while backward runs: two that take turns, and the one that is reduced flattened once more."""
        return 3 * self.item * min(LARGEST_BUCKET, self.trained) if self.stage == 2 else 0.0

    def update(self) -> float:
        """Of ZeRO's update. 2: the norm of the largest tensor, in float64. 1: gradients as they are sent."""
        if self.stage == 2:
            return NORM * min(self.shape.head, self.trained / self.processes)
        return self.item * self.trained if self.stage == 1 else 0.0


@dataclass(frozen=True)
class TeacherWeights:
    """kind: local, zero3, offload, 4bit or 8bit. device: ``cuda`` or ``cpu``. live: ZeRO-3's most live parameters."""

    shape: Shape
    kind: str
    item: int
    processes: int
    device: str
    live: float = LIVE_PARAMETERS

    def resident(self) -> Part:
        """What is there in every phase."""
        shape, whole = self.shape, self.item * self.shape.parameters
        if self.kind == "zero3":
            return Part(TEACHER, whole / self.processes)
        if self.kind in PACKED:
            packed = PACKED[self.kind] * shape.packable
            return Part(TEACHER, packed + self.item * (shape.parameters - shape.packable))
        if self.kind == "offload" and self.device == "cuda":
            return Part(TEACHER, self.item * shape.head)
        return Part(TEACHER, whole)

    def passing(self) -> Part:
        """What comes and goes while it scores."""
        shape = self.shape
        most, estimated = 0.0, True
        if self.kind == "zero3" and self.processes > 1:
            most = min(self.live, shape.parameters - shape.head) + shape.head  # the head is whole during all of it
        elif self.kind in PACKED:
            most = shape.largest_linear
        elif self.kind == "offload" and self.device == "cuda":
            most, estimated = shape.largest_pass, False
        return Part("teacher's layers, in passing", self.item * most, estimated)
