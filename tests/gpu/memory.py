"""The most that a device's memory held, and a limit on it: the allocator's own on a GPU, counted tensors elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak:
    """bytes: the most that tensors held together, above what there was before."""

    bytes = 0


class Memory(Protocol):
    def watched(self) -> AbstractContextManager[Peak]:
        """What is inside is watched; the peak is known when it is left."""
        ...

    def limited(self, more: int) -> AbstractContextManager[None]:
        """What is inside may have no more than ``more`` bytes beyond what is held before."""
        ...


def memory_of(device: torch.device) -> Memory:
    return OfCuda(device) if device.type == "cuda" else OfTensors()


class OfCuda:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    @contextmanager
    def watched(self) -> Iterator[Peak]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before, peak = torch.cuda.memory_allocated(self._device), Peak()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(self._device) - before

    @contextmanager
    def limited(self, more: int) -> Iterator[None]:
        torch.cuda.empty_cache()
        whole = torch.cuda.mem_get_info(self._device)[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(self._device) + more) / whole)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


class OfTensors:
    @contextmanager
    def watched(self) -> Iterator[Peak]:
        peak = Peak()
        with _Counted(most=None) as counted:
            yield peak
        peak.bytes = counted.peak

    @contextmanager
    def limited(self, more: int) -> Iterator[None]:
        with _Counted(most=more):
            yield


class _Counted(TorchDispatchMode):
    """Storages that operations make or meet, to the last of their tensors; what operations use inside is not seen."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self._most, self._now, self.peak = most, 0, 0
        self._there: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs, found)):  # weights come from files, past all operations
            self._count(tensor)
        return found

    def _count(self, tensor: torch.Tensor) -> None:
        if tensor.layout == torch._mkldnn:  # packed weights, which have no storage to be asked for
            owner, place, size = tensor, id(tensor), tensor.nbytes
        else:
            owner = tensor.untyped_storage()
            place, size = owner._cdata, owner.nbytes()
        if place in self._there:
            return
        if self._most is not None and self._now + size > self._most:
            raise torch.OutOfMemoryError(f"tried to allocate {size} bytes; {self._now} of {self._most} are in use")
        self._there.add(place)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(owner, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._there.discard(place)
        self._now -= size


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
