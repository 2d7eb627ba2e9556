"""Operations on arrays and tensors alike; classes and outputs, mirrored slices, tile positions, samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from dinounet.schema.labels import IGNORED
from dinounet.schema.plan import DataPlan
from dinounet.schema.prediction import TestTimeAugmentation

if TYPE_CHECKING:
    from torch import Tensor


Array: TypeAlias = Any
"""An array of NumPy's or a tensor of PyTorch's."""


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of the same kind and type, in the same place."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def beside(values: np.ndarray, like: Array) -> Array:
    """NumPy's numbers as what can be computed with the other."""
    return values if isinstance(like, np.ndarray) else _torch().from_numpy(values).to(like.device)


def to_numpy(array: Array, dtype: type) -> np.ndarray:
    """The numbers as NumPy's, in memory."""
    if isinstance(array, np.ndarray):
        return array.astype(dtype, copy=False)
    found: np.ndarray = (array.half() if dtype is np.float16 else array).cpu().numpy()
    return found.astype(dtype, copy=False)


def concatenate(parts: Sequence[Array], axis: int) -> Array:
    """Join arrays along an axis."""
    return np.concatenate(parts, axis) if isinstance(parts[0], np.ndarray) else _torch().cat(list(parts), axis)


def stack(parts: Sequence[Array], axis: int) -> Array:
    """Join arrays along a new axis."""
    return np.stack(parts, axis) if isinstance(parts[0], np.ndarray) else _torch().stack(list(parts), axis)


def flip(array: Array, axes: tuple[int, ...]) -> Array:
    """Mirror an array along these axes."""
    return np.flip(array, axes) if isinstance(array, np.ndarray) else array.flip(axes)


def softmax(array: Array, axis: int) -> Array:
    """Softmax along an axis: numbers from 0 to 1 that add up to 1."""
    if isinstance(array, np.ndarray):
        from scipy import special  # takes a third of a second to import

        return special.softmax(array, axis)
    return array.softmax(axis)


def sigmoid(array: Array) -> Array:
    """Logistic function of each number."""
    if isinstance(array, np.ndarray):
        from scipy import special

        return special.expit(array)
    return array.sigmoid()


def entropy(array: Array) -> Array:
    """Entropy of each number, -p log p."""
    if isinstance(array, np.ndarray):
        from scipy import special

        return special.entr(array)
    return _torch().special.entr(array)


def _torch() -> Any:
    import torch

    return torch


def to_targets(mask: Tensor, plan: DataPlan) -> tuple[Tensor, Tensor]:
    """What the network should answer, and where that is known.

    Args:
        mask: (B, H, W) of classes in the plan's order, or IGNORED.
        plan: of the data.

    Returns:
        (B, K, H, W) float, 1 where an output is true, and (B, 1, H, W) float, 0 at ignored pixels, where no output is.
    """
    import torch  # which who predicts by ONNX does without

    covers = [[label in numbers for numbers in plan.labels.outputs.values()] for label in plan.labels.classes.values()]
    ignored = mask == IGNORED if plan.labels.ignore is not None else torch.zeros_like(mask, dtype=torch.bool)
    target = torch.tensor(covers, dtype=torch.float32, device=mask.device)[mask.masked_fill(ignored, 0).long()]
    known = (~ignored)[:, None].float()
    return target.movedim(-1, 1) * known, known


def to_classes(scores: Array, plan: DataPlan, threshold: float = 0.0) -> Array:
    """Classes in the plan's order, (B, H, W) int64, of logits (B, K, H, W); of probabilities with the threshold 0.5."""
    if plan.labels.regions is None:
        return scores.argmax(1)
    numbers = list(plan.labels.classes.values())
    classes = beside(np.zeros(scores[:, 0].shape, np.int64), scores)
    for place, region in enumerate(plan.labels.regions):
        classes[scores[:, place] > threshold] = numbers.index(region.written_as)
    return classes


def to_probabilities(logits: Array, plan: DataPlan) -> Array:
    """Probabilities of the classes, or of each region by itself: (B, K, H, W) of logits of the same shape."""
    return softmax(logits, 1) if plan.labels.regions is None else sigmoid(logits)


