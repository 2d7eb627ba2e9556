"""The data's plan: the statistics of a dataset, and what they decide: normalisation, spacing, slices and patch.

The statistics are nnU-Net's "dataset fingerprint" (arXiv 1809.10486).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dinounet.data.arrays import SAMPLES_A_CASE, CaseSamples, Reservoir, RunningMoments, Samples
from dinounet.data.checks import Hasher, ImageHash, hash_image, look_for_twins, on_axes, on_classes
from dinounet.data.dataset import Dataset, with_twins
from dinounet.data.formats import READERS
from dinounet.data.geometry import Volume, body_axes, coarsest_axis
from dinounet.data.images import on_one_grid, require_colour
from dinounet.data.label_inference import OddValues, collect_odd_values, common_folder, describe_problems, infer_labels
from dinounet.data.layouts import Case, mask_paths
from dinounet.data.lazy_volume import open_image, open_truth
from dinounet.data.legends import palettes_differ, refuse_differing_palettes
from dinounet.data.masks import check_case, require_channels
from dinounet.data.preprocessing import IMAGENET, normalise_samples
from dinounet.data.processes import run_jobs, workers_for
from dinounet.errors import DataError, collect_errors
from dinounet.io import summarize
from dinounet.schema.labels import Labels, write_labels
from dinounet.schema.plan import (
    AT_THE_DETECTOR,
    BodyAxis,
    ChannelPlan,
    DataPlan,
    Fingerprint,
    Intensities,
    Normalisation,
)
from dinounet.system import free_memory


def normalisation_of(channel: str) -> Normalisation:
    """nnU-Net's rule, which `rgb` is added to: the channel's name decides."""
    known: dict[str, Normalisation] = {
        "ct": "ct",
        "nonorm": "none",
        "rescale_to_0_1": "rescale_to_0_1",
        "rgb": "rgb",
        "rgb_to_0_1": "rgb_to_0_1",
    }
    return known.get(channel.casefold(), "zscore")


def plan_channels(names: Sequence[str], foreground: np.ndarray) -> tuple[ChannelPlan, ...]:
    """What happens to each channel; of three colours each gets ImageNet's statistics of its own, others their mean.

    Args:
        names: of the channels.
        foreground: (n, C) intensities.
    """
    rules = [normalisation_of(name) for name in names]
    colours = IMAGENET if rules == ["rgb"] * 3 else [tuple(np.mean(IMAGENET, axis=0).tolist())] * len(names)
    return tuple(
        ChannelPlan(name, rule, measure_intensities(values), colour if rule == "rgb" else None)
        for name, rule, values, colour in zip(names, rules, foreground.T, colours, strict=True)
    )


DECODED = 4
"""Bytes of decoded image and mask that a byte of their files is taken for, to choose the number of processes."""

LARGEST_PATCH = 512
PATCH_STEP = 32
"""Sides of a patch are multiples of it, which the network needs not pad."""


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
    known = dataset.labels
    sizes = [_bytes_of_files(case) for case in (*dataset.cases, *dataset.held_out)]
    workers = workers_for(len(sizes), DECODED * sum(sizes), DECODED * max(sizes))
    most = free_memory() // 4 // max(workers, 1)
    examine = [partial(_examine, case, known, dataset.channels, most) for case in dataset.cases]
    jobs = [*examine, *(partial(_examine_held_out, case, most) for case in dataset.held_out)]
    seen: list[CaseStatistics] = []
    by_case: dict[str, CaseStatistics] = {}
    held_out: dict[str, ImageHash] = {}
    problems: list[str] = []
    odd: list[OddValues] = []
    channels = dataset.channels
    samples = Samples()
    equal_palettes: dict[tuple[tuple[int, str], ...], Mapping[int, str]] = {}
    palettes: list[tuple[Path, Mapping[int, str], Mapping[int, int]]] = []
    with run_jobs(jobs, workers, on_case) as results:
        for case, one in zip((*dataset.cases, *dataset.held_out), results, strict=True):
            problems += one.problems
            odd += one.odd
            if one.statistics is None or one.samples is None:
                held_out |= {} if one.hash is None else {case.name: one.hash}
                continue
            channels = channels or _channel_names(len(one.statistics.constant))
            with collect_errors(problems):
                require_channels(len(one.statistics.constant), case.images[0], channels)
                samples.add(one.samples)
                if one.palette is not None:
                    same = equal_palettes.setdefault(tuple(one.palette.items()), one.palette)  # mostly one for all
                    palettes.append((mask_paths(case.mask)[0], same, one.statistics.pixels))
                seen.append(one.statistics)
                by_case[case.name] = one.statistics
    problems += describe_problems(odd)
    if problems:
        raise DataError(summarize(problems))
    assert channels is not None
    channels = dataset.channels or _channel_names(len(channels), {one.modality for one in seen})
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
    if not any(pixels[label] for label in known.classes.values() if label):
        raise DataError(f"the masks of {dataset.name} contain only background; there is nothing to learn")

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
    groups = look_for_twins(dataset, {name: one.hash for name, one in by_case.items()}, held_out)
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
        labels=known,
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
            {name: pixels[label] for name, label in known.with_ignore.items()},
            sum(one.at_the_detector for one in seen),
            sum(one.spacing is None for one in seen),
            axes.most_common(1)[0][0] if axes else None,
        ),
        channel_projection=None
        if len(channels) in (1, 3)
        else principal_components(normalise_samples(samples, planned)),
        test_cases=dataset.test_cases,
        groups=replace(groups, remarks_on_pixels=remarks),
        readers=READERS,
    )


def _remarks_on_palettes(
    palettes: Sequence[tuple[Path, Mapping[int, str], Mapping[int, int]]], known: Labels
) -> tuple[str, ...]:
    told = palettes_differ(palettes) if known.colours is None else ""
    return (f"{told}: palettes differ, and the numbers count ({write_labels(known.with_ignore)})",) if told else ()


@dataclass(frozen=True)
class Examined:
    """What reading a case gives, as a process sends it to the one that plans."""

    hash: ImageHash | None = None
    """Hash of the image; None where it can't be read."""

    statistics: CaseStatistics | None = None
    """None where something is wrong, and for cases that are held out."""

    samples: CaseSamples | None = None
    """Intensities of the case."""

    palette: Mapping[int, str] | None = None
    """Colours of the mask's numbers, where its file has a palette."""

    problems: tuple[str, ...] = ()
    """Sentences on what is wrong."""

    odd: tuple[OddValues, ...] = ()
    """Values of the mask that stand for nothing, which are told together with those of other masks."""


