"""Cases that hold the same image: identical pixels under two names, and images that look nearly the same.

Identical is what decodes to the same numbers, whatever the format and type they are stored in. Nearly the same is told
by a perceptual hash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"): which of the
lowest 16 x 16 frequencies of a discrete cosine transform, without the first, are above their median. Of the fundus,
histology, ultrasound, MR and CT images that we have, no two of different patients differ in fewer than 46 of its 255
bits, but for two ultrasound images that are neighbours in time (24). Images saved as JPEG, made smaller by a fifth or
given some noise differ in at most 16. Turned and mirrored ones are not found. docs/data.md has all numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dinounet.data.geometry import Volume

FREQUENCIES = 16
"""Frequencies of the cosine transform along rows, and along columns, that the hash compares."""

BITS = FREQUENCIES**2 - 1

NEAR = 25
"""Bits in which images that look nearly the same differ at the most."""

MOST_PAIRS = 100
"""Pairs of nearly identical images that are named at the most."""

BLOCK = 256
"""Images that are compared with all others at a time."""


class ImageHash:
    """Exact and perceptual hash of an image, plane by plane, since it may still lie in its file."""

    def __init__(self, shape: Sequence[int]) -> None:
        """Begin the hash of an image of this shape, (C, Z, Y, X)."""
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

    @property
    def exact(self) -> bytes:
        """Digest that is the same of images with the same numbers, and of no others."""
        return self._sha256.digest()

    @property
    def perceptual(self) -> np.ndarray:
        """(P, BITS) booleans of up to three planes; none where one is too small or holds nothing to compare."""
        empty = np.zeros((0, BITS), bool)
        return np.stack(self._bits) if all(map(len, self._bits)) and self._bits else empty


def hash_image(image: Volume) -> ImageHash:
    """Hash an image that is read for this alone."""
    found = ImageHash(image.array.shape)
    for z in range(image.shape[0]):
        found.add(z, image.array[..., z, :, :])
    return found


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
