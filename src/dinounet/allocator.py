"""How the C library handles memory that was freed: kept, instead of given back and asked for again.

A step takes and frees the same gigabytes over and over. By default glibc returns every large piece to the system at
once, and the system clears each page anew for the next one, which takes longer than some layers do.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Names of glibc's `malloc.h`."""

TOP_PAD = 64 << 20
"""Bytes that are asked for beyond what is needed, so as to ask less often."""

LARGEST_KEPT = 128_000_000
"""Bytes. Larger pieces are few; kept, smaller ones would settle in their places and each need a new one."""

LARGEST_INT = 2**31 - 1

LARGE = 2 << 20
"""Bytes from which on `return_freed_memory` asks the system for each piece by itself."""

_returned = False
"""Whether this process was told to return what it frees, which holds from then on."""


def keep_freed_memory() -> None:
    """From here on this process keeps up to 2 GB of freed memory for itself; without effect where there is no glibc.

    `give_back_freed` returns it. After `return_freed_memory` this is not done any more.
    """
    if _returned:
        return
    _set({M_TRIM_THRESHOLD: LARGEST_INT, M_TOP_PAD: TOP_PAD})
    if not _set({M_MMAP_THRESHOLD: LARGEST_KEPT}):  # old versions know no more than 32 MB, or all
        _set({M_MMAP_MAX: 0})


def return_freed_memory() -> None:
    """From here on large pieces go back to the system as they are freed: for what is chosen because memory is short.

    Kept pieces are seldom taken again as a whole: where weights are widened layer by layer, a process would come to
    hold several times what it needs. Without effect where there is no glibc.
    """
    global _returned
    _returned = True
    _set({M_MMAP_MAX: LARGEST_INT, M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: LARGE, M_TOP_PAD: LARGE})
    give_back_freed()


def _set(options: dict[int, int]) -> bool:
    """Whether glibc is there and has taken them all."""
    with suppress(OSError, AttributeError, TypeError):  # musl, macOS; Windows can't open "itself"
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  musl has a mallopt, too, but none of these numbers
        return all([libc.mallopt(option, value) for option, value in options.items()])
    return False


def give_back_freed() -> None:
    """Make the C library return what it keeps of freed memory: for a measurement, or before much else is needed."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc returns it by itself, or never
        ctypes.CDLL(None).malloc_trim(0)
