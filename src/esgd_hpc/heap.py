"""Memory that is freed stays with the process, where the C library is glibc."""

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""mallopt's numbers for these settings."""
SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (_MMAP_THRESHOLD, 2**25),  # the largest that glibc takes
    "MALLOC_TRIM_THRESHOLD_": (_TRIM_THRESHOLD, 2**30),
}
"""Number and value in bytes by the environment variable that users may have set instead."""


def keep_freed_memory() -> None:
    """Let the C library keep up to 1 GiB of what is freed, unless the environment sets its own.

    By default glibc may give the memory of each batch back to the kernel and take it again for the
    next one, page by page, which can cost a fifth of the time of training on a CPU.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or any(name in os.environ for name in SETTINGS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not all C libraries have it
    if mallopt is not None:
        for number, value in SETTINGS.values():
            mallopt(number, value)
