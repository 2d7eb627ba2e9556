"""Fills a cache: reads, checks and preprocesses cases, slice by slice, in several processes where that is worth it."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.console import claim_process
from dinounet.data.arrays import Reservoir
from dinounet.data.geometry import Volume
from dinounet.data.images import on_one_grid
from dinounet.data.label_inference import OddValues, collect_odd_values, describe_problems
from dinounet.data.layouts import Case
from dinounet.data.lazy_volume import MASK_BYTES, bytes_to_read, can_stay, open_image, open_truth, pixels_of, probe
from dinounet.data.masks import check_case
from dinounet.data.preprocessing import image_to_slices, mask_to_slices, measure_channels, resampled_size, slice_axis
from dinounet.errors import DataError, UserError, collect_errors
from dinounet.io import atomic_dir, summarize
from dinounet.schema.labels import IGNORED
from dinounet.schema.plan import DataPlan
from dinounet.system import free_memory

PLACES_A_CLASS = 10_000
"""Pixels of a class that a case remembers for sampling around foreground."""

KNOWN = 0
"""In the place of a class: pixels that somebody has judged, remembered where there is an ignore label."""

WORTH_PROCESSES = 64_000_000
"""Bytes of decoded images below which starting processes takes longer than it saves."""


@dataclass(frozen=True)
class Needs:
    """What it takes to preprocess a case, in bytes."""

    on_disk: int
    """Of its part of the cache."""

    in_memory: int
    """Of image and mask if they are read whole."""

    must_be_whole: bool
    """Whether they can't be read plane by plane."""


def estimate(case: Case, plan: DataPlan) -> Needs:
    """What a case is going to need, as its header tells; where that doesn't tell, the plan's median case."""
    channels = len(plan.channels)
    found = probe(case.images)
    pixels = math.prod(_shape_of(found, plan))
    if found is None:
        return Needs(pixels * (4 * channels + 1), pixels * (8 * channels + MASK_BYTES), must_be_whole=True)
    return Needs(
        pixels * (4 * channels + 1),
        bytes_to_read(found) + pixels_of(found) * MASK_BYTES,
        must_be_whole=not can_stay(found, plan.slice_axis),
    )


def estimate_shape(case: Case, plan: DataPlan) -> tuple[int, int, int]:
    """Slices, rows and columns that a case is going to have, as far as is known without reading it."""
    return _shape_of(probe(case.images), plan)


def _shape_of(found: Volume | None, plan: DataPlan) -> tuple[int, int, int]:
    if found is None:
        return plan.fingerprint.median_shape
    return found.shape[slice_axis(found, plan)], *resampled_size(found, plan)


