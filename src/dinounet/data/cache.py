"""Preprocessed slices on disk, memory-mapped, so that one slice costs one slice of reading.

A case's folder in a cache is named by a hash of the plan and of the files it was made from: another plan or a changed
file has another name, so a stale cache is never read. Several runs may share one cache: a lock lets one of them fill it
at a time, and the others then find what it made.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from dinounet.data.cache_writer import KNOWN, estimate, prepare_cases
from dinounet.data.formats import READERS
from dinounet.data.layouts import Case
from dinounet.errors import DataError, UserError
from dinounet.io import PARTIAL, read_patiently, summarize
from dinounet.schema.plan import DataPlan

FORMAT = 4
NOT_OF_THE_PIXELS = frozenset(
    {"dataset", "file_ending", "patch", "fingerprint", "channel_projection", "regions", "test_cases"}
    | {"groups", "readers"}
)
"""Fields of a plan that preprocessed slices don't depend on; they do on all others, also on those to come."""

OPEN_CASES = 100
"""Cases whose files a process keeps open: often it may have no more than a thousand."""

HAS_ADVICE = hasattr(mmap, "MADV_RANDOM")
"""Whether the system can be told what will be read; Windows can't."""

PIECE = 1 << 20
"""Bytes that are read at a time."""

WORTH_TELLING = 10**9
"""Bytes of a cache from which on its size is told before it is built."""


@dataclass(frozen=True)
class CachedCase:
    """One case, preprocessed; a process that reads it maps its files into memory, and those of few cases at a time."""

    name: str
    """As in the dataset."""

    folder: Path
    """Where its files are."""

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
        """Of each foreground class that the case holds: (n, 3) slice, row and column of pixels of it."""
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
            f"{root} can't hold the cache ({error.strerror}); make room, or name a folder elsewhere with --cache"
        ) from None


def _remove_partial(root: Path) -> None:
    for left in root.glob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


def require_room(wanted: int, root: Path, tell: Callable[[str], None]) -> None:
    """Tell how large a large cache will be; raise a UserError if the disk has less room than these bytes."""
    free = shutil.disk_usage(root).free
    if wanted > free:
        raise UserError(
            f"the cache needs {wanted / 1e9:.1f} GB but {root} has {free / 1e9:.1f} GB left; make room, or name a "
            "folder elsewhere with --cache"
        )
    if wanted > WORTH_TELLING:
        tell(f"the cache takes {wanted / 1e9:.1f} GB in {root}")


def _key(case: Case, plan: DataPlan) -> str:
    """Hash of all that the slices depend on; files count by place, size and time of change, and how they are read."""
    decisions = {key: value for key, value in asdict(plan).items() if key not in NOT_OF_THE_PIXELS}
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in case.files]
    return hashlib.sha256(json.dumps([FORMAT, READERS, files, decisions]).encode()).hexdigest()[:16]
