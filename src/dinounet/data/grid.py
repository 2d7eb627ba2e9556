"""Where the tiles lie that cover a slice, in training by cached features and in prediction."""

from __future__ import annotations

import math

STEP = 0.5
"""Distance of neighbouring tiles at the most, as a share of a tile."""


def tile_starts(length: int, tile: int, step: float = STEP) -> list[int]:
    """Where tiles start along one axis: from the first pixel to the last, evenly, at most `step` of a tile apart."""
    count = math.ceil((length - tile) / (tile * step)) + 1
    return [round((length - tile) * index / max(count - 1, 1)) for index in range(count)]
