"""The truth of a case, however people keep it: numbers, colours, one file per class, or a DICOM segmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dinounet.data.formats.dicom import geometry_of_series
from dinounet.data.formats.dicom_headers import dicom_files
from dinounet.data.formats.dicom_seg import holds_fractions
from dinounet.data.formats.nifti import NIFTI_ENDINGS, step_of
from dinounet.data.formats.picture import JPEG_ENDINGS
from dinounet.data.geometry import Volume, require_same_grid, require_straight
from dinounet.data.images import SEGMENTATION_ENDING, ending_of, on_one_grid, read_image, read_stored
from dinounet.data.label_inference import (
    COLOUR,
    MOST_LABELS,
    NEAR_WHOLE,
    OddValues,
    advice,
    common_folder,
    first_files,
    is_grey,
    listed,
    to_mask_value,
)
from dinounet.data.layouts import Case, ClassFiles
from dinounet.data.legends import by_name, counts_by_number, other_names, read_layers, rules
from dinounet.errors import DataError
from dinounet.schema.labels import Labels, relabel_command, write_labels

ROUNDING = 1e-3
"""Distance from a whole number at which a float is taken for it."""

MOST_VALUES = 4096
"""A single mask with more different values is refused at once."""


def read_truth(case: Case, known: Labels | None = None) -> Volume:
    """Read a case's mask, or join its masks of single classes.

    Args:
        case: whose mask is known.
        known: what stands for the classes; None where only the masks can tell: what comes is from `to_mask_values`.

    Raises:
        DataError: it can't be read, or holds what no mask may.
    """
    assert case.mask is not None
    if known is None and isinstance(case.mask, Path):
        volume = read_stored(case.mask, of="mask")
        return replace(volume, array=to_mask_values(volume, coloured=True))
    mask = read_mask(case.mask, known, by_colour=True)
    if ending_of(mask.source) == SEGMENTATION_ENDING and case.images:
        mask = on_one_grid(mask, read_image(case.images[:1]))[0]
    return _measured_as(case.images[0], mask) if case.images else mask


def _measured_as(image: Path, mask: Volume) -> Volume:
    """A mask with what its DICOM image tells of lengths, where its own format has no word for it.

    That is all of it for pictures, and that lengths are those at the detector.
    """
    if not image.is_dir() or (mask.geometry is not None and len(dicom_files(image)) > 1):
        return mask
    geometry = geometry_of_series(image)
    if mask.geometry is None:
        return replace(mask, geometry=geometry)
    return mask if geometry is None else replace(mask, geometry=replace(mask.geometry, unit=geometry.unit))


def read_mask(mask: Path | ClassFiles, known: Labels | None = None, by_colour: bool = False) -> Volume:
    """Read a mask, (Z, Y, X) of whole numbers; three equal channels count as one, and colours as `known` tells.

    Args:
        mask: one file, or one of each class.
        known: what stands for the classes, if that is known.
        by_colour: whether grey is a colour, too, where `known` has colours, as in a truth; in predictions, which are
            ours, it is numbers.

    Raises:
        DataError: the file is missing, broken, in no known format, or doesn't hold whole numbers or known colours.
    """
    if isinstance(mask, ClassFiles):
        assert known is not None  # the files' names tell
        return _join(mask, known)
    refuse_jpegs([mask])
    if ending_of(mask) == SEGMENTATION_ENDING:
        return _read_segmentation(mask, known)
    volume = read_stored(mask, of="mask")
    if volume.segments:
        if known is not None and rules(volume.segments, known):
            return replace(volume, array=by_name(volume, volume.segments, known))
        if not counts_by_number(volume.segments):
            raise other_names(mask, volume.segments, known)
    if known is not None and known.colours is not None:
        volume = in_colours(volume)
    if known is not None and known.colours is not None and len(volume.array) == 3:
        return replace(volume, array=_number(to_mask_values(volume, coloured=True), known, mask))
    values = to_mask_values(volume)
    if values.max(initial=0) >= COLOUR:
        labels = "none has a name" if known is None else f"the labels are numbers ({write_labels(known.with_ignore)})"
        raise DataError(
            f"{mask} is a mask in different colours ({listed(np.unique(values))}), but {labels}; convert it to one "
            "number per pixel, as dinounet relabel does"
        )
    if by_colour and known is not None and known.colours is not None:
        values = _number_greys(values, known, mask)
    return replace(volume, array=values)


def in_colours(volume: Volume) -> Volume:
    """A mask as it is stored with red, green and blue in the place of the numbers of its palette, if it has one."""
    if volume.palette is None or len(volume.array) != 1:
        return volume
    table = np.zeros((max(*volume.palette, int(volume.array.max(initial=0))) + 1, 3), np.uint8)
    for number, colour in volume.palette.items():
        table[number] = list(bytes.fromhex(colour[1:]))
    return replace(volume, array=np.moveaxis(table[volume.array[0]], -1, 0), palette=None)


def to_mask_values(volume: Volume, coloured: bool = False) -> np.ndarray:
    """What a mask holds, (Z, Y, X), before anything is made of it: numbers, or COLOUR + colours.

    Args:
        volume: as stored.
        coloured: whether grey, but black, comes as a colour from masks of three channels, rather than as a number.

    Raises:
        DataError: it has other channels than one or three, or values that aren't whole, negative, or no colours.
    """
    channels, path = volume.array, volume.source
    if len(channels) not in (1, 3):
        raise DataError(f"{path} is a mask with {len(channels)} channels; convert it to one number per pixel")
    equal = all(np.array_equal(channels[0], channel) for channel in channels[1:])
    if len(channels) == 1 or (equal and not (coloured and channels.dtype == np.uint8)):
        return whole_numbers(channels[0], path)
    if channels.dtype != np.uint8:
        raise DataError(f"{path} is a mask in colours of the type {channels.dtype}; save it with 8 bits per colour")
    red, green, blue = channels.astype(np.int32)
    packed: np.ndarray = red << 16 | green << 8 | blue
    packed[packed > 0] += COLOUR
    return packed


def whole_numbers(labels: np.ndarray, path: Path) -> np.ndarray:
    """A mask's numbers, of which floats that are whole up to their rounding become integers.

    Raises:
        DataError: some aren't whole, or are negative, too large, NaN or infinite.
    """
    if labels.dtype.kind == "f":
        labels = _rounded(labels, path)
    if labels.max(initial=0) >= COLOUR:
        raise DataError(
            f"{path} holds the label {labels.max():.0f}; numbers in masks must be below {COLOUR}, store smaller ones"
        )
    if labels.min(initial=0) < 0:
        raise DataError(
            f"{path} holds the label {labels.min():.0f}; store a number from 0 up in its place, such as 255, which "
            "--labels may name ignore"
        )
    return labels.astype(np.int32) if labels.dtype.kind == "f" else labels


def _rounded(labels: np.ndarray, path: Path) -> np.ndarray:
    """Floats as whole numbers, if they are whole up to single precision, or to half a step of a scaled NIfTI file.

    Programs that save whole floats as scaled integers round them: 1 may come back as 0.99998, or 0.996.
    """
    if count := np.count_nonzero(~np.isfinite(labels)):
        raise DataError(
            f"{path} holds {count} pixels that are NaN or infinite; store a number in them, 0 for background, or one "
            "of their own, such as 255, which --labels may name ignore"
        )
    whole = np.rint(labels)
    apart = np.abs(labels - whole)
    if apart.max(initial=0) <= ROUNDING:
        return whole
    step = step_of(path) if ending_of(path) in NIFTI_ENDINGS else 0.0
    values, counts = np.unique(labels, return_counts=True)
    if apart.max() > min(step / 2 + ROUNDING, NEAR_WHOLE) or len(np.unique(np.rint(values))) < len(values):
        if len(values) > MOST_VALUES:
            width = float(np.ptp(values)) / MOST_VALUES
            values = np.rint(values / width) * width
        pixels: Counter[float] = Counter()
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            pixels[value] += count
        raise OddValues("fractions", path, pixels)
    return whole


def _number(values: np.ndarray, known: Labels, path: Path) -> np.ndarray:
    """Numbers in the place of colours."""
    assert known.colours is not None
    numbers = np.zeros(values.shape, np.uint8)
    named = np.zeros(values.shape, bool)
    for name, colour in known.colours.items():
        here = values == to_mask_value(colour)
        numbers[here] = known.with_ignore[name]
        named |= here
    if not named.all():
        raise OddValues("colours", path, count_values(values[~named]), known.colours)
    return numbers


def _number_greys(greys: np.ndarray, known: Labels, path: Path) -> np.ndarray:
    """Numbers in the place of grey levels, (Z, Y, X), that stand for colours; 0 and 1 may be black and the only class.

    Raises:
        OddValues: they are other numbers, which would be classes by the mere order of the colours.
    """
    assert known.colours is not None
    found = count_values(greys)
    numbers = {
        int(colour[1:3], 16): known.with_ignore[name] for name, colour in known.colours.items() if is_grey(colour)
    }
    if found.keys() <= numbers.keys():
        mapped = np.zeros(greys.shape, np.uint8)
        for grey, number in numbers.items():
            mapped[greys == grey] = number
        return mapped
    if len(known.with_ignore) == 2 and numbers.get(0) == 0 and found.keys() <= {0, 1}:  # as files of 1 bit are read
        return greys
    raise OddValues("no colours", path, found, known.colours)


def _join(files: ClassFiles, known: Labels) -> Volume:
    """One mask of several that hold one class each."""
    masks: list[tuple[str, Path, Volume]] = []
    owner: dict[Path, np.ndarray] = {}
    for name, path in files.files:
        one = read_stored(path, of="mask")
        one = replace(one, array=to_mask_values(one), palette=None)
        values = [value for value in np.unique(one.array).tolist() if value]
        if len(values) > MOST_LABELS:
            raise OddValues("values", path, count_values(one.array))
        if len(values) > 1:
            raise DataError(f"{path} holds {listed(values)} beside 0; the mask of one class must hold one number")
        if masks:  # of which each may hold another part of one grid
            one, whole = on_one_grid(one, masks[0][2])
            require_same_grid(one, whole)
            masks = [(name, path, on_one_grid(before, whole)[0]) for name, path, before in masks]
        masks.append((name, path, one))
    joined = np.zeros(masks[0][2].shape, np.min_scalar_type(known.largest))
    for name, path, one in masks:
        here = one.array > 0
        for other, where in owner.items():
            both = np.count_nonzero(where & here)
            if both:
                raise DataError(
                    f"{other} and {path} both hold {both} pixels; give each to one class, or write overlapping classes "
                    "as nnU-Net's regions (dataset.json)"
                )
        owner[path] = here
        number = 0 if name.casefold() == "background" else known.classes.get(name)
        if number is None:
            raise DataError(f"{path} seems to be a mask of {name}, but the labels are {write_labels(known.classes)}")
        joined[here] = number
    return replace(masks[0][2], array=joined)


def _read_segmentation(path: Path, known: Labels | None) -> Volume:
    """A DICOM segmentation, whose segments are known by their names."""
    refuse_fractions([path])
    volume = read_layers(path)
    segments = volume.segments
    if known is None or not rules(segments, known):
        raise other_names(path, segments, known)
    return replace(volume, array=by_name(volume, segments, known))


def refuse_jpegs(masks: Sequence[Path]) -> None:
    """Raise a DataError if masks are JPEGs, with what they hold and the command that repairs them."""
    jpegs = [path for path in masks if ending_of(path) in JPEG_ENDINGS]
    if not jpegs:
        return
    pixels: Counter[int] = Counter()
    for path in jpegs:
        pixels.update(count_values(to_mask_values(read_stored(path, of="mask"))))
    raise DataError(
        f"{first_files(jpegs)} {'is a JPEG' if len(jpegs) == 1 else 'are JPEGs'}, which changes labels in storing "
        f"them: {listed(sorted(pixels))}; export masks as PNG, or {advice(pixels, common_folder(jpegs))}"
    )


def refuse_fractions(masks: Sequence[Path]) -> None:
    """Raise a DataError if masks are DICOM segmentations that hold fractions, with the command that makes masks."""
    found = {
        path: names for path in masks if ending_of(path) == SEGMENTATION_ENDING and (names := holds_fractions(path))
    }
    if not found:
        return
    names = sorted({name for names in found.values() for name in names})
    numbers = {"background": 0} | {name: number for number, name in enumerate(names, start=1)}
    raise DataError(
        f"{first_files([*found])} {'holds' if len(found) == 1 else 'hold'} fractions, such as probabilities, of "
        f"{', '.join(names)}; a mask must say which pixels are in it, and this takes those of at least a half: "
        f"{relabel_command(common_folder([*found]), numbers)}"
    )


def check_case(
    image: Volume, mask: Volume, channels: Sequence[str], labels: Mapping[str, int] | None
) -> dict[int, int]:
    """Number of pixels of each label, with the ignore label if there is one, that a case holds.

    Raises:
        DataError: image and mask don't lie on one grid, or have other channels or labels.
    """
    require_channels(len(image.array), image.source, channels)
    require_same_grid(mask, image)
    require_straight(image)  # the plan's spacing, and what a run's report measures, are in mm
    pixels: Counter[int] = Counter()
    for z in range(mask.shape[0]):  # which may still lie in its file
        pixels.update(count_values(mask.array[..., z, :, :]))
    found = dict(sorted(pixels.items()))
    if labels is None and len(found) > MOST_VALUES:
        raise OddValues("values", mask.source, found)
    unknown = [value for value in found if value not in (range(len(found)) if labels is None else labels.values())]
    if len(found) > MOST_LABELS and unknown and _looks_like_a_mask(image):
        raise DataError(
            f"{mask.source} holds {len(found)} different values and {image.source} few, as if they were swapped; "
            "swap them back"
        )
    if labels is not None and unknown:
        raise OddValues("numbers", mask.source, {value: found[value] for value in unknown}, labels)
    return found


def _looks_like_a_mask(image: Volume) -> bool:
    """Whether the slice in the middle holds a few values alone."""
    return 1 < len(np.unique(image.array[..., image.shape[0] // 2, :, :])) <= MOST_LABELS


def require_channels(count: int, source: Path, channels: Sequence[str]) -> None:
    """Raise a DataError unless an image has as many channels as these."""
    if count != len(channels):
        raise DataError(f"{source} has {count} channels, but {len(channels)} are expected ({', '.join(channels)})")


def where(labels: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Where a mask holds any of these numbers; `numpy.isin` would take eight bytes per pixel on the way."""
    mask: np.ndarray = labels == numbers[0]
    for number in numbers[1:]:
        mask |= labels == number
    return mask


def count_values(array: np.ndarray) -> dict[int, int]:
    """Number of pixels that hold each value."""
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
