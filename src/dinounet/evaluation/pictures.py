"""One slice of a case in four panels, for the report: image, truth, prediction, and where they differ."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dinounet.data.images import Volume, coarsest_axis, read_image, require_same_grid
from dinounet.data.masks import read_mask, read_truth
from dinounet.data.pairs import Case, ClassFiles, image_files, name_of
from dinounet.drawing import colours_of, paint, to_grey_levels
from dinounet.errors import DataError
from dinounet.evaluation.evaluate import find_masks
from dinounet.evaluation.records import CaseMetrics, Metrics

ERRORS = {"predicted, not there": "#d55e00", "there, missed": "#56b4e9", "taken for another class": "#f0e442"}
"""Colours of the error panel."""

SMALLEST, LARGEST = 512, 1024
"""Width up to which a slice is enlarged, by a whole factor, and side above which it is reduced; pixels."""

FILL, FILL_OF_ERRORS = 0.5, 0.9
"""Opacity of a class or an error over the image; the outlines are opaque."""

DIMMED = 0.5
"""Brightness of the image under the errors, so that light colours stand out."""


@dataclass(frozen=True)
class Panel:
    """One of a case's four pictures."""

    title: str
    """Image, Truth, Prediction or Errors."""

    text: str
    """What it shows, for those who can't see it."""

    png: bytes
    """The file's content."""


@dataclass(frozen=True)
class CasePicture:
    """What the report shows of one case."""

    case: str
    """Its name."""

    dice: float
    """Mean over the classes."""

    slice_index: int
    """Of the slice shown, counted from 0 along the volume's coarsest axis."""

    slices: int
    """Along that axis; 1 for a flat image."""

    aspect: float
    """Width of the slice over its height, in mm where they are known."""

    panels: tuple[Panel, ...]
    """Image, truth, prediction and errors."""


def make_pictures(
    metrics: Metrics,
    predictions: Path,
    truth: Path,
    images: Path,
    most: int = 12,
) -> list[CasePicture]:
    """Picture the worst cases, worst first, each in the slice with the most wrongly labelled pixels.

    Args:
        metrics: of these predictions.
        predictions: folder of masks.
        truth: folder of masks.
        images: folder of images, `<case>_0000<ending>` with one file a channel, or `<case><ending>`; the first file's
            first channel is shown, or its colours if it has three.
        most: so many cases at most.

    Raises:
        DataError: an image or mask is missing, unreadable, or doesn't fit the others.
    """
    predicted = find_masks(predictions)
    truths = find_masks(truth, predicted)
    files = {name_of(path, images): path for path in image_files(images)} if images.is_dir() else {}
    cases = []
    for case in metrics.worst_first[:most]:
        for folder, masks in ((truth, truths), (predictions, predicted)):
            if case.case not in masks:
                raise DataError(f"{folder} holds no mask of {case.case}, which the metrics name; evaluate again")
        name = next((name for name in (f"{case.case}_0000", case.case) if name in files), None)
        if name is None:
            raise DataError(f"{images} holds no image of {case.case} ({case.case}_0000 or {case.case}); add it")
        cases.append(Case(case.case, (files[name],), truths[case.case]))
    return picture_cases(metrics, cases, predicted, most)


def picture_cases(
    metrics: Metrics, cases: Iterable[Case], predicted: Mapping[str, Path | ClassFiles], most: int = 12
) -> list[CasePicture]:
    """Picture the worst of cases, wherever their files are; see `make_pictures`.

    Args:
        metrics: of these predictions.
        cases: with their images and truth.
        predicted: the file of each case's predicted mask, by its name.
        most: so many cases at most.
    """
    by_name = {case.name: case for case in cases}
    pictures = []
    for found in metrics.worst_first[:most]:
        case = by_name[found.case]
        masks = read_truth(case, metrics.meaning), read_mask(predicted[case.name], metrics.meaning)
        volumes = read_image(case.images[:1]), *masks
        for other in (volumes[0], volumes[2]):
            require_same_grid(other, volumes[1])
        pictures.append(_make_picture(found, *volumes, metrics))
    return pictures