def prepare_cases(
    cases: Sequence[Case],
    needs: Sequence[Needs],
    plan: DataPlan,
    folders: Sequence[Path],
    on_case: Callable[[], None],
) -> list[str]:
    """Preprocess each case into its folder, which doesn't exist yet.

    Args:
        cases: what to read.
        needs: the estimate of each.
        plan: says what to make of it.
        folders: where to write.
        on_case: called after each case.

    Returns:
        what is wrong with images and masks, in the order of the cases; the others' folders are there all the same.

    Raises:
        OSError: writing failed.
        UserError: a process was killed.
    """
    memory = free_memory() // 2
    workers = min(_cores(), len(cases), memory // max((n.in_memory for n in needs if n.must_be_whole), default=1))
    if workers < 2 or sum(need.in_memory for need in needs) < WORTH_PROCESSES:
        found = []
        for case, folder in zip(cases, folders, strict=True):
            found.append(_prepare(case, plan, folder, memory))
            on_case()
        return _told(found)
    context = multiprocessing.get_context("spawn")  # forked ones would hold the cache's lock after our death
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _begin_worker, (stop,)) as pool:
        try:
            with _started_clean():
                tasks = [
                    pool.submit(_prepare, case, plan, folder, memory // workers)
                    for case, folder in zip(cases, folders, strict=True)
                ]
            for task in as_completed(tasks):
                task.result()
                on_case()
        except BrokenProcessPool:
            raise UserError(
                "a process that prepared images was killed, as happens when memory is short; close other programs and "
                "start again"
            ) from None
        except BaseException:  # the disk is full, or Ctrl-C: the others need not finish what they do
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return _told([task.result() for task in tasks])


_stop: Any = None
"""In a worker: set when it should leave its case."""


def _begin_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    claim_process()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _MainOfNoFile(types.ModuleType):
    """Stands in for the main module: what has it run once more finds no file; all else is there for other threads."""

    def __init__(self, main: types.ModuleType) -> None:
        super().__init__("__main__")
        self._main = main

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":
            raise AttributeError(name)
        return getattr(self._main, name)


_starting = threading.Lock()


@contextmanager
def _started_clean() -> Iterator[None]:
    """Processes that start in this block leave Ctrl-C to us, and don't run the user's own script once more.

    The latter would be a new training in each of them, unless the script guards itself against it.
    """
    blocks = hasattr(signal, "pthread_sigmask")  # not on Windows
    with _starting:  # two threads would put back each other's
        main = sys.modules["__main__"]
        sys.modules["__main__"] = _MainOfNoFile(main)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else None  # of this thread alone
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _told(found: Sequence[str | OddValues | None]) -> list[str]:
    """What is wrong with cases, in sentences; none of those with which nothing is."""
    return describe_problems([problem for problem in found if problem])


def _prepare(case: Case, plan: DataPlan, folder: Path, memory: int) -> str | OddValues | None:
    """Preprocess one case; returns what is wrong with it."""
    problems: list[str] = []
    odd: list[OddValues] = []
    image = mask = None
    try:
        with collect_errors(problems):
            image = open_image(case.images, memory // 2, plan.slice_axis)
        with collect_errors(problems), collect_odd_values(odd):
            mask = open_truth(case, plan.meaning, memory // 2, plan.slice_axis)
        if image is None or mask is None:
            return summarize([*problems, *describe_problems(odd)]) if problems else odd[0]
        mask = on_one_grid(mask, image)[0]
        check_case(image, mask, [channel.name for channel in plan.channels], plan.meaning.given)
        moments = measure_channels(image, plan.channels)
        slices, size = image.shape[slice_axis(image, plan)], resampled_size(image, plan)
        background = [0] if plan.ignore is None else [0, IGNORED]
        chosen: dict[int, Reservoir] = {}
        with atomic_dir(folder) as temporary:
            with array_file(temporary / "image.npy", (slices, len(plan.channels), *size), np.float32) as write:
                for index in range(slices):
                    write(image_to_slices(image, plan, slice(index, index + 1), moments))
            random = np.random.default_rng(0)
            with array_file(temporary / "mask.npy", (slices, *size), np.uint8) as write:
                for index in range(slices):
                    classes = mask_to_slices(mask, plan, slice(index, index + 1))
                    write(classes)
                    wanted = {label: classes == label for label in np.setdiff1d(classes, background).tolist()}
                    if plan.ignore is not None:
                        wanted[KNOWN] = classes != IGNORED
                    for label, here in wanted.items():
                        places = np.argwhere(here).astype(np.int32)
                        places[:, 0] = index
                        chosen.setdefault(label, Reservoir(PLACES_A_CLASS, random)).add(places)
            for label, reservoir in chosen.items():
                (places,) = reservoir.chosen()
                with array_file(temporary / f"places_{label}.npy", places.shape, places.dtype) as write:
                    write(places)
    except OddValues as error:
        return error
    except DataError as error:
        return str(error)
    except MemoryError:
        return f"{case.images[0]} needs more memory than is free; close other programs, or cut it into smaller volumes"
    return None


@contextmanager
def array_file(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an array part by part into NumPy's own format.

    Plainly, and not through a memory map, because a disk that is full then raises an error and doesn't kill us.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}

    def write(part: np.ndarray) -> None:
        if _stop is not None and _stop.is_set():
            raise KeyboardInterrupt
        file.write(np.ascontiguousarray(part).data)

    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield write
        file.flush()
        os.fsync(file.fileno())


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
