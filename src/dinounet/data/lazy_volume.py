"""Images and masks that stay in their files and are read plane by plane or some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from dinounet.console import without_standard_error
from dinounet.data.formats.itk import probe_itk
from dinounet.data.formats.nifti import NIFTI_ENDINGS, open_nifti
from dinounet.data.formats.picture import ORIENTATION, TIFF_ENDINGS, depth_of_png, open_picture
from dinounet.data.geometry import Geometry, Volume, require_same_grid
from dinounet.data.images import FLAT_ENDINGS, VOLUME_ENDINGS, ending_of, read_image, unreadable
from dinounet.data.layouts import Case
from dinounet.data.masks import read_truth, whole_numbers
from dinounet.errors import DataError, reason_of
from dinounet.io import is_passing, read_patiently
from dinounet.schema.labels import Labels

MODES = ("L", "RGB", "I;16")
"""Pillow's names of what PNG and JPEG may hold to be read so."""


@dataclass
class LazyRows:
    """Stands in for the array of a flat image, (C, 1, Y, X): `rows[..., 0, first:last, :]` reads some rows.

    The file is decoded once for each time that somebody goes through it from the top; rows that the last reading held
    are not decoded again.
    """

    path: Path
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    _region: Any = None
    _held: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0)))
    """(rows, X, C) that were read last."""
    _first: int = 0
    """The first of them."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """(C, rows, X) of `[..., 0, rows, :]`."""
        _, _, rows, _ = key
        first, last, _ = rows.indices(self.shape[2])
        if first >= last:  # which libvips takes for an error
            return np.empty((len(self), 0, self.shape[3]), self.dtype)
        if self._region is None or first < self._first:
            self._open()
        bottom = self._first + len(self._held)
        if last > bottom:
            kept = self._held[max(first - self._first, 0) :]
            self._first = max(first, bottom) - len(kept)
            self._held = np.concatenate([kept, self._read(max(first, bottom), last)])
        part = self._held[first - self._first : last - self._first]
        return np.moveaxis(part, -1, 0)

    def _open(self) -> None:
        import pyvips

        try:  # libvips remembers files by name, so that one that was replaced would be the old one
            image = pyvips.Image.new_from_file(str(self.path), access="sequential", revalidate=True, fail_on="error")
            self._region = pyvips.Region.new(image)
        except pyvips.Error as error:
            raise self._unreadable(error) from None
        self._held, self._first = np.empty((0, self.shape[3], len(self)), self.dtype), 0

    def _read(self, first: int, last: int) -> np.ndarray:
        import pyvips

        try:
            pixels = self._region.fetch(0, first, self.shape[3], last - first)
        except pyvips.Error as error:
            raise self._unreadable(error) from None
        found = np.frombuffer(pixels, self.dtype).reshape(last - first, self.shape[3], len(self))
        if self.dtype.kind == "f" and not np.isfinite(found).all():
            raise DataError(f"{self.path} holds NaN or infinity in its rows {first} to {last}; repair or exclude it")
        return found

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self.path} can't be read as an image ({reason_of(error, -1)}); is it whole?")


def probe_rows(path: Path, most: int = 0) -> LazyRows | None:
    """A flat image with its pixels still in the file; None if it is to be read whole, or takes no more than `most`."""
    try:
        found = _tiff(path) if path.name.lower().endswith(TIFF_ENDINGS) else _picture(path, most)
    except Exception:  # the readers raise whatever they meet; reading it whole tells what is wrong
        return None
    return found and LazyRows(path, (found[0], 1, *found[1]), found[2])


Found = tuple[int, tuple[int, int], np.dtype[Any]]
"""Channels, rows and columns, and type."""


def _picture(path: Path, most: int) -> Found | None:
    with open_picture(path) as file:
        plain = file.format in ("PNG", "JPEG") and file.mode in MODES and "transparency" not in file.info
        if not plain or _libvips_differs(path):
            return None
        dtype = np.dtype(np.uint16 if file.mode == "I;16" else np.uint8)
        if 2 * len(file.getbands()) * file.height * file.width * dtype.itemsize <= most:
            return None
        if file.getexif().get(ORIENTATION, 1) not in (0, 1):  # for which Pillow decodes a PNG: it may stand at its end
            return None
        return len(file.getbands()), (file.height, file.width), dtype


def _libvips_differs(path: Path) -> bool:
    """Whether it is a PNG of less or more bits than Pillow's mode tells."""
    bits, coloured = depth_of_png(path)
    return bits < 8 or (bits == 16 and coloured)


def _tiff(path: Path) -> Found | None:
    import tifffile

    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1 or len(file.series[0].pages) != 1:
            return None
        page: Any = file.series[0].keyframe
        plain = page.photometric.name in ("MINISBLACK", "RGB") and not page.extrasamples
        plain = plain and page.tags.valueof(ORIENTATION, 1) in (0, 1)
        if not plain or page.samplesperpixel not in (1, 3) or page.imagedepth != 1 or page.bitspersample < 8:
            return None
        if page.samplesperpixel == 3 and page.planarconfig.name != "CONTIG":
            return None
        if page.dtype not in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64):
            return None
        return page.samplesperpixel, (page.imagelength, page.imagewidth), np.dtype(page.dtype)


