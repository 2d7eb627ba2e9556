"""One slice of a case in four panels, for the report: image, truth, prediction, and where they differ.

The page holds the image once and lays over it what the other panels add, which is of a few flat colours and small: four
whole pictures of a noisy image would be five times as large.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dinounet.data.geometry import Volume, coarsest_axis, require_same_grid
from dinounet.data.images import colours_of, on_one_grid, outline_of, read_image, rgb_of, to_grey_levels
from dinounet.data.layouts import Case, ClassFiles, image_files, name_of
from dinounet.data.masks import read_mask, read_truth
from dinounet.errors import ConfigError, DataError
from dinounet.evaluation.evaluate import find_masks
from dinounet.io import summarize
from dinounet.schema.metrics import CaseMetrics, Metrics

CONFUSED = "taken for another class"
"""What can't happen where there is one class."""

ERRORS = {"predicted, not there": "#d55e00", "there, missed": "#56b4e9", CONFUSED: "#f0e442"}
"""Colours of the error panel."""

MOST = 12
"""Cases that are pictured unless told otherwise."""

SMALLEST, LARGEST = 512, 1024
"""Width up to which masks are enlarged, by a whole factor, so that outlines are thin; side above which a slice is
reduced. In pixels."""

FILL, FILL_OF_ERRORS = 0.5, 0.9
"""Opacity of a class or an error over the image; the outlines are opaque."""


@dataclass(frozen=True)
class Panel:
    """One of a case's four pictures."""

    title: str
    """Image, Truth, Prediction or Errors."""

    text: str
    """What it shows, for those who can't see it."""

    layer: bytes | None
    """What lies over the image, as PNG, transparent elsewhere; None of the image itself."""


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

    image: bytes
    """The slice, as PNG."""

    panels: tuple[Panel, ...]
    """Image, truth, prediction and errors."""


def make_pictures(
    metrics: Metrics,
    predictions: Path,
    truth: Path,
    images: Path,
    most: int = MOST,
) -> list[CasePicture]:
    """Picture the worst cases, worst first, each in the slice with the most wrongly labelled pixels.

    Args:
        metrics: of these predictions.
        predictions: folder of masks.
        truth: folder of masks.
        images: folder of images, `<case>_0000<ending>` with one file per channel, or `<case><ending>`; the first file's
            first channel is shown, or its colours if it has three.
        most: so many cases at most.

    Raises:
        ConfigError: `most` is negative.
        DataError: an image or mask is missing, unreadable, or doesn't fit the others.
    """
    if most < 0:
        raise ConfigError(f"pictures is {most}; give 0 or more cases to picture")
    if not images.is_dir():
        raise DataError(f"{images} is not a folder; give the one with the images of the cases")
    predicted = find_masks(predictions)
    truths = find_masks(truth, predicted)
    names = [case.case for case in metrics.worst_first[:most]]
    for folder, masks in ((truth, truths), (predictions, predicted)):
        if absent := [name for name in names if name not in masks]:
            raise DataError(f"{folder} holds no mask of {summarize(absent)}, which the metrics name; evaluate again")
    files = {name_of(path, images): path for path in image_files(images)}
    shown = {name: files.get(f"{name}_0000", files.get(name)) for name in names}
    if absent := [name for name, path in shown.items() if path is None]:
        wanted = f"{absent[0]}_0000 or {absent[0]}" + (", and so on" if len(absent) > 1 else "")
        raise DataError(
            f"{images} holds no image of {summarize(absent)} ({wanted}); add {'them' if len(absent) > 1 else 'it'}"
        )
    cases = [Case(name, (path,), truths[name]) for name, path in shown.items() if path is not None]
    return picture_cases(metrics, cases, predicted, most)


def picture_cases(
    metrics: Metrics, cases: Iterable[Case], predicted: Mapping[str, Path | ClassFiles], most: int = MOST
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
        image = read_image(case.images[:1])
        truth = on_one_grid(read_truth(case, metrics.labels), image)[0]
        prediction = on_one_grid(read_mask(predicted[case.name], metrics.labels), image)[0]
        for other in (image, prediction):
            require_same_grid(other, truth)
        pictures.append(_make_picture(found, image, truth, prediction, metrics))
    return pictures


def _make_picture(case: CaseMetrics, image: Volume, truth: Volume, prediction: Volume, metrics: Metrics) -> CasePicture:
    if metrics.labels.ignore is not None:  # left out here as in the numbers
        counts = truth.array != metrics.labels.ignore
        truth, prediction = (replace(mask, array=mask.array * counts) for mask in (truth, prediction))
    spacing = truth.spacing or (1.0, 1.0, 1.0)
    axis = coarsest_axis(truth.shape, spacing)
    index = _telling_slice(truth.array, prediction.array, axis)
    true, predicted = (np.take(mask.array, index, axis) for mask in (truth, prediction))
    channels = image.array if len(image.array) == 3 else image.array[:1]
    base = to_grey_levels(np.take(channels, index, axis + 1), *np.percentile(channels, (0.5, 99.5)))
    size = _size_shown(*true.shape)
    slices = truth.shape[axis]
    place = f"{case.case}, slice {index + 1} of {slices}" if slices > 1 else case.case
    colours = colours_of(metrics.classes)
    panels = [Panel("Image", f"{place}: the image", None)]
    for title, what, mask in (("Truth", "true", true), ("Prediction", "predicted", predicted)):
        shown = _resize(mask.astype(np.int32), size)
        regions = [(np.isin(shown, metrics.classes[name]), colour) for name, colour in colours.items()]
        text = f"{place}: the {what} outlines of {', '.join(colours)}"
        panels.append(Panel(title, text, _png(_layer(regions, size, FILL))))
    wrong = _errors(true, predicted)
    regions = [(_resize(where.astype(np.uint8), size) > 0, ERRORS[name]) for name, where in wrong.items()]
    counts = [f"{np.count_nonzero(where)} pixels {name}" for name, where in wrong.items() if where.any()]
    text = f"{place}: {', '.join(counts) or 'no wrong pixel'}"
    panels.append(Panel("Errors", text, _png(_layer(regions, size, FILL_OF_ERRORS))))
    rows, columns = (truth.shape[i] * spacing[i] for i in range(3) if i != axis)
    small = _resize(base, size) if max(base.shape[:2]) > LARGEST else base
    return CasePicture(case.case, case.dice, index, slices, columns / rows, _png(small), tuple(panels))


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


def _layer(regions: Sequence[tuple[np.ndarray, str]], size: tuple[int, int], opacity: float) -> np.ndarray:
    """Regions in their colours, outlined, as RGBA to lie over an image; a later one lies over an earlier one."""
    premultiplied, alpha = np.zeros((*size, 3), np.float32), np.zeros(size, np.float32)
    for where, colour in regions:
        own = where * np.where(outline_of(where), 1.0, opacity)
        premultiplied = own[..., None] * np.array(rgb_of(colour)) + (1 - own[..., None]) * premultiplied
        alpha = own + (1 - own) * alpha
    colours = premultiplied / np.maximum(alpha, 1e-6)[..., None]
    return np.dstack((colours, alpha * 255)).round().astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    """RGB or RGBA as PNG, in shades of grey where that loses nothing."""
    from PIL import Image

    grey = pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels)).save(file, "png", optimize=True)
    return file.getvalue()
