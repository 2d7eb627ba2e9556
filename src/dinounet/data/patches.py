"""Training patches: the n-th is a function of the seed and n alone, or one of a fixed set for cached features.

Augmentation is nnU-Net's (arXiv 1809.10486), by its own library, so that comparisons are fair; the values are those of
nnunetv2's trainer, which differs in two ways: it cuts a patch only 1 / 0.85 larger, which leaves corners empty, and
chooses how to blur by the clock, so that a run can't be repeated to the bit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dinounet.data.arrays import FLIPS, IDENTITY, SYMMETRIES, View, tile_starts
from dinounet.data.cache import CachedCase
from dinounet.schema.recipe import Augmentation

ENLARGED = math.sqrt(2) / 0.7
"""A patch is cut this much larger, so that rotating by 45 degrees or shrinking to 0.7 leaves no empty corner."""

ELONGATED = 1.5
"""Ratio of a patch's sides above which it is turned by 15 degrees at the most, as in nnU-Net, not all the way round."""


def make_transform(augmentation: Augmentation, patch: tuple[int, int]) -> Any:
    """A callable on image=(C, h, w) float and segmentation=(1, h, w) tensors that returns a dict of the same."""
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    mirror = MirrorTransform(allowed_axes=(0, 1))
    if augmentation == "none":
        return ComposeTransforms([])
    if augmentation == "flip":
        return ComposeTransforms([mirror])
    furthest = math.pi if max(patch) <= ELONGATED * min(patch) else math.pi / 12
    spatial = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=(-furthest, furthest),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
    )
    return ComposeTransforms([spatial, *make_intensity_transform().transforms, mirror])


