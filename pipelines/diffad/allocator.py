"""Keeps freed CPU memory in the process, for scripts whose tensors come and go at the same sizes."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
ONE_GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Stops glibc from handing every freed tensor back to the kernel, and says whether it could.

    By default each large tensor is mapped, zeroed page by page on first touch, and unmapped again. For a small network on
    a CPU these page faults cost as much time as its arithmetic. Call it once, first thing in a script.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, ONE_GIB) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
