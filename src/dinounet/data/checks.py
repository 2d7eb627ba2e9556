"""What is told of a dataset before it is trained on: twins of images, classes that are rare, leaks between folds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dinounet.data.dataset import Dataset, with_twins
from dinounet.data.geometry import Volume
from dinounet.data.label_inference import COLOUR, to_mask_value
from dinounet.data.splits import by_group
from dinounet.io import summarize
from dinounet.schema.labels import Labels
from dinounet.schema.plan import BodyAxis, PlannedGroups

UNLEARNABLE = "it can't be learned, and is in no mean over classes"
"""What follows from no training case's having a class."""

FREQUENCIES = 16
"""Frequencies of the cosine transform along rows, and along columns, that the hash compares."""

BITS = FREQUENCIES**2 - 1

NEAR = 25
"""Bits in which images that look nearly the same differ at the most."""

MOST_PAIRS = 100
"""Pairs of nearly identical images that are named at the most."""

BLOCK = 256
"""Images that are compared with all others at a time."""


@dataclass(frozen=True)
class ImageHash:
    """Exact and perceptual hash of an image."""

    exact: bytes
    """Digest that is the same of images with the same numbers, and of no others."""

    perceptual: np.ndarray
    """(P, BITS) booleans of up to three planes; none where one is too small or holds nothing to compare."""


class Hasher:
    """Hashes an image plane by plane, since it may still lie in its file.

    Args:
        shape: of the image, (C, Z, Y, X).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._sha256 = hashlib.sha256(str(tuple(shape)).encode())
        self._looked_at = {share * shape[1] // 4 for share in (1, 2, 3)}
        self._bits: list[np.ndarray] = []

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take the next plane, (C, Y, X), number z."""
        plane = np.ascontiguousarray(np.moveaxis(_canonical(plane), 0, -1))  # as most files have it: nothing is copied
        self._sha256.update(plane.dtype.char.encode())
        self._sha256.update(plane.data)
        if z in self._looked_at:
            self._bits.append(_perceptual(plane))

    def finish(self) -> ImageHash:
        """The hash of all planes."""
        is_clear = all(map(len, self._bits)) and self._bits
        return ImageHash(self._sha256.digest(), np.stack(self._bits) if is_clear else np.zeros((0, BITS), bool))


def hash_image(image: Volume) -> ImageHash:
    """Hash an image that is read for this alone."""
    hasher = Hasher(image.array.shape)
    for z in range(image.shape[0]):
        hasher.add(z, image.array[..., z, :, :])
    return hasher.finish()


def find_twins(hashes: Mapping[str, ImageHash]) -> tuple[tuple[str, ...], ...]:
    """The names of cases that hold identical pixels, sorted."""
    same: dict[bytes, list[str]] = {}
    for name, found in hashes.items():
        same.setdefault(found.exact, []).append(name)
    return tuple(sorted(tuple(sorted(names)) for names in same.values() if len(names) > 1))


def find_near_twins(
    hashes: Mapping[str, ImageHash], groups: Mapping[str, str]
) -> tuple[tuple[tuple[str, str], ...], int]:
    """Pairs of cases of different groups that look nearly the same and aren't identical.

    Args:
        hashes: of each case by its name.
        groups: of each case by its name.

    Returns:
        the nearest pairs, at most MOST_PAIRS, nearest first, and how many there are.
    """
    found: list[tuple[int, str, str]] = []
    count = 0
    planes = {name: one.perceptual for name, one in hashes.items()}
    for number in {len(bits) for bits in planes.values()} - {0}:
        names = sorted(name for name, bits in planes.items() if len(bits) == number)
        signs = np.stack([planes[name] for name in names]).astype(np.float32) * 2 - 1
        numbered = {key: index for index, key in enumerate([*groups.values(), *(one.exact for one in hashes.values())])}
        owner = np.array([numbered[groups[name]] for name in names])
        pixels = np.array([numbered[hashes[name].exact] for name in names])
        for start in range(0, len(names), BLOCK):
            part = slice(start, start + BLOCK)
            alike = np.max([(BITS - signs[part, p] @ signs[start:, p].T) / 2 for p in range(number)], axis=0)
            later = np.arange(len(alike))[:, None] < np.arange(alike.shape[1])
            apart = (owner[part, None] != owner[start:]) & (pixels[part, None] != pixels[start:])
            rows, columns = np.nonzero((alike <= NEAR) & later & apart)
            count += len(rows)
            nearest = np.argsort(alike[rows, columns], kind="stable")[:MOST_PAIRS]
            found += [
                (int(alike[row, column]), names[start + row], names[start + column])
                for row, column in zip(rows[nearest].tolist(), columns[nearest].tolist(), strict=True)
            ]
            found = sorted(found)[:MOST_PAIRS]
    return tuple((a, b) for _, a, b in found), count


def _canonical(plane: np.ndarray) -> np.ndarray:
    """The same numbers in the smallest type of integers that holds them, or as float64: files differ in that."""
    if plane.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = plane.astype(np.int64)
        if not (whole == plane).all():
            return plane.astype(np.float64)
        plane = whole
    if plane.dtype == np.uint8:
        return plane
    ends = [np.min_scalar_type(int(end)) for end in (plane.min(), plane.max())]
    return plane.astype(np.result_type(*ends), copy=False)


def _perceptual(plane: np.ndarray) -> np.ndarray:
    """(BITS,) of a plane (Y, X, C), its channels added up; (0,) if it is too small or nearly of one value."""
    rows, columns, channels = plane.shape
    if min(rows, columns) < FREQUENCIES:
        return np.zeros(0, bool)
    along_rows = _cosines(rows) @ plane.reshape(rows, -1).astype(np.float32)
    mean, *others = (along_rows.reshape(-1, columns, channels).sum(-1) @ _cosines(columns).T).ravel()
    if np.abs(others).max() <= 1e-5 * abs(mean):
        return np.zeros(0, bool)
    return np.asarray(others > np.median(others))


