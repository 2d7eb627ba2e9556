"""A finite set of patches to train on, for what is computed of each patch once and kept.

Instead of placing and turning a patch anew each time, a slice is covered by a fixed grid of tiles, overlapping by half,
as in prediction; a slice that is not larger than a patch is one tile. Each is seen in all mirrors and quarter turns,
and its intensities are changed in so many ways. Each of these samples has a number and is a function of it alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dinounet.data.augmentation import Augmentation, make_intensity_transform
from dinounet.data.grid import tile_starts
from dinounet.data.sampling import Patches, cut_patch, own_randomness
from dinounet.data.views import FLIPS, IDENTITY, SYMMETRIES, View


def tile_centres(length: int, side: int) -> list[int]:
    """Centres of the tiles along one axis; of an axis not longer than a tile its own, as `Patches` has it."""
    if length <= side:
        return [length // 2]
    return [start + side // 2 for start in tile_starts(length, side)]


def views_of(augmentation: Augmentation, patch: tuple[int, int]) -> tuple[View, ...]:
    """In which a tile is seen: quarter turns only where the patch is a square, and only for nnU-Net's augmentation."""
    if augmentation == "none":
        return (IDENTITY,)
    return SYMMETRIES if augmentation == "nnunet" and patch[0] == patch[1] else FLIPS


def variants_of(augmentation: Augmentation, variants: int) -> int:
    """Of each view: only nnU-Net's augmentation changes intensities, else a second one would be the first again."""
    return variants if augmentation == "nnunet" else 1


def count_samples(
    shape: Sequence[int], patch: tuple[int, int], augmentation: Augmentation, variants: int
) -> tuple[int, int, int, int, int]:
    """Slices, rows and columns of tiles, views and variants of a case of this shape (S, H, W)."""
    slices, rows, columns = shape
    tiles = len(tile_centres(rows, patch[0])), len(tile_centres(columns, patch[1]))
    return slices, *tiles, len(views_of(augmentation, patch)), variants_of(augmentation, variants)


class Tiles:
    """The samples of some cases, and an endless sequence drawn from them, as `Patches` draws.

    Args:
        patches: says where patches lie that are drawn at random: the nearest tile stands in for each.
        augmentation: which views and intensities there are.
        variants: of the intensities of each view.
    """

    def __init__(self, patches: Patches, augmentation: Augmentation, variants: int) -> None:
        self.patches = patches
        self.views = views_of(augmentation, patches.patch)
        self.change = make_intensity_transform() if augmentation == "nnunet" else None
        self.centres = [
            tuple(tile_centres(*axis) for axis in zip(case.mask.shape[1:], patches.patch, strict=True))
            for case in patches.cases
        ]
        self.shapes = [count_samples(case.mask.shape, patches.patch, augmentation, variants) for case in patches.cases]

    def draw(self, index: int) -> tuple[int, int]:
        """The n-th patch: number of its case, and of the sample in it."""
        with own_randomness(self.patches.seed, index):
            number, (slice, *wanted) = self.patches.draw(index)
            shape = self.shapes[number]
            tile = [
                int(np.argmin([abs(centre - place) for centre in centres]))
                for centres, place in zip(self.centres[number], wanted, strict=True)
            ]
            view, variant = (np.random.randint(count) for count in shape[3:])
            return number, int(np.ravel_multi_index((slice, *tile, view, variant), shape))

    def sample(self, number: int, sample: int) -> tuple[Tensor, Tensor]:
        """A sample of a case: image (C, h, w) float32 and mask (h, w) int64."""
        case, (rows, columns) = self.patches.cases[number], self.centres[number]
        slice, row, column, view, _ = (int(part) for part in np.unravel_index(sample, self.shapes[number]))
        image, mask = (
            self.views[view].see(torch.from_numpy(part)).contiguous()
            for part in cut_patch(case, (slice, rows[row], columns[column]), self.patches.patch)
        )
        if self.change is not None:
            with own_randomness(self.patches.seed, zlib.crc32(case.name.encode()), sample):
                image = self.change(image=image)["image"].float()
        return image, mask.long()
