"""What the data asks for: normalisation, spacing, slices and patch, and the statistics that each decision came from.

The fingerprint and its uses follow nnU-Net (arXiv 1809.10486, "dataset fingerprint").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dinounet.data.dataset import Dataset, with_twins
from dinounet.data.extents import on_one_grid
from dinounet.data.fingerprint import Fingerprint, Samples, Seen, look_at, principal_components
from dinounet.data.formats import READERS
from dinounet.data.geometry import Volume, coarsest_axis
from dinounet.data.groups import PlannedGroups
from dinounet.data.images import require_colour
from dinounet.data.labels import Labels, Region, write_labels
from dinounet.data.legends import palettes_differ, refuse_differing_palettes
from dinounet.data.masks import check_case
from dinounet.data.naming import OddValues, common_folder, infer_labels, noted_values, told_together
from dinounet.data.normalisation import ChannelPlan, normalisation_of, normalise_samples, plan_channels
from dinounet.data.pairs import mask_paths
from dinounet.data.remarks import look_for_twins, on_axes, on_classes
from dinounet.data.stored import open_image, open_truth
from dinounet.data.twins import ImageHash, hash_image
from dinounet.errors import ConfigError, DataError, noted
from dinounet.files import join_some
from dinounet.memory import free_memory

LARGEST_PATCH = 512
PATCH_STEP = 32
"""Sides of a patch are multiples of it, which the network needs not pad."""


@dataclass(frozen=True)
class DataPlan:
    """Every decision between a file and a patch."""

    dataset: str
    """Name of the dataset it was made for."""

    channels: tuple[ChannelPlan, ...]
    """The image's channels, in order."""

    labels: dict[str, int]
    """Names of the classes and the numbers that stand for them in masks, background (0) first."""

    file_ending: str | None
    """Ending of all images; None where each file has its own and holds all channels."""

    slice_axis: int
    """Axis (of z, y, x) along which a volume is cut into slices: the coarsest."""

    spacing: tuple[float, float] | None
    """Distance of neighbouring pixels within a slice in mm (`fingerprint.unit`), rows then columns; None, where any
    image tells none: pixels are taken as they are."""

    patch: tuple[int, int]
    """Rows and columns of a training patch and of a tile in prediction."""

    fingerprint: Fingerprint
    """The statistics behind the decisions."""

    channel_projection: tuple[tuple[float, ...], ...] | None = None
    """Three mixtures of the normalised channels, which the backbone sees, a weight for each channel; None for one
    channel, which it sees three times, and for three, which it sees as they are."""

    unknown_spacing: float | None = None
    """Taken for the spacing of images that don't tell theirs; None: their pixels are taken as they are."""

    regions: tuple[Region, ...] | None = None
    """What the network predicts instead of classes, an output each; they may overlap. None: classes."""

    ignore: int | None = None
    """Number that stands in masks for pixels that nobody has judged, which nothing is learned from; None: all are."""

    colours: dict[str, str] | None = None
    """Of colour-coded masks, what stands for each class, as "#ff0000"; None: masks hold the numbers themselves."""
    test_cases: tuple[str, ...] = ()
    """Names of cases that are held out: in no fold, and in no decision; they are looked at for twins alone."""

    groups: PlannedGroups = field(default_factory=PlannedGroups)
    """Which cases are never on both sides of a fold; earlier versions knew a table's groups alone."""

    readers: int = 1
    """Version of how the files were read that it was decided from, `data.formats.READERS`."""

    @property
    def meaning(self) -> Labels:
        """What the numbers in masks stand for."""
        return Labels(self.labels, self.regions, self.ignore, self.colours)

    def __post_init__(self) -> None:
        _ = self.meaning  # which checks itself
        if self.slice_axis not in (0, 1, 2):
            raise ConfigError(f"data.slice_axis is {self.slice_axis}; it must be 0, 1 or 2")
        if min(self.patch) < 1:
            raise ConfigError(f"data.patch is {list(self.patch)}; both sides must be at least 1")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ConfigError(f"data.spacing is {list(self.spacing)}; both must be more than 0")
        if any(channel.normalisation == "rgb" and channel.imagenet is None for channel in self.channels):
            raise ConfigError("data.channels has a channel with the normalisation rgb and no imagenet; add it")
        mixtures = self.channel_projection
        if mixtures is not None and (len(mixtures) != 3 or any(len(row) != len(self.channels) for row in mixtures)):
            raise ConfigError(
                f"data.channel_projection must be three rows of {len(self.channels)} numbers, one a channel"
            )


