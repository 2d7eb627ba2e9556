"""Metrics of one class of one case: overlap, distances between surfaces, calibration; how their numbers are written."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from dinounet.data.masks import where
from dinounet.errors import DataError
from dinounet.io import PROBABILITIES, summarize
from dinounet.schema.labels import Labels
from dinounet.schema.metrics import Bin, Calibration, Measures

if TYPE_CHECKING:
    from dinounet.schema.comparison import Comparison
    from dinounet.schema.metrics import Interval, Metrics


BINS = 15

HALF, ONE = (int(np.float16(number).view(np.uint16)) for number in (0.5, 1))
"""Their bits as whole numbers."""

NUMBERS = ONE + 1
"""Number of float16 values from 0 to 1."""

AT_ONCE = 1 << 22
"""Pixels that are read at a time."""


def find_probabilities(predictions: Path, cases: Iterable[str]) -> dict[str, Path]:
    """The file of each case; none at all where the folder doesn't exist.

    Raises:
        DataError: the folder exists but lacks some.
    """
    folder = predictions / PROBABILITIES
    if not folder.is_dir():
        return {}
    found = {case: folder / f"{case}.npz" for case in cases}
    lacking = [case for case, path in found.items() if not path.is_file()]
    if lacking:
        raise DataError(f"{folder} lacks the probabilities of {summarize(lacking)}; predict them, or remove it")
    return found


def count_decisions(path: Path, truth: np.ndarray, known: Labels) -> np.ndarray:
    """How many decisions of a case have each probability there is, and how many of these are right: (2, NUMBERS).

    Float16 has few numbers from 0 to 1, and as whole numbers of the same bits they keep their order.

    Args:
        path: the case's probabilities.
        truth: its mask, (Z, Y, X).
        known: what the numbers in it stand for; pixels of the ignore label are left out.

    Raises:
        DataError: the file is broken, of another shape, or holds no probabilities.
    """
    outputs = list(known.outputs.values())
    flat = truth.ravel()
    ignore = -1 if known.ignore is None else known.ignore  # no mask holds numbers below 0
    counts = np.zeros((2, NUMBERS), np.int64)
    best = np.zeros(0 if known.regions else flat.size, np.uint16)
    right = np.zeros(best.size, bool)
    for output, start, probability in _read(path, (len(outputs), *truth.shape)):
        here = slice(start, start + probability.size)
        is_it = where(flat[here], outputs[output])
        if known.regions is None:
            better = probability > best[here]
            np.copyto(best[here], probability, where=better)
            np.copyto(right[here], is_it, where=better)
        else:
            counts += _count(probability, (probability > HALF) == is_it, flat[here] != ignore)
    for start in range(0, best.size, AT_ONCE):
        here = slice(start, start + AT_ONCE)
        counts += _count(best[here], right[here], flat[here] != ignore)
    return counts


def summarise_decisions(counts: np.ndarray, known: Labels) -> Calibration:
    """Bins and ECE of what `count_decisions` counted, added up over cases."""
    confidence = np.arange(NUMBERS, dtype=np.uint16).view(np.float16).astype(np.float64)
    if known.regions is not None:
        confidence = np.maximum(confidence, 1 - confidence)  # of a no, how sure it is
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.searchsorted(edges[1:-1], confidence)
    decisions, rights = counts
    count, sure, right = (
        np.bincount(bins, each, BINS).tolist() for each in (decisions, decisions * confidence, rights)
    )
    total = int(decisions.sum())
    gaps = sum(abs(a - b) for a, b in zip(sure, right, strict=True))
    return Calibration(
        bins=tuple(
            Bin(low, high, int(n), a / n if n else None, b / n if n else None)
            for low, high, n, a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), count, sure, right, strict=True)
        ),
        ece=gaps / total if total else 0.0,
        count=total,
    )


def _count(probability: np.ndarray, right: np.ndarray, judged: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(probability[pixels], minlength=NUMBERS) for pixels in (judged, judged & right)])


def _read(path: Path, shape: Sequence[int]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Pieces of the array: the output, the place among its pixels, and the bits of the probabilities from there on."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as stream:
            _require_header(stream, shape, path)
            pixels = math.prod(shape[1:])
            for output in range(shape[0]):
                for start in range(0, pixels, AT_ONCE):
                    wanted = min(AT_ONCE, pixels - start) * 2
                    piece = np.frombuffer(stream.read(wanted), np.uint16)
                    if piece.nbytes < wanted:
                        raise EOFError("it ends too early")
                    if piece.max() > ONE:  # as are the bits of what is below 0, above 1, infinite or NaN
                        raise DataError(f"{path} contains values that are not probabilities (0 to 1); predict it again")
                    yield output, start, piece
            if stream.read(1):  # at the end, and not before, its checksum is looked at
                raise EOFError("it ends too late")
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).strip("'\"")
        raise DataError(f"{path} can't be read as probabilities ({reason}); predict it again") from None


def _require_header(stream: IO[bytes], shape: Sequence[int], path: Path) -> None:
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"its format is {version}")
    found, fortran_order, dtype = read_header[version](stream)
    if dtype != np.float16 or fortran_order or found != tuple(shape):
        raise DataError(
            f"{path} holds {dtype} of the shape {found}, but float16 of {tuple(shape)} is expected (classes or "
            "regions, then the mask's slices, rows and columns); predict it again"
        )


TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD",
    "precision": "precision",
    "recall": "recall",
    "hd95": "HD95",
    "assd": "ASSD",
    "volume_difference": "Δ volume",
    "absolute_volume_difference": "|Δ volume|",
}
"""What people call the measures."""

DISTANCES = ("hd95", "assd")
VOLUMES = ("volume_difference", "absolute_volume_difference")

DECIMALS, SIGNIFICANT = 2, 2
"""Of distances and volumes, and how many significant digits these have at least, however small they are."""

DECIMALS_OF_SHARES, SIGNIFICANT_OF_SHARES = 3, 1
"""The same of Dice and its like, which lie between 0 and 1."""

SMALLEST = 1e-6
"""Below this a number is written with an exponent."""

SLACK_OF_ROUNDING = 1e-13
"""Below this a number is what rounding has left of 0; a volume of one cubic micrometre is 1e-12 ml."""


def title_of(name: str, metrics: Metrics | Comparison) -> str:
    """What people call a measure, with its unit if it has one."""
    unit = metrics.unit if name in DISTANCES else metrics.volume_unit if name in VOLUMES else ""
    return TITLES[name] + (f" ({unit})" if unit else "")


def write_number(name: str, number: float, sign: str = "") -> str:
    """A measure with the digits that matter; with "+", one above 0 with its sign."""
    share = name not in DISTANCES + VOLUMES
    decimals, digits = (DECIMALS_OF_SHARES, SIGNIFICANT_OF_SHARES) if share else (DECIMALS, SIGNIFICANT)
    if abs(number) < SLACK_OF_ROUNDING:
        return f"{0.0:.{decimals}f}"
    if abs(number) < SMALLEST:
        return f"{number:{sign}.{digits - 1}e}"
    needed = digits - 1 - math.floor(math.log10(abs(number)))
    return f"{number:{sign}.{max(decimals, needed)}f}"


def write_interval(name: str, interval: Interval | None, by: str = "case") -> str:
    """An interval in words; of one case, or group, there is none."""
    return f"one {by} only" if interval is None else " to ".join(write_number(name, end) for end in interval)


POLICY = (
    "A class that is empty in both truth and prediction scores 1 in Dice, IoU, NSD, precision and recall, and 0 in "
    "HD95, ASSD and volume difference. A class that is empty in only one of them scores 0 in Dice, IoU, NSD, precision "
    "and recall, and as HD95 and ASSD the diagonal of the whole image. No case is left out of a mean."
)
"""What an empty mask counts, in sentences for readers of the numbers."""

ROUNDING = 1e-6
"""By so much of it a distance may exceed the tolerance: a spacing's last digits must not decide."""


def dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Twice the overlap of two boolean masks over the sum of both; 1 where both are empty."""
    total = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return 2 * np.count_nonzero(truth & prediction) / total if total else 1.0


@dataclass(frozen=True)
class Tally:
    """What the measures of a class are computed from; the tallies of several masks can be pooled."""

    there: int
    """Voxels of the truth."""

    found: int
    """Voxels of the prediction."""

    common: int
    """Voxels of both."""

    volume_difference: float
    """Prediction minus truth, in the unit of a voxel's volume."""

    ways: tuple[np.ndarray, np.ndarray]
    """From every voxel of the surface of the truth, and of that of the prediction, the distance to the other surface;
    the image's diagonal where there is no other."""

    diagonal: float
    """Diagonal of the whole image; of a pool, of its largest."""


def measure(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float = 1.0, voxel: float = 1.0
) -> Measures:
    """Compare two boolean masks; `POLICY` tells what empty ones count.

    Args:
        truth: of any number of dimensions.
        prediction: of the same shape.
        spacing: distance of neighbours along each axis.
        tolerance: of NSD, in the unit of `spacing`.
        voxel: volume of one voxel.
    """
    return measure_tally(tally(truth, prediction, spacing, voxel), tolerance)


def tally(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], voxel: float = 1.0) -> Tally:
    """Count two boolean masks, and measure between their surfaces; see `measure`."""
    axes = [axis for axis, length in enumerate(truth.shape) if length > 1] or [0]
    steps = [float(spacing[axis]) for axis in axes]
    shape = [truth.shape[axis] for axis in axes]
    truth, prediction = truth.reshape(shape), prediction.reshape(shape)
    there, found, common = (int(np.count_nonzero(mask)) for mask in (truth, prediction, truth & prediction))
    far = math.hypot(*(length * step for length, step in zip(shape, steps, strict=True)))
    if there and found:
        ways = surface_distances(truth, prediction, steps)
    else:
        first, second = (np.full(_count_surface(mask), far) for mask in (truth, prediction))
        ways = first, second
    return Tally(there, found, common, (found - there) * voxel, ways, far)


