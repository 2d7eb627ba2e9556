"""What a mask's own file says that its numbers stand for: segments with names, or a palette's colours.

Names, in Slicer's and DICOM's segmentations, rule: programs number segments in the order in which they were drawn, so
that one number may be the liver here and the tumour there. Segments that overlap, each in a layer of its own, become
regions where one lies in the other. Of palettes the numbers count, as long as all files show one number in one colour.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from dinounet.data.formats.dicom_seg import read_names, read_segmentation
from dinounet.data.formats.itk import Segment, read_segments
from dinounet.data.geometry import Volume
from dinounet.data.images import SEGMENTATION_ENDING, ending_of, read_stored
from dinounet.errors import ConfigError, DataError
from dinounet.io import summarize
from dinounet.schema.labels import BLACK, IGNORE, Labels, Region, relabel_command, write_labels

NO_NAME = re.compile(r"segment[ _]?\d*", re.IGNORECASE)
"""What programs call segments that nobody named."""

BACKGROUND = "background"


def segments_of(path: Path) -> tuple[Segment, ...]:
    """The segments that a mask's file names; none if it names none. No pixel is read."""
    if ending_of(path) == SEGMENTATION_ENDING:
        names, overlap = read_names(path)
        return _of_dicom(dict(enumerate(names, start=1)), overlap)
    return read_segments(path) if ending_of(path) == ".nrrd" else ()


def read_layers(path: Path) -> Volume:
    """A mask whose file names segments, as it is stored: a channel a layer."""
    if ending_of(path) != SEGMENTATION_ENDING:
        return read_stored(path, of="mask")
    found = read_segmentation(path)
    overlap = found.labels.ndim == 4
    array = found.labels if overlap else found.labels[None]
    return Volume(array, found.geometry, path, segments=_of_dicom(found.names, overlap))


def _of_dicom(names: Mapping[int, str], overlap: bool) -> tuple[Segment, ...]:
    """Segments by their numbers; those that overlap are 1 in a layer each."""
    if overlap:
        return tuple(Segment(name, 1, layer) for layer, name in enumerate(names.values()))
    return tuple(Segment(name, number) for number, name in names.items())


def rules(segments: Sequence[Segment], known: Labels) -> bool:
    """Whether segments are known by their names, rather than by their numbers, among labels with these names."""
    return bool(segments) and {*names_of(segments)} <= {*known.outputs, *known.with_ignore} - {BACKGROUND}


def names_of(segments: Sequence[Segment]) -> list[str]:
    """The names of segments, each once, without background."""
    return [name for name in dict.fromkeys(one.name for one in segments) if name.casefold() != BACKGROUND]


def labels_of_legends(masks: Sequence[Path], given: Labels | None) -> Labels | None:
    """What is known of the labels once the names in the masks' own files are.

    Args:
        masks: all of a dataset.
        given: what the user says.

    Returns:
        The given labels, or else names with the numbers that the files give them, where these are the same in all of
        them, and otherwise 1, 2 ... in the order of the names; None where no file names anything.

    Raises:
        DataError: the names leave open what some masks hold, other labels are given, or segments overlap and neither
            lies in the other.
    """
    found = {path: segments for path in masks if (segments := segments_of(path))}
    if given is not None:
        _refuse_other_names(found, given)
    if not found or given is not None:
        return given
    names = sorted({name for segments in found.values() for name in names_of(segments)})
    _refuse_capitals(found, names)
    numbers = common_numbers(found)
    without = [path for path in masks if path not in found]
    if without and numbers is None:
        raise DataError(
            f"{next(iter(found))} names its segments ({', '.join(names)}) and {without[0]} doesn't, and "
            "the numbers differ from file to file, so that they don't tell; name the segments of all files"
        )
    if numbers is None or any(ending_of(path) == SEGMENTATION_ENDING for path in found):
        numbers = {name: number for number, name in enumerate((name for name in names if name != IGNORE), start=1)}
        if IGNORE in names:
            numbers[IGNORE] = len(names)
    ignore = numbers.pop(IGNORE, None)
    inside = _inside({path: segments for path, segments in found.items() if len({one.layer for one in segments}) > 1})
    ordered = dict(sorted(numbers.items(), key=lambda item: item[1]))
    if not inside:
        return Labels({BACKGROUND: 0} | ordered, None, ignore)
    return _as_regions(ordered, inside, ignore)


