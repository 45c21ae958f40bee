"""What is freed stays with the process, or not where the user says so."""

import os
import platform
import subprocess
import sys

import pytest

from esgd_hpc.heap import SETTINGS

SCRIPT = """
import ctypes, os
from pathlib import Path

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

from esgd_hpc.heap import keep_freed_memory
keep_freed_memory()
before = resident()
block = libc.malloc(20_000_000)
ctypes.memset(block, 1, 20_000_000)
libc.free(block)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")
@pytest.mark.parametrize(
    "by_user",
    [
        {},
        {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"},
    ],
    ids=["ours", "variable", "tunable"],
)
def test_freed_memory_stays_unless_the_user_has_settings(by_user: dict[str, str]) -> None:
    ours = {*SETTINGS, "GLIBC_TUNABLES"}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | by_user
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    kept = int(done.stdout)
    assert kept < 2_000_000 if by_user else kept > 18_000_000