def plan_data(
    dataset: Dataset, patch: tuple[int, int] | None = None, on_case: Callable[[], None] = lambda: None
) -> DataPlan:
    """Look at every training case once, and decide.

    Args:
        dataset: whose cases to read.
        patch: rows and columns; by default what covers the median slice, at most 512.
        on_case: called after each case, those that are held out as well.

    Raises:
        DataError: what is wrong with the images and masks, all together.
    """
    seen: list[Seen] = []
    by_case: dict[str, Seen] = {}
    problems: list[str] = []
    odd: list[OddValues] = []
    channels = dataset.channels
    known = dataset.meaning
    modalities: set[str | None] = set()
    palettes: list[tuple[Path, Mapping[int, str], Mapping[int, int]]] = []
    equal_palettes: dict[tuple[tuple[int, str], ...], Mapping[int, str]] = {}
    samples = Samples()
    most = free_memory() // 4
    for case in dataset.cases:
        image = mask = None
        with noted(problems):
            image = open_image(case.images, most)
        with noted(problems), noted_values(odd):
            mask = open_truth(case, known, most)
        if image is not None and mask is not None:
            with noted(problems), noted_values(odd):
                modalities.add(image.modality)
                mask = on_one_grid(mask, image)[0]
                channels = channels or _channel_names(len(image.array))
                pixels = check_case(image, mask, channels, None if known is None else known.given)
                _require_colours(image, channels)
                if mask.palette is not None:
                    same = equal_palettes.setdefault(tuple(mask.palette.items()), mask.palette)  # mostly one for all
                    palettes.append((mask.source, same, pixels))
                seen.append(look_at(image, mask, pixels, dataset.ignore, samples))
                by_case[case.name] = seen[-1]
        on_case()
    problems += told_together(odd)
    if problems:
        raise DataError(join_some(problems))
    assert channels is not None
    channels = dataset.channels or _channel_names(len(channels), modalities)
    empty = [
        name for name, is_empty in zip(channels, np.all([o.constant for o in seen], axis=0), strict=True) if is_empty
    ]
    if empty:
        raise DataError(
            f"the images of {dataset.name} hold one value alone in {', '.join(empty)}, every case; check how they were "
            "exported, or leave that channel out"
        )
    pixels = sum((Counter(one.pixels) for one in seen), Counter())
    if known is None:
        refuse_differing_palettes(palettes)
        folder = common_folder([path for case in dataset.cases for path in mask_paths(case.mask)])
        known, pixels = infer_labels(pixels, dataset.name, folder)
    labels = known.labels
    if not any(pixels[label] for label in labels.values() if label):
        raise DataError(f"the masks of {dataset.name} hold nothing but background; there is nothing to learn")

    shapes = [one.shape for one in seen]
    spacings = [one.spacing for one in seen if one.spacing is not None]
    median_spacing = _triple(np.median(spacings, axis=0)) if spacings else None
    smallest, median_shape, largest = (
        (int(depth), int(height), int(width)) for depth, height, width in np.quantile(shapes, (0, 0.5, 1), axis=0)
    )
    slice_axis = 0 if all(one.is_flat for one in seen) else coarsest_axis(median_shape, median_spacing)
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    if patch is None:
        sides = (min(LARGEST_PATCH, math.ceil(median_shape[axis] / PATCH_STEP) * PATCH_STEP) for axis in in_plane)
        patch = (next(sides), next(sides))
    planned = plan_channels(channels, *samples.foreground.chosen())
    hashes = {name: one.hash for name, one in by_case.items()}
    groups = look_for_twins(dataset, hashes, _hash_held_out(dataset, most, on_case))
    axes = Counter(one.axes for one in seen if one.axes is not None)
    remarks = (
        *groups.remarks_on_pixels,
        *_remarks_on_palettes(palettes, known),
        *on_classes(with_twins(dataset, groups.twins), {name: one.pixels for name, one in by_case.items()}, known),
        *on_axes({name: one.axes for name, one in by_case.items()}, slice_axis),
    )
    return DataPlan(
        dataset=dataset.name,
        channels=planned,
        labels=labels,
        file_ending=dataset.file_ending,
        slice_axis=slice_axis,
        spacing=(median_spacing[in_plane[0]], median_spacing[in_plane[1]])
        if median_spacing and len(spacings) == len(seen)
        else None,
        patch=patch,
        fingerprint=Fingerprint(
            len(seen),
            smallest,
            median_shape,
            largest,
            median_spacing,
            {name: pixels[label] for name, label in known.given.items()},
            sum(one.at_the_detector for one in seen),
            sum(one.spacing is None for one in seen),
            axes.most_common(1)[0][0] if axes else None,
        ),
        channel_projection=None
        if len(channels) in (1, 3)
        else principal_components(normalise_samples(samples, planned)),
        regions=known.regions,
        ignore=known.ignore,
        colours=known.colours,
        test_cases=dataset.test_cases,
        groups=replace(groups, remarks_on_pixels=remarks),
        readers=READERS,
    )


def _remarks_on_palettes(
    palettes: Sequence[tuple[Path, Mapping[int, str], Mapping[int, int]]], known: Labels
) -> tuple[str, ...]:
    told = palettes_differ(palettes) if known.colours is None else ""
    return (f"{told}: palettes differ, and the numbers count ({write_labels(known.given)})",) if told else ()


def _hash_held_out(dataset: Dataset, most: int, on_case: Callable[[], None]) -> dict[str, ImageHash]:
    """The images of the cases that are held out, for nothing but to find out whether they are trained on elsewhere.

    What can't be read is left out: predicting it in the end tells what is wrong with it.
    """
    hashes = {}
    for case in dataset.held_out:
        with noted([]):
            hashes[case.name] = hash_image(open_image(case.images, most))
        on_case()
    return hashes


def _channel_names(count: int, modalities: AbstractSet[str | None] = frozenset()) -> tuple[str, ...]:
    """Of images that nobody described: how all of them were taken, if they tell, or colours."""
    if count == 1 and len(modalities) == 1 and (only := next(iter(modalities))):
        return (only,)
    return ("R", "G", "B") if count == 3 else tuple(f"channel {index}" for index in range(count))


def _require_colours(image: Volume, channels: Sequence[str]) -> None:
    """Raise a DataError if what is normalised as a colour holds more than a byte."""
    coloured = [normalisation_of(name).startswith("rgb") for name in channels]
    for z in range(image.shape[0] if any(coloured) else 0):
        for name, channel, colour in zip(channels, image.array[..., z, :, :], coloured, strict=True):
            if colour:
                require_colour(channel, name, image.source)


def _triple(numbers: np.ndarray) -> tuple[float, float, float]:
    z, y, x = numbers.tolist()
    return z, y, x
