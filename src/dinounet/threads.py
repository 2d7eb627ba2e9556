"""How threads that compute together wait for each other: asleep, instead of spinning.

PyTorch's kernels on the CPU are shared out to the threads of an OpenMP library, which meet at the end of every kernel.
By default those that are early spin there. With a core each that spares some microseconds; where another program keeps
a core busy they burn the time that the late one needs, and everything takes many times as long.

An OpenMP library reads its environment once, as it is loaded, which `import torch` does. So the program says how to
wait at its very beginning; processes that it starts inherit it. A library that is imported must not: its host's
environment is the host's.
"""

from __future__ import annotations

import os

WAITING = {
    # libgomp, which PyTorch brings on Linux: as long as it spins by itself where threads outnumber processors. Not at
    # all would be a little faster on a busy machine, and slower on an idle one, where waking a thread takes longer
    "GOMP_SPINCOUNT": "1000",
    "KMP_BLOCKTIME": "0",  # milliseconds; LLVM's libomp and Intel's, which it brings on macOS and Windows
}
"""Environment variables by which OpenMP libraries are told to sleep soon (benchmarks/busy.py)."""

CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "KMP_LIBRARY", *WAITING)
"""Environment variables by which users themselves say how threads wait."""


def wait_asleep() -> None:
    """Make OpenMP's threads sleep while they wait, in this process if it hasn't loaded PyTorch yet, and in those that
    it starts. Without effect where the user's environment says how to wait."""
    if not any(variable in os.environ for variable in CHOSEN_BY_USER):
        os.environ.update(WAITING)


def may_spin() -> bool:
    """Whether the user's environment asks for threads that spin: other runtimes than OpenMP don't read it."""
    return os.environ.get("OMP_WAIT_POLICY", "").strip().lower() == "active"