@lru_cache(64)
def _cosines(length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(FREQUENCIES, length) of the cosine transform; scaled so that an image's size doesn't matter."""
    places = (np.arange(length) + 0.5) / length
    return (np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * places) / length).astype(np.float32)


def look_for_twins(
    dataset: Dataset, hashes: Mapping[str, ImageHash], held_out: Mapping[str, ImageHash]
) -> PlannedGroups:
    """The groups of a dataset, with what the pixels add to them.

    Args:
        dataset: as it was read.
        hashes: of its cases' images, by the cases' names.
        held_out: of the images of those that are held out.
    """
    everything = find_twins({**hashes, **held_out})
    leaks = [names for names in everything if 0 < len(set(names) & set(held_out)) < len(names)]
    twins = tuple(kept for names in everything if len(kept := tuple(n for n in names if n in hashes)) > 1)
    groups = {name: group for group, names in by_group(with_twins(dataset, twins).cases).items() for name in names}
    near, count = find_near_twins({**hashes, **held_out}, {**groups, **dict.fromkeys(held_out, "")})
    remarks = [
        *_on_twins(dataset, twins),
        *([_on_leaks(leaks)] if leaks else []),
        *([_on_near_twins(near, count, dataset)] if near else []),
    ]
    return PlannedGroups(dataset.group, twins, near, dataset.remarks, tuple(remarks))


def on_classes(dataset: Dataset, pixels: Mapping[str, Mapping[int, int]], known: Labels) -> tuple[str, ...]:
    """Sentences about classes, or regions, that some fold can't learn.

    Args:
        dataset: with its final folds.
        pixels: of each case, by its name, how many hold what its mask is stored with, or its label.
        known: what masks hold.
    """
    marks = {to_mask_value(colour): known.with_ignore[name] for name, colour in (known.colours or {}).items()}
    held = {
        case: {marks.get(value, value % 256 if value >= COLOUR else value) for value in counts}
        for case, counts in pixels.items()
    }
    remarks = []
    for name, labels in known.foreground.items():
        having = {case for case, values in held.items() if values & set(labels)}
        without = [str(fold) for fold, (training, _) in enumerate(dataset.splits) if not having & set(training)]
        if not having:
            remarks.append(f"No case has a pixel of {name}: {UNLEARNABLE}.")
        elif without:
            cases, folds = "case has" if len(having) == 1 else "cases have", "fold" if len(without) == 1 else "folds"
            remarks.append(
                f"{len(having)} {cases} pixels of {name}, none of them a training case of the {folds} "
                f"{', '.join(without)}: there {UNLEARNABLE}."
            )
    return tuple(remarks)


def on_axes(axes: Mapping[str, Sequence[BodyAxis] | None], slice_axis: int) -> tuple[str, ...]:
    """A sentence about volumes that are cut along another axis of the body than most.

    Args:
        axes: of each case by its name, what z, y and x run along; None where its file doesn't tell.
        slice_axis: of z, y and x, along which volumes are cut.
    """
    along = {name: found[slice_axis] for name, found in axes.items() if found is not None}
    if len(set(along.values())) < 2:
        return ()
    ((usual, _),) = Counter(along.values()).most_common(1)
    others = [f"{name} ({axis})" for name, axis in along.items() if axis != usual]
    return (
        f"{len(others)} of {len(along)} volumes are cut along another axis of the body than the others, whose slices "
        f"lie along {usual}: {summarize(others)}; store all volumes in one orientation.",
    )


def _on_twins(dataset: Dataset, twins: Sequence[Sequence[str]]) -> list[str]:
    if not twins:
        return []
    group_of = {case.name: case.group for case in dataset.cases}
    named = summarize([" and ".join(names) for names in twins])
    split = [
        number
        for number, (training, watched) in enumerate(dataset.splits)
        if any(set(names) & set(training) and set(names) & set(watched) for names in twins)
    ]
    if not dataset.has_own_splits:
        remarks = [f"Identical pixels under several names: {named}; they are kept on one side of a fold."]
    elif split:
        folds = ", ".join(map(str, split))
        remarks = [
            f"Identical pixels under several names: {named}; splits_final.json has some of them on both sides of the "
            f"folds {folds}, whose validation they flatter."
        ]
    else:
        remarks = [f"Identical pixels under several names: {named}."]
    torn = [
        " and ".join(f"{name} (of {group_of[name]})" for name in names)
        for names in twins
        if dataset.group != "none" and len({group_of[name] for name in names}) > 1
    ]
    if torn:
        remarks.append(f"Groups that share pixels are taken for one: {summarize(torn)}; correct the groups.")
    return remarks


def _on_leaks(leaks: Sequence[Sequence[str]]) -> str:
    named = summarize([" and ".join(names) for names in leaks])
    return (
        f"THE TEST LEAKS: cases that are held out hold the pixels of others that are not: {named}; hold out both or "
        "neither."
    )


def _on_near_twins(pairs: Sequence[tuple[str, str]], count: int, dataset: Dataset) -> str:
    named = summarize([" and ".join(pair) for pair in pairs], 5)
    held_out = set(dataset.test_cases)
    mixed = sum(len(held_out & set(pair)) == 1 for pair in pairs)
    leak = f" In {mixed} of them one is held out for the test and the other is not." if mixed else ""
    pair = "pair looks" if count == 1 else "pairs look"
    return (
        f"{count} {pair} nearly the same and may lie on both sides of a fold: {named}; if they are of one patient, put "
        f"them into one group.{leak}"
    )