def by_name(volume: Volume, segments: Sequence[Segment], known: Labels) -> np.ndarray:
    """(Z, Y, X) numbers of known labels, of a mask (C, Z, Y, X) with a layer a channel whose segments have names.

    Raises:
        DataError: it holds a number that none of its segments has, or segments overlap that no region joins.
    """
    where = _masks(volume, segments)
    ignored = where.pop(IGNORE, None)
    labels = np.zeros(volume.shape, np.min_scalar_type(known.largest))
    regions = [region for region in known.regions or () if region.name in where]
    if regions and len(regions) == len(where):
        _write_regions(labels, where, known, volume.source)
    else:
        for name, mask in where.items():
            if name not in known.classes:
                raise other_names(volume.source, segments, known)
            both = mask & (labels > 0)
            if both.any():
                other = next(a for a in where if (where[a] & mask).any())
                raise _overlap(volume.source, other, name, int(np.count_nonzero(both)))
            labels[mask] = known.classes[name]
    if ignored is not None and known.ignore is not None:
        labels[ignored] = known.ignore
    return labels


def other_names(path: Path, segments: Sequence[Segment], known: Labels | None) -> DataError:
    """The error for a mask whose segments have other names than the labels."""
    labels = "nobody named labels" if known is None else f"the labels are {write_labels(known.with_ignore)}"
    plain = ", or write masks of numbers alone by dinounet relabel"
    return DataError(
        f"{path} has the segments {', '.join(names_of(segments))}, but {labels}; name these by --labels, or in "
        f"nnU-Net's layout in dataset.json{'' if ending_of(path) == SEGMENTATION_ENDING else plain}"
    )


def counts_by_number(segments: Sequence[Segment]) -> bool:
    """Whether nobody named the segments, so that their numbers are all that they say."""
    return all(map(NO_NAME.fullmatch, names_of(segments))) and len({one.layer for one in segments}) == 1


def _refuse_other_names(found: Mapping[Path, Sequence[Segment]], given: Labels) -> None:
    """Raise a DataError if masks name segments otherwise than the labels that are given."""
    others = {
        path: segments
        for path, segments in found.items()
        if not rules(segments, given) and not counts_by_number(segments)
    }
    if not others:
        return
    path, segments = next(iter(others.items()))
    names = ", ".join(names_of(segments))
    plain = ""
    if ending_of(path) != SEGMENTATION_ENDING and given.colours is None and common_numbers(others) is not None:
        plain = f", or write masks that hold numbers alone: {relabel_command(path.parent, given.with_ignore)}"
    raise DataError(
        f"{path} has the segments {names}, but the labels are {write_labels(given.as_cli)}; name these by "
        f"--labels, or leave it out{plain}"
    )


def _refuse_capitals(found: Mapping[Path, Sequence[Segment]], names: Sequence[str]) -> None:
    """Raise a DataError if two names are one but for small and capital letters."""
    for a, b in combinations(names, 2):
        if a.casefold() == b.casefold():
            one, other = (
                next(path for path, segments in found.items() if name in names_of(segments)) for name in (a, b)
            )
            raise DataError(
                f"{one} has a segment {a}, and {other} a segment {b}; give both the same name, or different"
            )


def common_numbers(found: Mapping[Path, Sequence[Segment]]) -> dict[str, int] | None:
    """The number of each name, if it is the same in all files, and no other's; else None."""
    numbers: dict[str, int] = {}
    for segments in found.values():
        for one in segments:
            if one.name in names_of(segments) and numbers.setdefault(one.name, one.value) != one.value:
                return None
    return numbers if len(set(numbers.values())) == len(numbers) and 0 not in numbers.values() else None


def _masks(volume: Volume, segments: Sequence[Segment]) -> dict[str, np.ndarray]:
    """The voxels of each segment by its name, (Z, Y, X); those of one name are one."""
    path, layers = volume.source, volume.array
    for layer, array in enumerate(layers):
        values = {one.value for one in segments if one.layer == layer}
        unknown = sorted({*np.unique(array).tolist()} - {0, *values})
        if unknown:
            named = ", ".join(f"{one.name} {one.value}" for one in segments)
            raise DataError(f"{path} holds the number {unknown[0]:g}, but its segments are {named}; save it again")
    found = {}
    for name in names_of(segments):
        parts = [one for one in segments if one.name == name]
        mask: np.ndarray = layers[parts[0].layer] == parts[0].value
        for part in parts[1:]:
            mask |= layers[part.layer] == part.value
        found[name] = mask
    return found


def _overlap(path: Path, a: str, b: str, pixels: int) -> DataError:
    return DataError(
        f"{path} has {pixels} voxels that are both {a} and {b}; give each to one, or make one a part of the other in "
        "all files, so that they become regions"
    )


