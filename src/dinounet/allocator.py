"""How the C library handles memory that was freed: kept, instead of given back and asked for again.

A step takes and frees the same gigabytes over and over. By default glibc returns every large piece to the system at
once, and the system clears each page anew for the next one, which takes longer than some layers do.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Names of glibc's `malloc.h`."""

TOP_PAD = 64 << 20
"""Bytes that are asked for beyond what is needed, so as to ask less often."""

LARGEST_KEPT = 128_000_000
"""Bytes. Larger pieces are few; kept, smaller ones would settle in their places and each need a new one."""

LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """From here on this process keeps up to 2 GB of freed memory for itself; without effect where there is no glibc.

    `malloc_trim` still gives it back.
    """
    with suppress(OSError, AttributeError, TypeError):  # musl, macOS; Windows can't open "itself"
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  musl has a mallopt, too, but none of these numbers
        if not libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT):  # old versions know no more than 32 MB, or all
            libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        libc.mallopt(M_TOP_PAD, TOP_PAD)
