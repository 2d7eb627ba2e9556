"""Images and masks, read and written with their geometry, on one grid; and masks drawn over images."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dinounet.console import without_standard_error
from dinounet.data.formats.dicom import read_series
from dinounet.data.formats.dicom_headers import is_dicom, is_series, other_object, other_objects
from dinounet.data.formats.itk import ITK_ENDINGS, is_segmentation, read_itk, write_itk
from dinounet.data.formats.nifti import NIFTI_ENDINGS, open_nifti, write_nifti
from dinounet.data.formats.picture import (
    JPEG_ENDINGS,
    PICTURE_ENDINGS,
    TIFF_ENDINGS,
    Purpose,
    read_palette,
    read_picture,
    read_tiff,
    read_tiff_palette,
    write_picture,
    write_tiff,
)
from dinounet.data.geometry import SAME_PLACE, Geometry, Volume, require_same_grid
from dinounet.errors import DataError, collect_errors
from dinounet.io import atomic_write, read_patiently, require_readable, summarize

VOLUME_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
FLAT_ENDINGS = PICTURE_ENDINGS + TIFF_ENDINGS
ENDINGS = VOLUME_ENDINGS + FLAT_ENDINGS
SEGMENTATION_ENDING = ".dcm"
"""Ending of masks that are DICOM Segmentation objects (`dicom_seg.py`); an image in DICOM is a folder."""
KNOWN = f"{', '.join(ENDINGS)}, or a folder of DICOM files"


def ending_of(path: Path) -> str:
    """The format's ending of a file name, "" if it has none of ours."""
    endings = (*ENDINGS, SEGMENTATION_ENDING)
    return next((ending for ending in endings if path.name.lower().endswith(ending)), "")


def stem_of(path: Path) -> str:
    """The file's name without the format's ending."""
    return path.name[: len(path.name) - len(ending_of(path))]


def read_image(paths: Sequence[Path]) -> Volume:
    """Read an image, in the type it is stored in, from one file per channel, or one file with several channels.

    Raises:
        DataError: a file is missing, broken, of no known format, or holds NaN or infinity, or the grids differ.
    """
    channels: list[Volume] = []
    problems: list[str] = []
    for path in paths:
        with collect_errors(problems):
            channels.append(read_stored(path, of="image"))
    if problems:
        raise DataError(summarize(problems))
    first = channels[0]
    for other in channels[1:]:
        require_same_grid(other, first)
    array = first.array if len(channels) == 1 else np.concatenate([channel.array for channel in channels])
    require_finite(array, first.source)
    return replace(first, array=array)


def write_mask(path: Path, labels: np.ndarray, like: Volume, colours: Mapping[int, str] | None = None) -> None:
    """Write labels (Z, Y, X) onto the grid of `like`, in the format of the path's ending.

    Args:
        path: the file.
        labels: numbers of the classes.
        like: what lies on the same grid.
        colours: for people, of each number, "#ff0000"; formats with a palette keep them.
    """
    labels = labels.astype(np.min_scalar_type(int(labels.max(initial=0))))
    if ending_of(path) in NIFTI_ENDINGS and labels.dtype == np.uint32:
        labels = labels.astype(np.int32)  # which FSL and SPM read too
    with atomic_write(path) as temporary:
        if ending_of(path) in TIFF_ENDINGS:
            write_tiff(temporary, labels, colours)
        elif ending_of(path) in PICTURE_ENDINGS:
            write_picture(temporary, labels, colours)
        else:
            _write_volume(temporary, labels, like.geometry)


def ending_for_labels(ending: str, largest: int) -> str:
    """The ending of a format that holds numbers up to this one: the image's own, else PNG, else TIFF."""
    if ending in JPEG_ENDINGS or (ending == ".bmp" and largest > 255):
        ending = ".png"
    return ".tif" if ending == ".png" and largest > 65535 else ending


def require_finite(array: np.ndarray, source: Path) -> None:
    """Raise a DataError if a pixel is NaN or infinite."""
    count = array.size - np.isfinite(array).sum() if array.dtype.kind == "f" else 0
    if count:
        raise DataError(f"{source} holds {count} pixels that are NaN or infinite; repair or exclude it")