def make_intensity_transform() -> Any:
    """The part of nnU-Net's that changes values and moves no pixel: on image=(C, h, w) float, to a dict of the same."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    def sometimes(transform: Any, probability: float) -> Any:
        return RandomTransform(transform, apply_probability=probability)

    around_one = BGContrast((0.75, 1.25))
    every_channel: dict[str, Any] = {"synchronize_channels": False, "p_per_channel": 1}
    gamma: dict[str, Any] = {"gamma": BGContrast((0.7, 1.5)), "p_retain_stats": 1, **every_channel}
    return ComposeTransforms(
        [
            sometimes(GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
            sometimes(
                GaussianBlurTransform(
                    blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5
                ),
                0.2,
            ),
            sometimes(MultiplicativeBrightnessTransform(multiplier_range=around_one, **every_channel), 0.15),
            sometimes(ContrastTransform(contrast_range=around_one, preserve_range=True, **every_channel), 0.15),
            sometimes(
                SimulateLowResolutionTransform(
                    scale=(0.5, 1),
                    synchronize_channels=False,
                    synchronize_axes=True,
                    ignore_axes=(),
                    allowed_channels=None,
                    p_per_channel=0.5,
                ),
                0.25,
            ),
            sometimes(GammaTransform(p_invert_image=1, **gamma), 0.1),
            sometimes(GammaTransform(p_invert_image=0, **gamma), 0.3),
        ]
    )


def enlarged(patch: tuple[int, int], augmentation: Augmentation) -> tuple[int, int]:
    """Rows and columns to cut for a patch before it is augmented."""
    if augmentation != "nnunet":
        return patch
    side = int(np.ceil(max(patch) * ENLARGED))
    return side, side


class PatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """An endless sequence of patches: image (C, h, w) float32 and mask (h, w) int64.

    Args:
        cases: where they come from, each case as often as the others.
        patch: rows and columns.
        batch_size: patches of a batch; the last `foreground_fraction` of it (rounded) are centred on foreground.
        foreground_fraction: from 0 to 1.
        augmentation: what happens to them.
        seed: of all randomness.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        patch: tuple[int, int],
        *,
        batch_size: int,
        foreground_fraction: float,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.cases = cases
        self.patch = patch
        self.cut = enlarged(patch, augmentation)
        self.transform = make_transform(augmentation, patch)
        self.batch_size = batch_size
        self.first_foreground = round(batch_size * (1 - foreground_fraction))  # nnU-Net rounds this share
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with own_randomness(self.seed, index):
            case, centre = self.draw(index)
            image, mask = cut_patch(self.cases[case], centre, self.cut)
            result = self.transform(image=torch.from_numpy(image), segmentation=torch.from_numpy(mask)[None])
        return result["image"].float(), result["segmentation"][0].long()

    def draw(self, index: int) -> tuple[int, tuple[int, int, int]]:
        """Number of the case that the n-th patch is cut from, and its centre there; within its own randomness."""
        number = np.random.randint(len(self.cases))
        return number, self._centre(self.cases[number], index % self.batch_size >= self.first_foreground)

    def case_of(self, index: int) -> str:
        """Name of the case that the n-th patch is cut from."""
        with own_randomness(self.seed, index):
            return self.cases[np.random.randint(len(self.cases))].name

    def _centre(self, case: CachedCase, on_foreground: bool) -> tuple[int, int, int]:
        """Slice, row and column of the patch's centre: on foreground, or anywhere that keeps the patch inside.

        Where some pixels are ignored, anywhere is on one that isn't. As in nnU-Net, a place above or left of the first
        one that keeps the patch inside becomes that one; below and right patches stick out.
        """
        shape = case.mask.shape[1:]
        first = [min(side, length) // 2 for side, length in zip(self.patch, shape, strict=True)]
        classes = case.places if on_foreground else {}
        places = classes[np.random.choice(list(classes))] if classes else case.known
        if places is not None and len(places):
            slice, *middle = places[np.random.randint(len(places))].tolist()
            row, column = (max(least, place) for least, place in zip(first, middle, strict=True))
            return slice, row, column
        row, column = (
            np.random.randint(least, max(length - side // 2, length // 2) + 1)
            for least, side, length in zip(first, self.patch, shape, strict=True)
        )
        return np.random.randint(len(case.mask)), row, column


def cut_patch(case: CachedCase, centre: tuple[int, int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut a window of a slice: image (C, h, w) and mask (h, w); zero and background where it sticks out."""
    index, *middle = centre
    stored, truth = case.image, case.mask
    image, mask = np.zeros((stored.shape[1], *size), np.float32), np.zeros(size, np.uint8)
    starts = [m - side // 2 for m, side in zip(middle, size, strict=True)]
    rows, columns = (  # of the slice, as far as the window covers it
        slice(max(start, 0), min(start + side, length))
        for start, side, length in zip(starts, size, truth.shape[1:], strict=True)
    )
    down, right = (  # the same, of the window
        slice(part.start - start, part.stop - start) for part, start in zip((rows, columns), starts, strict=True)
    )
    case.expect(index, rows)
    image[:, down, right] = stored[index, :, rows, columns]
    mask[down, right] = truth[index, rows, columns]
    return image, mask


class own_randomness:  # noqa: N801 -- used as a function
    """Seeds NumPy's and PyTorch's global generators, which augmentation draws from, and restores them at the end."""

    def __init__(self, *seed: int) -> None:
        self.seed = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def __enter__(self) -> None:
        self.before: tuple[Any, Tensor] = np.random.get_state(), torch.get_rng_state()
        np.random.seed(self.seed)
        torch.default_generator.manual_seed(self.seed)  # the CPU's alone: a GPU's is the network's

    def __exit__(self, *_: object) -> None:
        np.random.set_state(self.before[0])
        torch.set_rng_state(self.before[1])


def tile_centres(length: int, side: int) -> list[int]:
    """Centres of the tiles along one axis; of an axis not longer than a tile its own, as `PatchDataset` has it."""
    if length <= side:
        return [length // 2]
    return [start + side // 2 for start in tile_starts(length, side)]


def views_of(augmentation: Augmentation, patch: tuple[int, int]) -> tuple[View, ...]:
    """The views of a tile: quarter turns only where the patch is a square, and only for nnU-Net's augmentation."""
    if augmentation == "none":
        return (IDENTITY,)
    return SYMMETRIES if augmentation == "nnunet" and patch[0] == patch[1] else FLIPS


def variants_of(augmentation: Augmentation, variants: int) -> int:
    """Variants of each view: only nnU-Net's augmentation changes intensities, so that variants differ."""
    return variants if augmentation == "nnunet" else 1


def count_samples(
    shape: Sequence[int], patch: tuple[int, int], augmentation: Augmentation, variants: int
) -> tuple[int, int, int, int, int]:
    """Slices, rows and columns of tiles, views and variants of a case of this shape (S, H, W)."""
    slices, rows, columns = shape
    tiles = len(tile_centres(rows, patch[0])), len(tile_centres(columns, patch[1]))
    return slices, *tiles, len(views_of(augmentation, patch)), variants_of(augmentation, variants)


class Tiles:
    """The samples of some cases, and an endless sequence drawn from them, as `PatchDataset` draws.

    Args:
        patches: says where patches lie that are drawn at random: the nearest tile stands in for each.
        augmentation: which views and intensities there are.
        variants: of the intensities of each view.
    """

    def __init__(self, patches: PatchDataset, augmentation: Augmentation, variants: int) -> None:
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