def _examine(case: Case, known: Labels | None, channels: Sequence[str] | None, most: int) -> Examined:
    """Read a case's image and mask once: check them, and collect statistics and the image's hash.

    Args:
        case: to read.
        known: what masks hold; None where only they can tell.
        channels: names of the channels; None where only the images can tell.
        most: bytes of memory that an image or mask may take; larger ones are read plane by plane.
    """
    problems: list[str] = []
    odd: list[OddValues] = []
    image = mask = None
    with collect_errors(problems):
        image = open_image(case.images, most)
    with collect_errors(problems), collect_odd_values(odd):
        mask = open_truth(case, known, most)
    if image is not None and mask is not None:
        with collect_errors(problems), collect_odd_values(odd):
            mask = on_one_grid(mask, image)[0]
            channels = channels or _channel_names(len(image.array))
            pixels = check_case(image, mask, channels, None if known is None else known.with_ignore)
            _require_colours(image, channels)
            statistics, samples = collect_statistics(image, mask, pixels, known.ignore if known else None)
            return Examined(statistics.hash, statistics, samples, mask.palette)
    return Examined(problems=tuple(problems), odd=tuple(odd))


def _examine_held_out(case: Case, most: int) -> Examined:
    """Hash the image of a case that is held out, to find out whether it is trained on under another name.

    What can't be read is left out: predicting it in the end tells what is wrong with it.
    """
    try:
        return Examined(hash_image(open_image(case.images, most)))
    except DataError:
        return Examined()


def _bytes_of_files(case: Case) -> int:
    try:
        return sum(path.stat().st_size for path in case.files)
    except OSError:  # reading it tells what is wrong
        return 0


def _channel_names(count: int, modalities: AbstractSet[str | None] = frozenset()) -> tuple[str, ...]:
    """Names of channels that nobody described: the modality of all images, if they tell, or colours."""
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