def require_colour(channel: np.ndarray, name: str, source: Path) -> None:
    """Raise a DataError if what is normalised as a colour holds more than a byte."""
    if channel.min() < 0 or channel.max() > 255:
        raise DataError(
            f"{source} holds {channel.min():g} to {channel.max():g} in the channel {name}, but colours go from 0 to "
            "255; convert it to 8 bits, or train with another name for the channel, which normalises it by its own "
            "mean and deviation"
        )


def refuse_dead_link(path: Path) -> None:
    """Raise a DataError if a path is a symbolic link to what doesn't exist."""
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path} is a symbolic link that leads nowhere; remove or repair it")


def unknown_format(path: Path) -> DataError:
    """The error for a file, or folder, that is no image."""
    kinds = other_objects(path) if path.is_dir() else [kind] if path.is_file() and (kind := other_object(path)) else []
    if kinds:
        what = "holds no image, but DICOM objects" if path.is_dir() else "is no image, but a DICOM object"
        return DataError(f"{path} {what} of the kind {', '.join(kinds)}; give the folder that holds the series")
    if path.is_file() and is_dicom(path):
        return DataError(f"{path} is a single DICOM file; give the folder that holds its series, and nothing else")
    return DataError(f"{path} is not an image in a known format ({KNOWN})")


def unreadable(path: Path, reason: str) -> DataError:
    """The error for a file that its reader gave up, in that reader's words."""
    lacks = re.search(r"support|not available|not implemented|unknown encoding", reason, re.IGNORECASE)
    remedy = "save it in another way, such as uncompressed" if lacks else "is it whole?"
    return DataError(f"{path} can't be read as an image ({reason}); {remedy}")


def read_stored(path: Path, of: Purpose) -> Volume:
    """All channels of an image or mask, as they are stored: (C, Z, Y, X).

    Raises:
        DataError: it is missing, broken, or of no known format.
        UnreachableError: its file system is away.
    """
    return read_patiently(path, lambda: _read_stored(path, of))