def _inside(found: Mapping[Path, Sequence[Segment]]) -> dict[str, set[str]]:
    """The names that each one lies in, in all files with several layers; none if nothing overlaps.

    Raises:
        DataError: two overlap, and neither lies in the other.
    """
    overlaps: dict[tuple[str, str], tuple[Path, int]] = {}
    sticks_out: dict[tuple[str, str], Path] = {}
    names = {name for segments in found.values() for name in names_of(segments)} - {IGNORE}
    for path, segments in found.items():
        masks = _masks(read_layers(path), segments)
        masks.pop(IGNORE, None)
        for name, mask in masks.items():
            size = np.count_nonzero(mask)
            for other in names - {name}:
                common = int(np.count_nonzero(mask & masks[other])) if other in masks else 0
                if common:
                    overlaps.setdefault((name, other), (path, common))
                if common < size:
                    sticks_out.setdefault((name, other), path)
    inside: dict[str, set[str]] = {name: set() for name in names}
    for (a, b), (path, common) in overlaps.items():
        if (a, b) not in sticks_out and (b not in inside or a not in inside[b]):
            inside[a].add(b)
        elif (b, a) in sticks_out and (a, b) in sticks_out:
            raise DataError(
                f"{path} has {common} voxels that are both {a} and {b}, and neither lies in the other in all files "
                f"({a} doesn't in {sticks_out[a, b]}, {b} doesn't in {sticks_out[b, a]}); correct the masks so that "
                "one does, or give each voxel to one of them"
            )
    return inside if overlaps else {}


def _as_regions(numbers: Mapping[str, int], inside: Mapping[str, set[str]], ignore: int | None) -> Labels:
    """Labels with a region for each name, made of its own number and those of all that lies in it; outer ones first."""
    parts = {name: [other for other in numbers if name in inside.get(other, ())] for name in numbers}
    labels = {f"{name} alone" if parts[name] else name: number for name, number in numbers.items()}
    order = sorted(numbers, key=lambda name: (len(inside.get(name, ())), numbers[name]))
    regions = tuple(
        Region(name, tuple(sorted((numbers[name], *(numbers[other] for other in parts[name])))), numbers[name])
        for name in order
    )
    try:
        return Labels({BACKGROUND: 0} | labels, regions, ignore)
    except ConfigError as error:
        raise DataError(f"the masks' segments are {summarize(list(numbers))}: {error}") from None


def _write_regions(labels: np.ndarray, where: Mapping[str, np.ndarray], known: Labels, path: Path) -> None:
    """Write into labels (Z, Y, X) the number that belongs to exactly the regions that a voxel is in."""
    assert known.regions is not None
    left = np.zeros(labels.shape, bool)
    for mask in where.values():
        left |= mask
    for number in known.classes.values():
        here = left.copy()
        for region in known.regions:
            mask = where.get(region.name, np.zeros((), bool))
            here &= mask if number in region.labels else ~mask
        labels[here] = number
        left &= ~here
    if left.any():
        place = tuple(np.argwhere(left)[0])
        joined = [name for name, mask in where.items() if mask[place]]
        raise DataError(
            f"{path} has {np.count_nonzero(left)} voxels that are {' and '.join(joined)} alone, which no label stands "
            f"for ({write_labels(known.classes)}); correct the mask"
        )


def palettes_differ(masks: Sequence[tuple[Path, Mapping[int, str], Mapping[int, int]]]) -> str:
    """Which number two masks show in different colours, or which colour they give to different numbers; "" if none.

    Args:
        masks: the file of each, its palette, and how many pixels hold each number; what no pixel holds doesn't count.
    """
    colours: dict[int, tuple[str, Path]] = {}
    numbers: dict[str, tuple[int, Path, Mapping[int, str]]] = {}
    for path, palette, pixels in masks:
        for number in pixels:
            colour = palette.get(number, BLACK)
            first, where = colours.setdefault(number, (colour, path))
            if first != colour:
                return f"{where} shows the number {number} as {first}, and {path} as {colour}"
            other, where, its = numbers.setdefault(colour, (number, path, palette))
            if other != number and its.get(number) != colour and palette.get(other) != colour:
                return f"{where} has {colour} as the number {other}, and {path} as {number}"
    return ""


def refuse_differing_palettes(masks: Sequence[tuple[Path, Mapping[int, str], Mapping[int, int]]]) -> None:
    """Raise a DataError if masks that nobody named give one number different colours."""
    told = palettes_differ(masks)
    if not told:
        return
    colours: Counter[str] = Counter()
    for _, palette, pixels in masks:
        for number, count in pixels.items():
            colours[palette.get(number, BLACK)] += count
    names = (BACKGROUND, *(f"class{index}" for index in range(1, len(colours))))
    by_colour = dict(zip(names, (colour for colour, _ in colours.most_common()), strict=True))
    by_number = dict(zip(names, sorted({number for _, _, pixels in masks for number in pixels}), strict=False))
    raise DataError(
        f"{told}, so that one number may be two classes; say what counts: --labels "
        f"{shlex.quote(write_labels(by_colour))} for the colours, or --labels {write_labels(by_number)} for the numbers"
    )
