"""Memory of code that is run on tensors with shapes and without contents: torch's fake tensors.

The project's own code runs as it would, and what it would hold is counted tensor by tensor. The tensors say that they
are on the CPU, on any machine: so the attention that is counted is the processor's, which keeps what the GPU's fused
kernels keep (queries, keys, values, the output and one number a row).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from local_distill.head.logprobs import chunks_of_device

T = TypeVar("T")

DEVICE = torch.device("cpu")
"""Where tensors of a rehearsal say they are."""


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that are made while it is on, from their first tensor to their last.

    now: bytes of those that there are. peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._there: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.prim.device.default:
            return func(*args)
        self._count((args, kwargs), new=False)  # what was there before, weights and inputs, may come out as a view
        out = _run(func, args, kwargs or {})
        self._count(out, new=True)
        return out

    def forget_peak(self) -> None:
        """Look for the most from here on."""
        self.peak = self.now

    def _count(self, tensors: Any, new: bool) -> None:
        for tensor in _tensors(tensors):
            storage = tensor.untyped_storage()
            place = storage._cdata  # fake storages have no address of their own
            if place not in self._there:
                size = storage.nbytes() if new else 0
                self._there.add(place)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._there.discard(place)
        self.now -= size


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for each in found:
            yield from _tensors(each)
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
        return _nothing(args[0])
    if func is torch.ops.mkldnn._reorder_linear_weight.default:
        return args[0].clone()  # in another order, as large as before
    return func(*args, **kwargs)


def _nothing(tensor: Tensor) -> Any:
    """What is read from a tensor without contents, such as whether a rare case has come: no."""
    return False if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else 0


class Stage:
    """Where a rehearsal happens: a model's tensors and those of its inputs must come from the same one.

    device: the kind of device that is planned for, ``cuda`` or ``cpu``.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._fake = FakeTensorMode()

    def model(self, skeleton: nn.Module, trained: torch.dtype, frozen: torch.dtype) -> nn.Module:
        """The skeleton, its weights made fake in place: in one precision what is trained, in another what is not."""
        weights = {id(weight): weight for weight in skeleton.parameters()}
        with self._fake:
            made = {  # once for a weight that is tied
                key: _parameter(weight, trained if weight.requires_grad else frozen) for key, weight in weights.items()
            }
            for module in skeleton.modules():
                for name, weight in module._parameters.items():
                    if weight is not None:
                        module._parameters[name] = made[id(weight)]
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        return skeleton

    def rehearse(self, act: Callable[[Tally], T]) -> T:
        """What ``act`` says of the tally of what it does."""
        with self._fake, chunks_of_device(self._device), _no_packed_rows(), Tally() as tally:
            return act(tally)


_PATCHING = Lock()


@contextmanager
def _no_packed_rows() -> Iterator[None]:
    """Let transformers find no packed rows in fake tensors.

    Positions without contents tell it nothing, so it would give every row a mask as if several texts were packed in
    it, which here are never. Real tensors, another thread's, are looked at as ever; and one rehearsal waits for the
    other, or the one that ends last would put back what it had found of the first.
    """
    with _PATCHING:
        find = masking_utils.find_packed_sequence_indices

        def find_in_real(position_ids: Tensor) -> Any:
            return None if isinstance(position_ids, FakeTensor) else find(position_ids)

        masking_utils.find_packed_sequence_indices = find_in_real
        try:
            yield
        finally:
            masking_utils.find_packed_sequence_indices = find


def _parameter(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    dtype = dtype if weight.is_floating_point() else weight.dtype
    return nn.Parameter(torch.empty(weight.shape, dtype=dtype), requires_grad=weight.requires_grad)
