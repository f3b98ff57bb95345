"""Memory: kernels are limited before they are used, the user's own limit wins, and freed memory goes back."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, os
from tinyhat.embed.memory import bound_memory, give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

bound_memory()
read = ctypes.CDLL(None).getenv  # as oneDNN and torch read it
read.restype = ctypes.c_char_p
print(read(b"LRU_CACHE_CAPACITY").decode(), read(b"ONEDNN_PRIMITIVE_CACHE_CAPACITY").decode())
kept = [bytearray(100_000) for _ in range(1000)]  # below what the allocator maps for itself
del kept[:-1]  # and the last holds the heap up
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
def test_kernel_caches_are_limited_unless_the_user_said_otherwise_and_memory_goes_back():
    environment = {"LRU_CACHE_CAPACITY": "7", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    limits, freed = done.stdout.splitlines()
    assert limits == "7 16"
    assert int(freed) > 50, "of 95 MiB"
