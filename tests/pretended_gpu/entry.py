"""Runs in processes with a pretended GPU each, one after the other: ``entry.py '[["--steps", "2", …], …]'``.

The processes talk as they would by NCCL, of tensors on GPUs alone; gloo carries the bytes. Run by torchrun; for
DeepSpeed with ACCELERATE_USE_DEEPSPEED set as ``accelerate launch`` sets it.
"""

from __future__ import annotations

import json
import os
import sys
from unittest.mock import patch

import torch
from torch import distributed as dist

from local_distill import train_on_policy_local
from tests.pretended_gpu.device import pretended_gpu


class PretendedNCCL(dist.ProcessGroup):
    """What data parallelism, DeepSpeed's ZeRO-2 and we ask of NCCL; all of it is done when it returns."""

    _device_types = (torch.device("cuda"),)  # where objects pass through

    def __init__(self, store, rank, size, timeout) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:  # noqa: N802
        return "pretended"

    def allreduce(self, tensors, options):
        return _done(self._gloo.allreduce(_memory(tensors), options), tensors)

    def broadcast(self, tensors, options):
        return _done(self._gloo.broadcast(_memory(tensors), options), tensors)

    def allgather(self, outputs, inputs, options):
        return _done(self._gloo.allgather([_memory(each) for each in outputs], _memory(inputs), options), outputs)

    def _allgather_base(self, output, given, options):
        return _done(self._gloo._allgather_base(*_flat([output, given]), options), output)

    def _reduce_scatter_base(self, output, given, options):
        return _done(self._gloo._reduce_scatter_base(*_flat([output, given]), options), output)

    # As torch.distributed calls these two since 2.13.
    all_gather_single, reduce_scatter_single = _allgather_base, _reduce_scatter_base

    def barrier(self, options):
        return _done(self._gloo.barrier(options), [])


def _memory(tensors):
    """On the host; there is no such operator for a tensor that is not on a GPU."""
    return [torch.ops.pretended.memory(tensor) for tensor in tensors]


def _flat(tensors):
    return [tensor.view(-1) for tensor in _memory(tensors)]


def _done(work, result):
    work.wait()
    future = torch.futures.Future(devices=[torch.device("cuda:0")])
    future.set_result(result)
    return torch._C._distributed_c10d._create_work_from_future(future)


def main(runs: list[list[str]]) -> int:
    """The largest of the runs' exit codes. The first one's process group is everybody's: DeepSpeed remembers it."""
    dist.Backend.register_backend("pretended", PretendedNCCL, devices=["cuda"])
    dist.init_process_group("pretended")
    with patch.object(dist, "destroy_process_group"):
        return max(train_on_policy_local.main(argv) for argv in runs)


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cuda"
    with pretended_gpu():
        sys.exit(main(json.loads(sys.argv[1])))