LEAST_VARIANCE = 0.01
"""Variance of a component, as a share of the first one's, below which it isn't raised to the others': it is noise."""


@dataclass(frozen=True)
class CaseStatistics:
    """Statistics of one case."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    at_the_detector: bool
    """Whether the spacing is in mm at the detector."""
    is_flat: bool
    modality: str | None
    """Modality as DICOM names it, where the file tells."""
    constant: tuple[bool, ...]
    """Whether each channel holds one value alone."""
    pixels: dict[int, int]
    """Number of pixels that hold each label, or what stands for one in the mask."""
    hash: ImageHash
    """Hash of the case's image."""
    axes: tuple[BodyAxis, BodyAxis, BodyAxis] | None
    """What z, y and x run along in the patient; None where the file doesn't tell."""


def collect_statistics(
    image: Volume, mask: Volume, pixels: dict[int, int], ignore: int | None
) -> tuple[CaseStatistics, CaseSamples]:
    """Take from one case what the fingerprint needs, plane by plane, since it may still lie in its files.

    Args:
        image: of the case.
        mask: on the same grid.
        pixels: how many hold each label.
        ignore: the label of pixels that count nowhere.
    """
    random = np.random.default_rng(1234)
    a_plane = math.ceil(SAMPLES_A_CASE / image.shape[0])
    low, high = np.full(len(image.array), np.inf), np.full(len(image.array), -np.inf)
    anywhere, foreground, moments = [], Reservoir(SAMPLES_A_CASE, random), RunningMoments(len(image.array))
    mixed = len(image.array) not in (1, 3)
    hasher = Hasher(image.array.shape)
    for z in range(image.shape[0]):
        plane, labels = image.array[..., z, :, :], mask.array[..., z, :, :].ravel()
        hasher.add(z, plane)
        values = plane.reshape(len(plane), -1).T
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
        somewhere = random.integers(len(values), size=a_plane)
        if mixed:
            anywhere.append(values[somewhere])
            moments.add(values.T)
        foreground.add(values[(labels > 0) & (labels != (0 if ignore is None else ignore))])
    (chosen,) = foreground.chosen()
    if 0 < len(chosen) < SAMPLES_A_CASE:  # each case weighs the same, as in nnU-Net
        chosen = random.choice(chosen, SAMPLES_A_CASE)
    statistics = CaseStatistics(
        shape=image.shape,
        spacing=image.spacing,
        at_the_detector=image.geometry is not None and image.geometry.unit == AT_THE_DETECTOR,
        is_flat=image.is_flat,
        modality=image.modality,
        constant=tuple((low == high).tolist()),
        pixels=pixels,
        hash=hasher.finish(),
        axes=body_axes(image),
    )
    return statistics, CaseSamples(chosen, np.concatenate(anywhere) if mixed else None, moments if mixed else None)


def principal_components(samples: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Three mixtures of channels, (3, C), that keep most of what differs: their principal components.

    The backbone reads three channels (the published code drops all others). Each mixture has unit variance, as a
    channel has, but noise isn't raised to it; of two channels the third mixture repeats the first, as published. Signs
    are such that what is bright in most channels is bright in the mixture.

    Channels that their normalisation doesn't centre, such as those of noNorm, are not centred here either: a mixture
    then has a mean other than 0, as a single channel of that normalisation has.

    Args:
        samples: (C, n), normalised as the network gets them.
    """
    variances, components = np.linalg.eigh(np.cov(samples))
    order = np.argsort(variances)[::-1][:3]
    least = max(LEAST_VARIANCE * variances.max(), np.finfo(np.float32).eps)  # constant images have none at all
    kept = components[:, order].T / np.sqrt(np.maximum(variances[order], least))[:, None]
    kept *= np.where(kept.sum(1, keepdims=True) < 0, -1, 1)
    return tuple(tuple(kept[row % len(kept)].tolist()) for row in range(3))


def measure_intensities(values: np.ndarray) -> Intensities:
    """Statistics of one channel's values, (n,)."""
    low, high = np.percentile(values, (0.5, 99.5))
    return Intensities(float(values.mean()), float(values.std()), float(low), float(high))
