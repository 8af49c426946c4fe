"""Memory that a training process has freed and will soon want again."""

import ctypes
import platform

__all__ = ["keep_freed"]

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed() -> bool:
    """Has this process keep the memory that it frees, for the tensors of its next step.

    glibc gives large blocks back to the system at once, and has every page of the next step's
    tensors faulted in and cleared anew: on a CPU a large batch then costs more an image than a
    small one. Numbers do not change. The process stays as large as it has ever been, so this is
    for processes that train and end; runs of grey images do it. It is what the variables
    ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1`` do from outside.

    Returns:
        Whether it could: only with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
