"""Preprocessed slices on disk, memory-mapped, so that one slice costs one slice of reading.

A case's folder in a cache is named by a hash of the plan and of the files it was made from: another plan or a changed
file has another name, so a stale cache is never read. Several runs may share one cache: a lock lets one of them fill it
at a time, and the others then find what it made.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dinounet.data.arrays import Reservoir
from dinounet.data.formats import READERS
from dinounet.data.geometry import Volume
from dinounet.data.images import on_one_grid
from dinounet.data.label_inference import OddValues, collect_odd_values, describe_problems
from dinounet.data.layouts import Case
from dinounet.data.lazy_volume import MASK_BYTES, bytes_to_read, can_stay, open_image, open_truth, pixels_of, probe
from dinounet.data.masks import check_case
from dinounet.data.preprocessing import image_to_slices, mask_to_slices, measure_channels, resampled_size, slice_axis
from dinounet.data.processes import run_jobs, stop_if_told, workers_for
from dinounet.errors import DataError, UserError, collect_errors
from dinounet.io import PARTIAL, atomic_dir, read_patiently, summarize
from dinounet.schema.labels import IGNORED
from dinounet.schema.plan import DataPlan
from dinounet.system import free_memory

FORMAT = 4
NOT_OF_THE_PIXELS = frozenset(
    {"dataset", "file_ending", "patch", "fingerprint", "channel_projection", "test_cases"} | {"groups", "readers"}
)
"""Fields of a plan that preprocessed slices don't depend on; they do on all others, also on those to come."""

OPEN_CASES = 100
"""Cases whose files a process keeps open: often it may have no more than a thousand."""

HAS_ADVICE = hasattr(mmap, "MADV_RANDOM")
"""Whether the system can be told what will be read; Windows can't."""

PIECE = 1 << 20
"""Bytes that are read at a time."""

PLACES_A_CLASS = 10_000
"""Pixels of a class that a case remembers for sampling around foreground."""

KNOWN = 0
"""Stands in the place of a class for pixels that somebody has judged, where there is an ignore label."""

WORTH_TELLING = 10**9
"""Bytes of a cache from which on its size is told before it is built."""


@dataclass(frozen=True)
class CachedCase:
    """One case, preprocessed; a process that reads it maps its files into memory, and those of few cases at a time."""

    name: str
    """The case's name in the dataset."""

    folder: Path
    """The folder of its files."""

    @property
    def image(self) -> np.memmap[Any, Any]:
        """(S, C, H, W) float32."""
        return open_array(self.folder / "image.npy")

    @property
    def mask(self) -> np.memmap[Any, Any]:
        """(S, H, W) uint8, classes in the plan's order, and IGNORED."""
        return open_array(self.folder / "mask.npy")

    def expect(self, index: int, rows: slice) -> None:
        """Tell the system which rows of which slice are read next: it then gets these from the disk, and no others."""
        image, mask = self.image, self.mask
        for channel in range(image.shape[1]):
            expect(image[index, channel, rows], image)
        expect(mask[index, rows], mask)

    @property
    def places(self) -> dict[int, np.ndarray]:
        """Pixels of each foreground class that the case holds: (n, 3) slice, row and column."""
        return {label: places for label, places in _open_places(self.folder).items() if label != KNOWN}

    @property
    def classes(self) -> set[int]:
        """Foreground classes that the case holds, by their places in the plan."""
        return {int(path.stem.removeprefix("places_")) for path in self.folder.glob("places_*.npy")} - {KNOWN}

    @property
    def known(self) -> np.ndarray | None:
        """(n, 3) slice, row and column of pixels that somebody has judged; None if all of them are."""
        return _open_places(self.folder).get(KNOWN)


