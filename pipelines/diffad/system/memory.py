"""What a process does with its memory: keeping freed memory or handing it back, and the peak so far."""

import ctypes
import platform
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
ONE_MIB, ONE_GIB = 1 << 20, 1 << 30


def keep_freed_memory() -> bool:
    """Stops glibc from handing every freed tensor back to the kernel, and says whether it could.

    By default each large tensor is mapped, zeroed page by page on first touch, and unmapped again. For a small network on
    a CPU these page faults cost as much time as its arithmetic. Call it once, first thing in a script.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, ONE_GIB) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> bool:
    """Makes glibc hand every large freed tensor back to the kernel at once, and says whether it could.

    By default tensors below 32 MiB come to lie between small long-lived ones, where the gap they leave may not fit the next of
    the same size: a long loop over them can grow to many times its working set. The opposite of [`keep_freed_memory`].
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, ONE_MIB))


def peak_memory_mib() -> float:
    """Highest resident memory of this process so far in MiB; where there is a GPU, the highest allocation on it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10  # bytes in ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
