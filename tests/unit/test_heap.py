"""What is freed stays with the process, or not where the user says so."""

import os
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


@pytest.mark.skipif("glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="no glibc")  # type: ignore[operator]
@pytest.mark.parametrize("by_user", [False, True])
def test_freed_memory_stays_unless_the_user_has_settings(by_user: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    if by_user:
        environment["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    kept = int(done.stdout)
    assert kept < 2_000_000 if by_user else kept > 18_000_000