class Reservoir:
    """An even choice among rows of arrays of which more and more come, in bounded memory (reservoir sampling).

    As long as they are not more than `most`, it is all of them, in the order that they came in.

    Args:
        most: rows that are chosen.
        random: what is drawn from, or its seed.
    """

    def __init__(self, most: int, random: int | np.random.Generator = 0) -> None:
        self.most = most
        self._random = np.random.default_rng(random)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._held, self._least_drawn = 0, 1.0

    def add(self, *rows: np.ndarray) -> None:
        """Rows that belong together, each array (n, ...): of all that have come, those that draw the least are kept."""
        draws = self._random.random(len(rows[0]))
        if self._least_drawn < 1:  # whoever draws more than all that are kept is not chosen
            rows = tuple(array[draws < self._least_drawn] for array in rows)
            draws = draws[draws < self._least_drawn]
        self._parts.append((draws, *rows))
        self._held += len(draws)
        if self._held > self.most * 5 // 4:
            self._drop_the_rest()

    def chosen(self) -> tuple[np.ndarray, ...]:
        """The chosen rows of each array, (n, ...) with n at most `most`."""
        if self._held > self.most:
            self._drop_the_rest()
        return tuple(np.concatenate(arrays) for arrays in list(zip(*self._parts, strict=True))[1:])

    def _drop_the_rest(self) -> None:
        draws = np.concatenate([part[0] for part in self._parts])
        kept = np.sort(np.argpartition(draws, self.most)[: self.most])
        arrays = (np.concatenate(array)[kept] for array in list(zip(*self._parts, strict=True))[1:])
        self._parts = [(draws[kept], *arrays)]
        self._held, self._least_drawn = self.most, float(draws[kept].max())


SAMPLES_A_CASE = 10_000
"""Foreground pixels that a case gives to the intensity statistics, and pixels from anywhere to the components."""

SAMPLES = 1_000_000
"""Pixels that all cases together give, at most; from a hundred cases on, an even choice among what each case gives."""


class RunningMoments:
    """Mean, deviation and range of each channel of a case, of which more and more is seen, in double precision.

    Means and deviations of parts are joined as by Chan, Golub and LeVeque (1979).

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        self.pixels = 0
        self.mean, self._squares = np.zeros((2, channels))
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, pixels: np.ndarray) -> None:
        """Add pixels of the case, (C, n)."""
        pixels = pixels.astype(np.float64)
        self.low, self.high = np.minimum(self.low, pixels.min(1)), np.maximum(self.high, pixels.max(1))
        own, more = pixels.mean(1), pixels.shape[1]
        shift = own - self.mean
        self._squares += pixels.var(1) * more + shift**2 * more * self.pixels / (self.pixels + more)
        self.pixels += more
        self.mean = self.mean + shift * more / self.pixels

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of each channel, (C,)."""
        return np.sqrt(self._squares / max(self.pixels, 1))


class CaseSamples(NamedTuple):
    """Intensities at some pixels of one case."""

    foreground: np.ndarray
    """(n, C) at pixels of foreground: SAMPLES_A_CASE of them, none if there is no foreground."""

    anywhere: np.ndarray | None
    """(n, C) at pixels from anywhere; None for images of one channel or three."""

    moments: RunningMoments | None
    """Moments of all pixels, under the same condition."""


class Samples:
    """Intensities at some pixels of all cases, of each case as many, in bounded memory."""

    def __init__(self) -> None:
        self.foreground = Reservoir(SAMPLES)
        """(n, C) at foreground; a case that has none gives none."""
        self.anywhere = Reservoir(SAMPLES)
        """(n, C) anywhere, and (n,) the number of the case; of images that are neither of one channel nor of three."""
        self.moments: list[RunningMoments] = []
        """Moments of each case that gave pixels from anywhere."""

    def add(self, case: CaseSamples) -> None:
        """Add what a case gives."""
        self.foreground.add(case.foreground)
        if case.anywhere is not None and case.moments is not None:
            self.anywhere.add(case.anywhere, np.full(len(case.anywhere), len(self.moments), np.int32))
            self.moments.append(case.moments)


STEP = 0.5
"""Distance of neighbouring tiles at the most, as a share of a tile."""


def tile_starts(length: int, tile: int, step: float = STEP) -> list[int]:
    """Where tiles start along one axis: from the first pixel to the last, evenly, at most `step` of a tile apart."""
    count = math.ceil((length - tile) / (tile * step)) + 1
    return [round((length - tile) * index / max(count - 1, 1)) for index in range(count)]


class View(NamedTuple):
    """One symmetry of the square."""

    transposed: bool
    """Rows and columns are swapped first."""

    mirrored: tuple[int, ...]
    """Axes that are mirrored then: -2, -1."""

    def see(self, tile: Array) -> Array:
        """The tile, (..., h, w), in this view."""
        turned = tile.swapaxes(-1, -2) if self.transposed else tile
        return flip(turned, self.mirrored) if self.mirrored else turned

    def put_back(self, seen: Array) -> Array:
        """What was found in this view, (..., h, w), as the tile lies."""
        turned = flip(seen, self.mirrored) if self.mirrored else seen
        return turned.swapaxes(-1, -2) if self.transposed else turned


_MIRRORED: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))

IDENTITY = View(False, ())
FLIPS = tuple(View(False, axes) for axes in _MIRRORED)
"""What leaves rows as long as they are; the identity is the first."""
SYMMETRIES = tuple(View(transposed, axes) for transposed in (False, True) for axes in _MIRRORED)
"""All eight: mirrors and quarter turns; the identity is the first."""


VIEWS: dict[TestTimeAugmentation, tuple[View, ...]] = {"none": (IDENTITY,), "flip": FLIPS, "full": SYMMETRIES}
