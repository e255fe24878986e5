"""Freed memory is used again instead of being cleared anew by the kernel."""

import platform
import subprocess
import sys

import pytest

from local_distill.process.launch import glibc_allocates

FAULTS = """
import resource, sys, torch
from local_distill.process.launch import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(10):
        torch.ones(2**24)  # 64 MiB: 16,384 pages
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(what):
    found = subprocess.run([sys.executable, "-c", FAULTS, what], check=True, capture_output=True, text=True)
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_large_blocks_are_kept():
    assert page_faults("keep") < 1000 < page_faults("leave")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
@pytest.mark.parametrize(
    ("preloaded", "glibc"), [("", True), ("/usr/lib/libtcmalloc_minimal.so.4", False), ("libSegFault.so", True)]
)
def test_an_allocator_loaded_before_is_not_taken_for_glibcs(monkeypatch, preloaded, glibc):
    monkeypatch.setenv("LD_PRELOAD", preloaded)
    assert glibc_allocates() == glibc
