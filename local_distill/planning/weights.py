"""Weights, gradients and moments of one process, by arithmetic; bytes."""

from __future__ import annotations

from dataclasses import dataclass

from local_distill.learning.updates import LARGEST_BUCKET
from local_distill.planning.phases import Part
from local_distill.planning.shapes import Shape

MASTER, MOMENTS = 4, 8
"""Bytes of a float32 weight, and of AdamW's two moments."""
PACKED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Bytes of a packed weight: 4bit has a scale of 8 bits for 64 weights, and a float32 for 256 scales (QLoRA)."""
LIVE_PARAMETERS = 1e9
"""ZeRO-3's stage3_max_live_parameters, most that are gathered at a time, unless its settings have another."""
STUDENT, TEACHER, OPTIMIZER, GRADIENTS = "student weights", "teacher weights", "optimizer", "gradients"


@dataclass(frozen=True)
class StudentWeights:
    """shape: without the adapter. trained: parameters that are trained. adapter: they are an adapter's, and the rest
    is frozen. item: bytes of a weight in the precision of the products. sharded: by ZeRO-2, over ``processes``."""

    shape: Shape
    trained: int
    adapter: bool
    item: int
    processes: int
    sharded: bool

    @property
    def loaded(self) -> Part:
        """As they come from their files: what is trained in float32."""
        frozen = self.item * self.shape.parameters if self.adapter else MASTER * (self.shape.parameters - self.trained)
        return Part(STUDENT, frozen + MASTER * self.trained)

    def resident(self) -> tuple[Part, ...]:
        """What is there in every phase but loading."""
        if self.sharded:
            whole = self.shape.parameters + (self.trained if self.adapter else 0)
            return Part(STUDENT, self.item * whole), Part(OPTIMIZER, (MASTER + MOMENTS) * self.trained / self.processes)
        return self.loaded, Part(OPTIMIZER, MOMENTS * self.trained)

    @property
    def gradients_stay(self) -> bool:
        """DistributedDataParallel's buckets hold them from the beginning to the end."""
        return self.processes > 1 and not self.sharded

    def gradients(self) -> Part:
        """Of an update, the last micro-batch's besides what is counted with it."""
        each = self.item / self.processes if self.sharded else MASTER
        return Part(GRADIENTS, each * self.trained)

    def buckets(self) -> float:
        """Of ZeRO-2, two of them while backward runs."""
        return 2 * self.item * min(LARGEST_BUCKET, self.trained) if self.sharded else 0.0

    def update(self) -> float:
        """Of ZeRO-2's update: its share of the gradients once more, flat, and in float32."""
        return (self.item + MASTER) * self.trained / self.processes if self.sharded else 0.0


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
