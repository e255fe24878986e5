"""Which errors say that a device has no memory left: torch's own type, and the words of CUDA and its libraries."""

import pytest
import torch
from torch.distributed import DistBackendError

from local_distill.process.distributed import losing_others
from local_distill.training.device_memory import is_out_of_memory

NCCL = DistBackendError(
    "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (NCCL, True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_an_error_of_memory_is_known_by_type_or_by_words(error, expected):
    assert is_out_of_memory(error) == expected


def test_memory_that_nccl_lacks_is_no_process_that_has_gone():
    with pytest.raises(DistBackendError), losing_others():
        raise NCCL