def pool(tallies: Sequence[Tally]) -> Tally:
    """The tally of all pixels of several masks together, such as the slices of a patient.

    Distances stay within each mask, since nothing tells how the masks lie to each other.
    """
    first, second = (np.concatenate([one.ways[side] for one in tallies]) for side in (0, 1))
    return Tally(
        there=sum(one.there for one in tallies),
        found=sum(one.found for one in tallies),
        common=sum(one.common for one in tallies),
        volume_difference=math.fsum(one.volume_difference for one in tallies),
        ways=(first, second),
        diagonal=max(one.diagonal for one in tallies),
    )


def measure_tally(counted: Tally, tolerance: float) -> Measures:
    """All measures of a tally; `POLICY` tells what empty masks count."""
    there, found, common, difference = counted.there, counted.found, counted.common, counted.volume_difference
    if not there and not found:
        return Measures(1.0, 1.0, 1.0, 1.0, 1.0, hd95=0.0, assd=0.0, volume_difference=0.0)
    if not there or not found:
        far = counted.diagonal
        return Measures(0.0, 0.0, 0.0, 0.0, 0.0, hd95=far, assd=far, volume_difference=difference)
    both = np.concatenate(counted.ways)
    return Measures(
        dice=2 * common / (there + found),
        iou=common / (there + found - common),
        nsd=float(np.mean(both <= tolerance * (1 + ROUNDING))),
        precision=common / found,
        recall=common / there,
        hd95=max(float(np.percentile(way, 95)) for way in counted.ways),
        assd=float(both.mean()),
        volume_difference=difference,
    )


def surface_distances(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """From every voxel of each mask's surface the distance to the other's, in the unit of `spacing`.

    By trees of the surfaces' voxels, as MONAI: distance transforms of the whole box, which give the same numbers, take
    several times as long, and tens of bytes per pixel. Voxels of both surfaces, mostly the most, need no search.

    Args:
        a: a boolean mask with a voxel at least.
        b: another of the same shape.
        spacing: distance of neighbours along each axis.
    """
    from scipy.spatial import KDTree

    box = _bounding_box(a | b)  # the distances depend on nothing beyond it but that this is background
    shape = a[box].shape
    surfaces = [np.flatnonzero(_surface(mask[box])) for mask in (a, b)]
    points = [np.stack(np.unravel_index(surface, shape), axis=1) * spacing for surface in surfaces]
    ways = []
    for own, other in ((0, 1), (1, 0)):
        apart = np.isin(surfaces[own], surfaces[other], assume_unique=True, invert=True)
        way = np.zeros(len(apart))
        if apart.any():
            tree = KDTree(points[other], balanced_tree=False, compact_nodes=False)
            way[apart] = tree.query(points[own][apart], workers=-1)[0]
        ways.append(way)
    return ways[0], ways[1]


def _count_surface(mask: np.ndarray) -> int:
    return int(np.count_nonzero(_surface(mask[_bounding_box(mask)]))) if mask.any() else 0


def _surface(mask: np.ndarray) -> np.ndarray:
    """The voxels with a face neighbour outside; beyond the array is outside.

    What SciPy's binary erosion takes away, several times as fast.
    """
    surface = mask.copy()
    for axis in range(mask.ndim):
        inner, whole = np.moveaxis(surface, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= whole[:-1]
        inner[:-1] &= whole[1:]
        inner[[0, -1]] = False
    surface ^= mask  # so far it was the inside
    return surface


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)
