"""How much memory is free, to a process that may be in a container, or in a job of a cluster, with a limit of its own.

Linux keeps processes in groups that lie within each other; each may have a limit (man 7 cgroups; both versions). What
was read from files stays in memory as long as nobody needs it: it counts as used in a group, and is free all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

PROCESS = Path("/proc/self")
"""Where Linux tells of a process in which groups it is (`cgroup`) and where their files are (`mountinfo`)."""


class _Version(NamedTuple):
    """The names that a version of control groups has for what we ask."""

    limits: tuple[str, ...]
    used: str
    read_from_files: tuple[str, ...]
    """Keys in `memory.stat` of a group and all that are in it."""


VERSIONS = {
    "cgroup2": _Version(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
    "cgroup": _Version(
        ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
    ),
}
"""Versions of control groups by the type of their file system."""


def free_memory(process: Path = PROCESS) -> int:
    """Bytes of the computer's memory that are free; at most what the process's groups leave it.

    Args:
        process: the folder that tells of it.
    """
    free: int = psutil.virtual_memory().available
    for folder, version in _groups(process):
        limits = [number for name in version.limits if (number := _number(folder / name)) is not None]
        used = _number(folder / version.used)
        if limits and used is not None:
            free = min(free, max(min(limits) - used + _read_from_files(folder, version), 0))
    return free


def _groups(process: Path) -> Iterator[tuple[Path, _Version]]:
    """Folders of the groups that a process is in, and of those around them, as far as they are to be seen from here."""
    try:
        mounts, groups = ((process / name).read_text().splitlines() for name in ("mountinfo", "cgroup"))
    except OSError:  # another system than Linux
        return
    paths = {}
    for _, controllers, path in (line.split(":", 2) for line in groups):
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in mounts:
        mounted, _, kind = line.partition(" - ")
        system, _, options = kind.split(" ", 2)
        if system not in paths or (system == "cgroup" and "memory" not in options.split(",")):
            continue
        root, place = (re.sub(r"\\(\d{3})", _character, part) for part in mounted.split(" ")[3:5])
        inside = Path(paths[system]).parts[len(Path(root).parts) :] if Path(paths[system]).is_relative_to(root) else ()
        for depth in range(len(inside) + 1):
            yield Path(place, *inside[:depth]), VERSIONS[system]


def _character(written: re.Match[str]) -> str:
    """The character that an escape stands for, such as the space for \\040."""
    return chr(int(written[1], 8))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _read_from_files(folder: Path, version: _Version) -> int:
    """Bytes of a group that the system can take back at any time."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    told = dict(line.split(" ", 1) for line in lines)
    return sum(int(told.get(name, 0)) for name in version.read_from_files)
