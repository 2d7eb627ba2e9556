"""Preprocessed slices on disk, memory-mapped, so that one slice costs one slice of reading.

A cache's folder is named by a hash of the plan and of the files it was made from: another plan or a changed file has
another name, so a stale cache is never read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.data.images import read_image
from dinounet.data.labels import IGNORED
from dinounet.data.masks import check_case, read_truth
from dinounet.data.pairs import Case
from dinounet.data.plan import DataPlan
from dinounet.data.preprocessing import image_to_slices, mask_to_slices
from dinounet.files import PARTIAL, whole_folder

FORMAT = 2
PLACES_A_CLASS = 10_000
"""Pixels of a class that a case remembers for sampling around foreground."""


@dataclass(frozen=True)
class CachedCase:
    """One case, preprocessed; a process that gets it maps the files into its own memory."""

    name: str
    """As in the dataset."""

    folder: Path
    """Where its files are."""

    @cached_property
    def image(self) -> np.ndarray:
        """(S, C, H, W) float32."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    @cached_property
    def mask(self) -> np.ndarray:
        """(S, H, W) uint8, classes in the plan's order, and IGNORED."""
        return np.load(self.folder / "mask.npy", mmap_mode="r")

    @cached_property
    def places(self) -> dict[int, np.ndarray]:
        """Of each foreground class that the case holds: (n, 3) slice, row and column of pixels of it."""
        files = sorted(self.folder.glob("places_*.npy"))
        return {int(path.stem.removeprefix("places_")): np.load(path) for path in files}

    def __getstate__(self) -> dict[str, Any]:
        """Name and place, not the pixels, which a memory map would copy."""
        return {"name": self.name, "folder": self.folder}


def build_cache(
    cases: Sequence[Case], plan: DataPlan, root: Path, on_case: Callable[[], None] = lambda: None
) -> list[CachedCase]:
    """Preprocess what isn't cached yet below `root`, and open all of it."""
    for left in root.glob(f"{PARTIAL}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    cached = []
    for case in cases:
        folder = root / f"{case.name}-{_key(case, plan)}"
        if not folder.exists():
            _write(case, plan, folder)
        cached.append(CachedCase(case.name, folder))
        on_case()
    return cached


def _write(case: Case, plan: DataPlan, folder: Path) -> None:
    volume, labels = read_image(case.images), read_truth(case, plan.meaning)
    check_case(volume, labels, [channel.name for channel in plan.channels], plan.meaning.given)
    image, mask = image_to_slices(volume, plan), mask_to_slices(labels, plan)
    random = np.random.RandomState(0)
    with whole_folder(folder) as temporary:
        np.save(temporary / "image.npy", image)
        np.save(temporary / "mask.npy", mask)
        for label in np.setdiff1d(mask, [0] if plan.ignore is None else [0, IGNORED]):
            places = np.argwhere(mask == label).astype(np.int32)
            if len(places) > PLACES_A_CLASS:
                places = places[random.choice(len(places), PLACES_A_CLASS, replace=False)]
            np.save(temporary / f"places_{label}.npy", places)


def _key(case: Case, plan: DataPlan) -> str:
    """Hash of all that the slices depend on; files count by name, size and time of change."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.files]
    decisions = {
        key: value
        for key, value in asdict(plan).items()
        if key in ("channels", "labels", "ignore", "colours", "slice_axis", "spacing", "unknown_spacing")
    }
    return hashlib.sha256(json.dumps([FORMAT, files, decisions]).encode()).hexdigest()[:16]
