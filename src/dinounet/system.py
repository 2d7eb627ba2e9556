"""The machine: device, precision, free memory, allocator, waiting threads, and this process's rank."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from dinounet.errors import ConfigError

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


@cache
def processor_has(instructions: str) -> bool:
    """Whether it has these instructions, by PyTorch's name for them (`avx512_bf16`, `amx_bf16`); older versions of
    PyTorch can't tell, which counts as no."""
    import torch

    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(told.get(instructions))


@dataclass(frozen=True)
class DistInfo:
    """This process among those that were started together."""

    rank: int = 0
    """Number of this process, from 0, over all nodes."""

    world_size: int = 1
    """Number of processes."""

    nodes: int = 1
    """Number of machines, with equally many processes on each."""

    launcher: Literal["none", "torchrun", "srun"] = "none"
    """What started the processes."""

    @property
    def local_world_size(self) -> int:
        """Number of processes on this machine."""
        return self.world_size // self.nodes


def dist_info() -> DistInfo:
    """Rank and world size of this process, from the launcher's environment variables.

    A SLURM job without srun is one process, however many tasks the job has asked for.

    Raises:
        ConfigError: the nodes have unequal shares of the processes.
    """
    told = os.environ
    if "TORCHELASTIC_RUN_ID" in told:
        processes, here = int(told["WORLD_SIZE"]), int(told["LOCAL_WORLD_SIZE"])
        rank, nodes, launcher = int(told["RANK"]), processes // here, "torchrun"
    elif "SLURM_STEP_NUM_TASKS" in told and "SLURM_PROCID" in told and "SLURM_STEP_NUM_NODES" in told:
        processes, nodes = int(told["SLURM_STEP_NUM_TASKS"]), int(told["SLURM_STEP_NUM_NODES"])
        rank, here, launcher = int(told["SLURM_PROCID"]), processes // nodes, "srun"
    else:
        return DistInfo()
    if here * nodes != processes:
        raise ConfigError(
            f"{processes} processes can't be shared equally by the nodes; start equally many on each, with torchrun "
            "--nproc-per-node or srun --ntasks-per-node"
        )
    return DistInfo(rank, processes, nodes, launcher)  # type: ignore[arg-type]


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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, as far as they are installed."""
    packages = (
        "dinounet",
        "torch",
        "timm",
        "lightning-fabric",
        "batchgeneratorsv2",
        "numpy",
        "nibabel",
        "SimpleITK",
    )
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict[str, str]:
    """What this machine is, without naming it."""
    import torch

    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": str(torch.backends.cpu.get_cpu_capability()),
        "cores": str(os.cpu_count()),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def command() -> tuple[str, ...]:
    """The command as typed, the program without its folder."""
    return (Path(sys.argv[0]).name, *sys.argv[1:])


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


Device = Literal["auto", "cpu", "cuda", "mps"]
"""auto: CUDA if there is one, else MPS, else the CPU."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""auto: bf16 where the device computes with it natively, else fp32; fp16 on CUDA alone."""


def choose_device(device: Device) -> Literal["cpu", "cuda", "mps"]:
    """The device to use.

    Raises:
        ConfigError: this machine (or this build of PyTorch) has no such device.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return "cuda" if there["cuda"] else "mps" if there["mps"] else "cpu"
    if not there[device]:
        raise ConfigError(f"this machine has no {device} device that PyTorch can use; choose --device auto")
    return device


def choose_training_device(device: Device) -> Literal["cpu", "cuda", "mps"]:
    """The device to train on: CUDA or the CPU.

    Raises:
        ConfigError: this machine has no such device, or it is an Apple GPU.
    """
    if device == "mps":
        raise ConfigError(
            "training on an Apple GPU is not possible yet, since PyTorch lacks the gradient of grid_sample there; "
            "choose --device cpu (predicting works with --device mps)"
        )
    chosen = choose_device(device)
    return "cpu" if chosen == "mps" else chosen


def choose_precision(precision: Precision, device: Literal["cpu", "cuda", "mps"]) -> Literal["fp32", "bf16", "fp16"]:
    """The precision to compute with; weights are float32 in any case.

    Raises:
        ConfigError: fp16 anywhere but on CUDA.
    """
    import torch

    if precision == "fp16" and device != "cuda":
        raise ConfigError(f"fp16 is for CUDA and this run is on {device}; choose --precision bf16 or fp32")
    if precision != "auto":
        return precision
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        native = processor_has("avx512_bf16")
    else:
        native = False
    return "bf16" if native else "fp32"


def available_memory(device: str) -> int:
    """Bytes that are free on a device."""
    import torch

    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()


@contextmanager
def reproducible(wanted: bool) -> Iterator[None]:
    """Within the block PyTorch uses deterministic algorithms only, if that is wanted."""
    if not wanted:
        yield
        return
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's first matrices are multiplied
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)  # cuDNN's choice as well
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
