"""Clean masks of smoothed ones: each pixel takes the nearest of the values or colours that are meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinounet.data.formats.dicom_seg import read_names, write_whole
from dinounet.data.formats.itk import Segment
from dinounet.data.formats.picture import PICTURE_ENDINGS
from dinounet.data.geometry import Volume
from dinounet.data.images import SEGMENTATION_ENDING, ending_for_labels, ending_of, read_stored, stem_of, write_mask
from dinounet.data.label_inference import COLOUR, to_mask_value, to_vectors
from dinounet.data.legends import (
    by_name,
    common_numbers,
    counts_by_number,
    names_of,
    palettes_differ,
    rules,
    segments_of,
)
from dinounet.data.masks import count_values, in_colours, to_mask_values
from dinounet.errors import DataError
from dinounet.io import atomic_dir, summarize
from dinounet.schema.labels import Given, Labels, name_labels, write_labels


class Change(NamedTuple):
    """What became of one mask."""

    path: Path
    """Path of the clean copy."""

    pixels: int
    """Number of pixels that hold something else than before."""

    share: float
    """Share of the mask's pixels."""

    most: float
    """Greatest distance that a pixel went: of numbers, or of colours in red, green and blue."""


def relabel_folder(
    folder: Path,
    files: Sequence[Path],
    output: Path,
    given: Given,
    on_file: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Change]:
    """Write clean copies of masks, in the same folders as theirs; all of them, or none.

    Args:
        folder: that the masks were found in.
        files: the masks.
        output: folder that doesn't exist yet.
        given: what is meant; whole numbers are kept, fractions and colours become 0, 1, 2 ...; where a file names its
            segments so, its names rule, and not its numbers, which may be others in each file.
        on_file: called after each.
        on_note: called with what a user must know of all of them.

    Raises:
        DataError: all that is wrong with the masks, together.
    """
    if not files:
        raise DataError(f"{folder} holds no masks; give the folder with the masks")
    coloured = isinstance(next(iter(given.values())), str)
    known = name_labels(given) if coloured else None
    means = whole_labels(given)
    numbers = np.array([known.with_ignore[name] if known else means[name] for name in given])
    palette = None if known is None else known.palette
    meant = np.array([to_mask_value(mark) for mark in given.values()])
    legends = {} if coloured else _legends(files, means)
    palettes: list[tuple[Path, Mapping[int, str], Mapping[int, int]]] = []
    changes: list[Change] = []
    problems: list[str] = []
    with atomic_dir(output) as temporary:
        for path in files:
            name = path.relative_to(folder).with_name(stem_of(path) + _ending(path, int(numbers.max())))
            try:
                if ending_of(path) == SEGMENTATION_ENDING:
                    changes.append(_write_whole(path, temporary / name, output / name, known or name_labels(means)))
                    continue
                volume = read_stored(path, of="mask")
                if path in legends:
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    changes.append(_write_named(volume, legends[path], temporary / name, output / name, means))
                    continue
                stored = _mask_values(volume, coloured)
                if not coloured and volume.palette is not None:
                    palettes.append((path, volume.palette, count_values(stored)))
                if not coloured and stored.max(initial=0) >= COLOUR:
                    raise DataError(f"{path} is in colours; name colours, as background=#000000,lesion=#ff0000")
                values, places = np.unique(stored, return_inverse=True)
                nearest, distances = _nearest(to_vectors(values, coloured), to_vectors(meant, coloured))
                changed = distances[places] > 0
                copy = temporary / name
                if copy.exists():
                    raise DataError(f"{path} and another would both become {name}; rename one")
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_mask(copy, numbers[nearest][places].reshape(stored.shape), volume, palette)
            except DataError as error:
                problems.append(str(error))
            else:
                count = int(np.count_nonzero(changed))
                changes.append(Change(output / name, count, count / stored.size, round(float(distances.max()), 1)))
            finally:
                on_file()
        if problems:
            raise DataError(summarize(problems))
    if told := palettes_differ(palettes):
        on_note(f"{told}: palettes differ, and the numbers count; the copies have no palette that would tell")
    return changes


def _legends(files: Sequence[Path], means: Given) -> dict[Path, tuple[Segment, ...]]:
    """The segments of those files (but DICOM's) that name them as the labels do.

    Raises:
        DataError: others name theirs otherwise, and their numbers differ from file to file.
    """
    found = {path: segments_of(path) for path in files if ending_of(path) != SEGMENTATION_ENDING}
    found = {path: segments for path, segments in found.items() if segments}
    if not found:
        return {}
    known = name_labels(means)
    legends = {path: segments for path, segments in found.items() if rules(segments, known)}
    others = {path: s for path, s in found.items() if path not in legends and not counts_by_number(s)}
    if others and common_numbers(others) is None:
        path, segments = next(iter(others.items()))
        raise DataError(
            f"{path} has the segments {', '.join(names_of(segments))}, whose numbers differ from file to file, so that "
            f"the labels {write_labels(means)} don't tell what is meant; name these"
        )
    return legends


def _write_named(volume: Volume, segments: Sequence[Segment], copy: Path, target: Path, means: Given) -> Change:
    """Numbers of the labels in a mask whose file names its segments."""
    numbers = by_name(volume, segments, name_labels(means))
    apart = np.abs(numbers - volume.array.astype(np.int64).max(axis=0))
    write_mask(copy, numbers, volume)
    count = int(np.count_nonzero(apart))
    return Change(target, count, count / apart.size, float(apart.max(initial=0)))


def whole_labels(given: Given) -> Given:
    """What copies hold of named values: those themselves, or 0, 1, 2 ... in their order if some aren't whole."""
    if not any(isinstance(mark, float) for mark in given.values()):
        return given
    order = sorted(given, key=lambda name: float(given[name]))
    return {name: order.index(name) for name in given}


def _write_whole(path: Path, copy: Path, target: Path, known: Labels) -> Change:
    """Clean a DICOM segmentation, whose fractions become the segment that holds at least half a pixel."""
    unknown = sorted({*read_names(path)[0]} - {*known.with_ignore})
    if unknown:
        raise DataError(f"{path} has the segments {', '.join(unknown)}, which the labels don't name; name them")
    copy.parent.mkdir(parents=True, exist_ok=True)
    between = write_whole(path, copy)
    count = int(np.count_nonzero(between))
    return Change(target, count, count / max(1, between.size), round(float(between.max(initial=0)), 1))


def _ending(path: Path, largest: int) -> str:
    """Of the copy: the same where the format keeps numbers as they are."""
    ending = ending_of(path)
    return ending_for_labels(".png" if ending in PICTURE_ENDINGS else ending, largest)


def _mask_values(volume: Volume, coloured: bool) -> np.ndarray:
    """The same as `to_mask_values`, but for fractions, and grey that stands for colours, which are about to go."""
    if volume.array.dtype.kind == "f" and len(volume.array) == 1:
        return volume.array[0]
    if coloured:
        volume = in_colours(volume)
    if coloured and len(volume.array) == 1:
        volume = replace(volume, array=volume.array.repeat(3, axis=0))
    return to_mask_values(volume, coloured)


def _nearest(values: np.ndarray, meant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the nearest meant vector to each of n vectors, and its distance."""
    best = np.zeros(len(values), int)
    distance = np.full(len(values), np.inf)
    for index, target in enumerate(meant):
        here = np.sqrt(((values - target) ** 2).sum(-1))
        nearer = here < distance
        best[nearer], distance[nearer] = index, here[nearer]
    return best, distance
