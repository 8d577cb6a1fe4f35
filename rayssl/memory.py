"""How the C library hands memory out: it keeps what is freed, for the next update to take."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory of this process; returns whether it could be asked to.

    By default glibc returns large blocks to the kernel as soon as they are free. An update frees
    all of its activations and gradients, and the next one would take them back page by page, each
    by a fault, filled with zeros. The process stays as large as its largest moment.
    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, e.g. musl
        return False
    settings = {M_MMAP_THRESHOLD: 1 << 25, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 1 << 26}
    return all(mallopt(name, value) for name, value in settings.items())