MASK_BYTES = 16
"""What a pixel of a mask takes while it is read whole: an integer of 8 bytes, and another to compare it with."""


@dataclass(frozen=True)
class LazyVolume:
    """Stands in for the array of a volume, (C, Z, Y, X) or (Z, Y, X): `planes[..., z, :, :]` reads one plane."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int], np.ndarray] | None
    """(C, Y, X) or (Y, X) of a plane; None where the format doesn't allow it."""

    def __getitem__(self, key: Any) -> np.ndarray:
        assert self.read is not None
        _, z, rows, _ = key
        return self.read(z)[..., rows, :]

    def __len__(self) -> int:
        return self.shape[0]


def open_image(paths: Sequence[Path], most: int, slice_axis: int = 0) -> Volume:
    """Read an image as `read_image` does, or leave it in its files if reading it takes more bytes than `most`.

    Args:
        paths: one file per channel, or one with several channels.
        most: bytes of memory.
        slice_axis: along which it is going to be cut.

    Raises:
        DataError: as `read_image`; what is left in its files, as soon as the wrong plane is read.
    """
    if len(paths) == 1 and ending_of(paths[0]) in FLAT_ENDINGS and paths[0].is_file():
        rows = probe_rows(paths[0], most)
        flat = None if rows is None else Volume(cast(np.ndarray, rows), None, paths[0])
        return read_image(paths) if flat is None or bytes_to_read(flat) <= most else flat
    found = probe(paths)
    if found is None or bytes_to_read(found) <= most or not can_stay(found, slice_axis):
        return read_image(paths)
    return found


def open_truth(case: Case, known: Labels | None, most: int, slice_axis: int = 0) -> Volume:
    """Read a case's mask as `read_truth` does, or leave it in its file if reading it takes more bytes than `most`."""
    mask = case.mask
    if not isinstance(mask, Path) or (known is not None and known.colours is not None):
        return read_truth(case, known)
    found = probe([mask])
    if (
        found is None
        or len(found.array) > 1
        or pixels_of(found) * MASK_BYTES <= most
        or not can_stay(found, slice_axis)
    ):
        return read_truth(case, known)
    stored = found.array
    labels = LazyVolume(stored.shape[1:], np.dtype(np.int32), lambda z: whole_numbers(stored[..., z, :, :][0], mask))
    return replace(found, array=cast(np.ndarray, labels))


def probe(paths: Sequence[Path]) -> Volume | None:
    """An image as its headers tell, with its pixels still in the files; None if they don't tell, or don't agree."""
    found = [_probe_file(path) for path in paths]
    channels = [channel for channel in found if channel is not None]
    if len(channels) < len(paths):
        return None
    try:
        for channel in channels[1:]:
            require_same_grid(channel, channels[0])
    except DataError:
        return None
    parts = [cast(LazyVolume, channel.array) for channel in channels]

    def read(z: int) -> np.ndarray:
        return np.concatenate([part[..., z, :, :] for part in parts])

    shape = (sum(len(part) for part in parts), *channels[0].shape)
    dtype = np.result_type(*(part.dtype for part in parts))
    planes = LazyVolume(shape, dtype, read if all(part.read for part in parts) else None)
    return replace(channels[0], array=cast(np.ndarray, planes))


def can_stay(found: Volume, slice_axis: int) -> bool:
    """Whether what was looked into can be read plane by plane, and is wanted so."""
    return cast(LazyVolume, found.array).read is not None and (slice_axis == 0 or found.is_flat)


def bytes_to_read(found: Volume) -> int:
    """What it takes to read an image whole that was looked into: its pixels, and as much to put channels together."""
    return 2 * len(found.array) * pixels_of(found) * found.array.dtype.itemsize


def pixels_of(found: Volume) -> int:
    """Number of pixels of one channel."""
    return int(np.prod(found.shape, dtype=np.int64))


def _probe_file(path: Path) -> Volume | None:
    return read_patiently(path, lambda: _probe_once(path))


def _probe_once(path: Path) -> Volume | None:
    ending = ending_of(path)
    if not path.is_file():
        return None
    shape: tuple[int, ...]
    geometry: Geometry | None
    read: Callable[[int], np.ndarray] | None
    try:
        if ending in NIFTI_ENDINGS:
            file = open_nifti(path)
            shape, dtype, geometry = file.shape, file.dtype, file.geometry
            read = file.read_plane if file.can_give_planes else None
        else:
            with without_standard_error():
                shape, dtype, geometry, read = probe_itk(path)
            geometry = geometry if ending in VOLUME_ENDINGS else None  # ITK knows the size of pictures too
    except Exception as error:  # the readers raise whatever their C code meets; reading it whole tells what is wrong
        if is_passing(error):
            raise
        return None

    def read_finite(z: int) -> np.ndarray:
        assert read is not None
        try:
            plane = read(z)
        except Exception as error:
            raise unreadable(path, reason_of(error, -1)) from None
        if not np.isfinite(plane).all():
            raise DataError(f"{path} holds NaN or infinity in plane {z}; repair or exclude it")
        return plane.astype(dtype, copy=False)

    def read_patient(z: int) -> np.ndarray:
        return read_patiently(path, lambda: read_finite(z))

    planes = LazyVolume(shape, dtype, read_patient if read else None)
    return Volume(cast(np.ndarray, planes), geometry, path)
