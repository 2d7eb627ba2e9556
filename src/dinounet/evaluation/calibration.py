"""Whether probabilities are what they say: reliability and the expected calibration error (ECE).

As Guo et al. (arXiv 1706.04599): decisions are put into 15 equally wide bins by their confidence, which is the
probability of the most probable class; in each the mean confidence is compared with the share that is right. Regions
are decisions of their own, yes or no at each pixel, and all of them are pooled.

The file of a case is NumPy's .npz with one float16 array `probabilities`, (K, Z, Y, X), whose K are the outputs of the
network in order. It is read as a stream, a class after the other: memory grows by three bytes a pixel, whatever K.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from dinounet.data.masks import where
from dinounet.errors import DataError
from dinounet.io import PROBABILITIES, summarize
from dinounet.schema.labels import Labels
from dinounet.schema.metrics import Bin, Calibration

BINS = 15

HALF, ONE = (int(np.float16(number).view(np.uint16)) for number in (0.5, 1))
"""Their bits as whole numbers."""

NUMBERS = ONE + 1
"""Of float16 from 0 to 1."""

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
                        raise DataError(f"{path} holds numbers that are no probabilities (0 to 1); predict it again")
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
            f"{path} holds {dtype} of the shape {found}, but float16 of {tuple(shape)} is wanted (classes or regions, "
            "then the mask's slices, rows and columns); predict it again"
        )
