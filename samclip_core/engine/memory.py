"""Keep freed memory for reuse, where glibc would return it to the system."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_LARGEST_ONCE = 2**25  # maximum of _MMAP_THRESHOLD until glibc 2.34


def keep_memory(most: int = 2**28) -> None:
    """Make glibc keep up to ``most`` bytes (below 2**31) of the memory that this process frees.

    Blocks of at least an eighth of that are still returned. By default glibc returns every large
    block, and the page faults to allocate it again take an eighth of the time to encode an image.
    All threads share one heap from then on, because a thread's own heap returns every 64 MB that
    become free, regardless of this setting. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, most // 8) or mallopt(_MMAP_THRESHOLD, _LARGEST_ONCE)
        mallopt(_TRIM_THRESHOLD, most)
        mallopt(_ARENA_MAX, 1)
