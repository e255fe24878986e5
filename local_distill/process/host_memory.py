"""The C library's allocator, on a processor."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""
LARGEST_KEPT, MOST_KEPT = 2**30, 2**31 - 1
"""Bytes, as large as the int that glibc takes."""


def keep_freed_memory() -> None:
    """Let glibc keep what tensors leave behind, for the next ones.

    By default it hands every large block back, and the kernel clears each page anew when the next micro-batch
    asks for it: a third of a step on two cores (docs/benchmarks.md). Other allocators are left as they are.
    """
    if glibc_allocates():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def glibc_allocates() -> bool:
    """Return whether memory comes from glibc's own malloc, and not from one loaded before it, like tcmalloc's."""
    return platform.libc_ver()[0] == "glibc" and "malloc" not in os.environ.get("LD_PRELOAD", "")
