"""Masks drawn over images: class colours, outlines, grey levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

COLOURS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#d55e00")
"""Of the classes, in the order of the labels; with more classes than colours, lighter and then darker ones follow."""


def colours_of(classes: Iterable[str]) -> dict[str, str]:
    """A colour for each class or region that was evaluated."""
    return {name: _vary(COLOURS[i % len(COLOURS)], i // len(COLOURS)) for i, name in enumerate(classes)}


def to_grey_levels(channels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Intensities (1 or 3, Y, X) within a window as RGB (Y, X, 3) of 0 to 255."""
    levels = np.clip((channels - low) / max(high - low, 1e-12), 0, 1) * 255
    return np.moveaxis(np.broadcast_to(levels.round().astype(np.uint8), (3, *channels.shape[1:])), 0, -1)


def paint(base: np.ndarray, regions: Sequence[tuple[np.ndarray, str]], opacity: float) -> np.ndarray:
    """Lay regions over RGB pixels, outlined."""
    painted = np.array(base, np.float32)
    for where, colour in regions:
        rgb = np.array(rgb_of(colour), np.float32)
        painted[where] += opacity * (rgb - painted[where])
        painted[outline_of(where)] = rgb
    return painted.round().astype(np.uint8)


def outline_of(where: np.ndarray) -> np.ndarray:
    """The pixels of a region (Y, X) that have a neighbour above, below, left or right outside of it."""
    around = np.pad(where, 1)
    return where & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def rgb_of(colour: str) -> tuple[int, ...]:
    """Red, green and blue, each 0 to 255, of "#rrggbb"."""
    return tuple(bytes.fromhex(colour[1:]))


def _vary(colour: str, turn: int) -> str:
    """The colour itself in the first turn through the palette, half white in the second, half black in the third."""
    other = (None, 255, 0)[turn % 3]
    return colour if other is None else "#" + bytes((part + other) // 2 for part in rgb_of(colour)).hex()
