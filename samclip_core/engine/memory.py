"""What has been freed is kept for what comes next, where glibc would give it back to the system."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_LARGEST_ONCE = 2**25  # block that glibc allowed to be kept until 2.34


def keep_memory(most: int = 2**28) -> None:
    """Keep up to ``most`` bytes (below 2**31) of what this process frees from now on.

    Blocks of an eighth of that or more are given back all the same. glibc by itself gives back any
    that is large; to be given 3,900 empty pages again takes an eighth of the time of an image, and
    a sixth of that of a step of training. All threads share one heap from now on: in one of its own
    a thread gives back each 64 MB that become free, whatever is to be kept (a tenth of the time of
    clicks on two cores). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, most // 8) or mallopt(_MMAP_THRESHOLD, _LARGEST_ONCE)
        mallopt(_TRIM_THRESHOLD, most)
        mallopt(_ARENA_MAX, 1)
