"""How much memory is free."""

from __future__ import annotations

from pathlib import Path

import psutil

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what a container, or a job of a cluster, may use."""


def free_memory() -> int:
    """Bytes of the computer's memory that are free; at most what a container or job is allowed."""
    free: int = psutil.virtual_memory().available
    versions = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    for limit, used in versions:
        try:
            allowed = int((CONTROL_GROUP / limit).read_text()) - int((CONTROL_GROUP / used).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        free = min(free, max(allowed, 0))
    return free