def build_cache(
    cases: Sequence[Case],
    plan: DataPlan,
    root: Path,
    on_case: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[CachedCase]:
    """Preprocess what isn't cached yet below `root`, in several processes where that is worth it, and open all of it.

    Args:
        cases: what to preprocess.
        plan: says how.
        root: the folder, which other processes may be filling too.
        on_case: called after each case.
        tell: called with what the user should know.

    Raises:
        DataError: what is wrong with the images and masks, all together.
        UserError: the disk has too little room; then nothing is left of what was made here.
    """
    folders = {case.name: root / f"{case.name}-{_key(case, plan)}" for case in cases}
    with alone_in(root, tell):
        missing = [case for case in cases if not folders[case.name].exists()]
        needs = [estimate(case, plan) for case in missing]
        require_room(sum(need.on_disk for need in needs), root, tell)
        for _ in range(len(cases) - len(missing)):
            on_case()
        made = [folders[case.name] for case in missing]
        with removed_if_disk_is_full(made, root):
            problems = prepare_cases(missing, needs, plan, made, on_case)
    if problems:
        raise DataError(summarize(problems))
    return [CachedCase(case.name, folders[case.name]) for case in cases]


@dataclass(frozen=True)
class Needs:
    """What it takes to preprocess a case, in bytes."""

    on_disk: int
    """Bytes of its part of the cache."""

    in_memory: int
    """Bytes of image and mask if they are read whole."""

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
    largest = max((need.in_memory for need in needs if need.must_be_whole), default=1)
    workers = workers_for(len(cases), sum(need.in_memory for need in needs), largest)
    memory = free_memory() // 2 // max(workers, 1)
    jobs = [partial(_prepare, case, plan, folder, memory) for case, folder in zip(cases, folders, strict=True)]
    with run_jobs(jobs, workers, on_case) as results:
        return describe_problems([problem for problem in results if problem])


def _prepare(case: Case, plan: DataPlan, folder: Path, memory: int) -> str | OddValues | None:
    """Preprocess one case; returns what is wrong with it."""
    problems: list[str] = []
    odd: list[OddValues] = []
    image = mask = None
    try:
        with collect_errors(problems):
            image = open_image(case.images, memory // 2, plan.slice_axis)
        with collect_errors(problems), collect_odd_values(odd):
            mask = open_truth(case, plan.labels, memory // 2, plan.slice_axis)
        if image is None or mask is None:
            return summarize([*problems, *describe_problems(odd)]) if problems else odd[0]
        mask = on_one_grid(mask, image)[0]
        check_case(image, mask, [channel.name for channel in plan.channels], plan.labels.with_ignore)
        moments = measure_channels(image, plan.channels)
        slices, size = image.shape[slice_axis(image, plan)], resampled_size(image, plan)
        background = [0] if plan.labels.ignore is None else [0, IGNORED]
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
                    if plan.labels.ignore is not None:
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
        stop_if_told()
        file.write(np.ascontiguousarray(part).data)

    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield write
        file.flush()
        os.fsync(file.fileno())


@lru_cache(3 * OPEN_CASES)
def open_array(path: Path) -> np.memmap[Any, Any]:
    """Map a file of NumPy's into memory; it stays open while few others are asked for."""
    array: np.memmap[Any, Any] = read_patiently(path, lambda: np.load(path, mmap_mode="r"))
    if HAS_ADVICE:  # otherwise the system reads around each page that is touched, on some machines megabytes
        array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    return array


@lru_cache(OPEN_CASES)
def _open_places(folder: Path) -> dict[int, np.ndarray]:
    def read() -> dict[int, np.ndarray]:
        return {int(path.stem.removeprefix("places_")): np.load(path) for path in sorted(folder.glob("places_*.npy"))}

    return read_patiently(folder, read)


def expect(part: np.ndarray, whole: np.memmap[Any, Any]) -> None:
    """Make the system read this part of a mapped file, of which more than a page is going to be used, all at once.

    The part is copied and dropped, rather than asked for by `madvise`: a page that can't be read when it is touched
    kills the process, and this raises an error, or waits until it can be read.
    """
    path, start = Path(str(whole.filename)), whole.offset + part.ctypes.data - whole.ctypes.data

    def read() -> None:
        piece, left = bytearray(min(part.nbytes, PIECE)), part.nbytes
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while left and (got := file.readinto(memoryview(piece)[:left])):
                left -= got

    read_patiently(path, read)


@contextmanager
def alone_in(root: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process fills the cache, and remove what one that was killed has left."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that is filling {root}")
        lock.acquire()
    try:
        _remove_partial(root)
        yield
    finally:
        _remove_partial(root)
        lock.release()


@contextmanager
def removed_if_disk_is_full(made: Sequence[Path], root: Path) -> Iterator[None]:
    """Within the block a full disk removes these folders again, and is a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"{root} can't hold the cache ({error.strerror}); make room, or choose another folder with --cache"
        ) from None


def _remove_partial(root: Path) -> None:
    for left in root.glob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


def require_room(wanted: int, root: Path, tell: Callable[[str], None]) -> None:
    """Tell how large a large cache will be; raise a UserError if the disk has less room than these bytes."""
    free = shutil.disk_usage(root).free
    if wanted > free:
        raise UserError(
            f"the cache needs {wanted / 1e9:.1f} GB but {root} has {free / 1e9:.1f} GB left; make room, or choose "
            "another folder with --cache"
        )
    if wanted > WORTH_TELLING:
        tell(f"the cache takes {wanted / 1e9:.1f} GB in {root}")


def _key(case: Case, plan: DataPlan) -> str:
    """Hash of all that the slices depend on; files count by place, size and time of change, and how they are read."""
    of_pixels = asdict(replace(plan, labels=replace(plan.labels, regions=None)))  # slices hold classes
    decisions = {key: value for key, value in of_pixels.items() if key not in NOT_OF_THE_PIXELS}
    return hashlib.sha256(json.dumps([FORMAT, READERS, case.state, decisions]).encode()).hexdigest()[:16]