def _read_stored(path: Path, of: Purpose) -> Volume:
    refuse_dead_link(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    ending = ending_of(path)
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder; remove it")  # a pipe would keep us waiting
    try:
        if path.is_dir() and is_series(path):
            found = read_series(path)
            return Volume(found.array, found.geometry, path, found.modality)
        if path.is_dir() or ending not in ENDINGS:
            raise unknown_format(path)
        require_readable(path)
        if ending in FLAT_ENDINGS:
            read, palette = (read_tiff, read_tiff_palette) if ending in TIFF_ENDINGS else (read_picture, read_palette)
            return Volume(read(path, of), None, path, palette=palette(path) if of == "mask" else None)
        if ending in NIFTI_ENDINGS:
            file = open_nifti(path)
            return Volume(file.read(), file.geometry, path)
        with without_standard_error():
            return read_itk(path)
    except DataError:
        raise
    except Exception as error:  # the readers raise whatever their C code meets
        told = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Reason: ")]
        reason = told[-1].strip() if told else type(error).__name__  # ITK's "Reason" is what failed before
        reason = re.sub(r"^ITK ERROR: \w+\(0x[0-9a-f]+\): ", "", reason)
        raise unreadable(path, reason) from None


def _write_volume(path: Path, array: np.ndarray, geometry: Geometry | None) -> None:
    if ending_of(path) in NIFTI_ENDINGS:
        write_nifti(path, array, geometry)
    else:
        write_itk(path, array, geometry)


def write_image(path: Path, array: np.ndarray, geometry: Geometry | None) -> None:
    """Write intensities (Z, Y, X) as a volume of the given geometry, or of none."""
    with atomic_write(path) as temporary:
        _write_volume(temporary, array, geometry)


MOST_EMPTY = 4096
"""Slices that a segmentation may have left out; what lies farther away is of another series."""


def on_one_grid(mask: Volume, other: Volume) -> tuple[Volume, Volume]:
    """A mask and its image, or another mask, where a file holds only a part of the grid, on all of it.

    DICOM segmentations leave out empty slices, and Slicer saves the extent that is painted; other volumes come as they
    are, and these too where they don't fit, so that whoever compares the grids tells that.
    """
    if mask.shape == other.shape and not (may_be_a_part(mask) and may_be_a_part(other)):
        return mask, other
    if not may_be_a_part(other):
        return _spread(mask, other.shape, other), other
    is_slice = other.shape[0] == 1 < mask.shape[0]  # which doesn't tell how far the next one would be
    if not may_be_a_part(mask) or is_slice:
        return on_one_grid(other, mask)[::-1]
    box = _box_of(mask, other)
    if box is None:
        return mask, other
    first = np.minimum(box, 0)
    last = np.maximum(box + mask.shape, other.shape)
    if (last - first - mask.shape).max() > MOST_EMPTY:
        return mask, other
    whole = replace(other, geometry=_shifted(other.geometry, first))
    shape = tuple((last - first).tolist())
    return _spread(mask, shape, whole), _spread(other, shape, whole)


def may_be_a_part(volume: Volume) -> bool:
    """Whether a file's format, or that it names segments, says that what isn't in it is background."""
    named = ending_of(volume.source) == SEGMENTATION_ENDING or is_segmentation(volume.source)
    return named or bool(volume.segments)


def _spread(mask: Volume, shape: tuple[int, ...], grid: Volume) -> Volume:
    """A mask on all of a grid of this shape that holds all of it, 0 where it has nothing; else as it is."""
    first = _box_of(mask, grid) if may_be_a_part(mask) else None
    if first is None or (first < 0).any() or (first + mask.shape > shape).any():
        return mask
    array = np.zeros(shape, mask.array.dtype)
    array[tuple(slice(a, a + length) for a, length in zip(first.tolist(), mask.shape, strict=True))] = mask.array
    return replace(mask, array=array, geometry=grid.geometry)


def _box_of(mask: Volume, grid: Volume) -> np.ndarray | None:
    """The index, z, y, x, of a mask's first voxel on a grid, which may lie outside; None if it isn't on that grid."""
    a, b = mask.geometry, grid.geometry
    if a is None or b is None:
        return None
    to_grid = np.linalg.solve(b.affine, a.affine)
    first = np.rint(to_grid[:3, 3])
    corners = np.array([*itertools.product(*((0, length - 1) for length in mask.shape[::-1]))])
    apart = corners @ (to_grid[:3, :3] - np.eye(3)).T + to_grid[:3, 3] - first
    if min(len(a.origin), len(b.origin)) == 2:
        apart[:, 2] = first[2] = 0
    return None if np.abs(apart).max() > SAME_PLACE else first[::-1].astype(int)


def _shifted(geometry: Geometry | None, first: np.ndarray) -> Geometry | None:
    """A grid that begins at another of its voxels, z, y, x."""
    if geometry is None:
        return None
    origin = (geometry.affine @ [*first[::-1], 1])[: len(geometry.origin)]
    return replace(geometry, origin=tuple(origin.tolist()), also=(), nifti=None)


COLOURS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#d55e00")
"""Colours of the classes, in the order of the labels; of more classes lighter and then darker ones follow."""


def colours_of(classes: Iterable[str]) -> dict[str, str]:
    """A colour for each class or region that was evaluated."""
    return {name: _vary(COLOURS[i % len(COLOURS)], i // len(COLOURS)) for i, name in enumerate(classes)}


def to_grey_levels(channels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Intensities (1 or 3, Y, X) within a window as RGB (Y, X, 3) of 0 to 255."""
    levels = np.clip((channels - low) / max(high - low, 1e-12), 0, 1) * 255
    return np.moveaxis(np.broadcast_to(levels.round().astype(np.uint8), (3, *channels.shape[1:])), 0, -1)


def paint(base: np.ndarray, regions: Sequence[tuple[np.ndarray, str]], opacity: float) -> np.ndarray:
    """Lay regions over RGB pixels, outlined."""
    painted = np.array(base, np.float32)
    for where, colour in regions:
        rgb = np.array(rgb_of(colour), np.float32)
        painted[where] += opacity * (rgb - painted[where])
        painted[outline_of(where)] = rgb
    return painted.round().astype(np.uint8)


def outline_of(where: np.ndarray) -> np.ndarray:
    """The pixels of a region (Y, X) that have a neighbour above, below, left or right outside of it."""
    around = np.pad(where, 1)
    return where & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def rgb_of(colour: str) -> tuple[int, ...]:
    """Red, green and blue, each 0 to 255, of "#rrggbb"."""
    return tuple(bytes.fromhex(colour[1:]))


def _vary(colour: str, turn: int) -> str:
    """The colour itself in the first turn through the palette, half white in the second, half black in the third."""
    other = (None, 255, 0)[turn % 3]
    return colour if other is None else "#" + bytes((part + other) // 2 for part in rgb_of(colour)).hex()