def _make_picture(case: CaseMetrics, image: Volume, truth: Volume, prediction: Volume, metrics: Metrics) -> CasePicture:
    if metrics.ignore is not None:  # left out here as in the numbers
        counts = truth.array != metrics.ignore
        truth, prediction = (replace(mask, array=mask.array * counts) for mask in (truth, prediction))
    spacing = truth.spacing or (1.0, 1.0, 1.0)
    axis = coarsest_axis(truth.shape, spacing)
    index = _telling_slice(truth.array, prediction.array, axis)
    true, predicted = (np.take(mask.array, index, axis) for mask in (truth, prediction))
    channels = image.array if len(image.array) == 3 else image.array[:1]
    size = _size_shown(*true.shape)
    base = _resize(to_grey_levels(np.take(channels, index, axis + 1), *np.percentile(channels, (0.5, 99.5))), size)

    colours = colours_of(metrics.classes)
    drawn = []
    for mask in (true, predicted):
        shown = _resize(mask.astype(np.int32), size)
        drawn.append(
            paint(base, [(np.isin(shown, metrics.classes[name]), colour) for name, colour in colours.items()], FILL)
        )
    wrong = _errors(true, predicted)
    regions = [(_resize(where.astype(np.uint8), size) > 0, ERRORS[name]) for name, where in wrong.items()]
    drawn.append(paint(base * DIMMED, regions, FILL_OF_ERRORS))

    slices = truth.shape[axis]
    place = f"{case.case}, slice {index + 1} of {slices}" if slices > 1 else case.case
    counts = [f"{np.count_nonzero(where)} pixels {name}" for name, where in wrong.items() if where.any()]
    panels = (
        Panel("Image", f"{place}: the image", _png(base)),
        Panel("Truth", f"{place}: the true outlines of {', '.join(colours)}", _png(drawn[0])),
        Panel("Prediction", f"{place}: the predicted outlines of {', '.join(colours)}", _png(drawn[1])),
        Panel("Errors", f"{place}: {', '.join(counts) or 'no wrong pixel'}", _png(drawn[2])),
    )
    rows, columns = (truth.shape[i] * spacing[i] for i in range(3) if i != axis)
    return CasePicture(case.case, case.dice, index, slices, columns / rows, panels)


def _telling_slice(truth: np.ndarray, prediction: np.ndarray, axis: int) -> int:
    """The slice with the most wrong pixels; the one with the most foreground where none is wrong."""
    others = tuple(other for other in range(3) if other != axis)
    wrong = np.count_nonzero(truth != prediction, axis=others)
    return int(np.argmax(wrong if wrong.any() else np.count_nonzero(truth, axis=others)))


def _errors(true: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Where a slice is wrong in which way, by the names of ERRORS."""
    kinds = (true == 0) & (predicted != 0), (true != 0) & (predicted == 0), (true != 0) & (predicted != 0)
    return {name: where & (true != predicted) for name, where in zip(ERRORS, kinds, strict=True)}


def _size_shown(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a slice in the report."""
    longest = max(rows, columns)
    if longest > LARGEST:
        return max(1, round(rows * LARGEST / longest)), max(1, round(columns * LARGEST / longest))
    factor = max(1, min(math.ceil(SMALLEST / columns), LARGEST // longest))
    return rows * factor, columns * factor


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize labels, or RGB: copied pixels in enlarging, and in reducing averages of RGB but never of labels."""
    from PIL import Image

    if size == pixels.shape[:2]:
        return pixels
    average = pixels.ndim == 3 and size[0] < pixels.shape[0]
    how = Image.Resampling.BOX if average else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((size[1], size[0]), how))


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", optimize=True)
    return file.getvalue()
