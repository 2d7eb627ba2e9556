"""Whether the network is being turned into a graph for others: then no shortcut of PyTorch's on a CPU is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_exporting = False


@contextmanager
def exporting() -> Iterator[None]:
    """While this lasts, the network computes with operators that other programs have too."""
    global _exporting
    _exporting = True
    try:
        yield
    finally:
        _exporting = False


def is_exporting() -> bool:
    """Whether it does."""
    return _exporting
