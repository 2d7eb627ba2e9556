"""Images and masks that stay in their files and are read plane by plane, because whole they would not fit into memory.

NIfTI through nibabel (also compressed, where reading planes in order costs one pass over the file), MHA that is not
compressed through SimpleITK, and of flat images some rows at a time (`rows.py`). All else is read whole, in the type it
is stored in. Only planes along z can be read so: a volume that is cut into slices along another axis is read whole too,
because each of its slices would need every plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from dinounet.data.formats.itk import look_into_itk
from dinounet.data.formats.nifti import NIFTI_ENDINGS, open_nifti
from dinounet.data.geometry import Geometry, Volume, require_same_grid
from dinounet.data.images import FLAT_ENDINGS, VOLUME_ENDINGS, ending_of, read_image, unreadable
from dinounet.data.labels import Labels
from dinounet.data.masks import read_truth, whole_numbers
from dinounet.data.pairs import Case
from dinounet.data.rows import look_into_rows
from dinounet.errors import DataError, reason_of
from dinounet.files import is_passing, read_patiently
from dinounet.program import without_standard_error

MASK_BYTES = 16
"""What a pixel of a mask takes while it is read whole: an integer of 8 bytes, and another to compare it with."""


@dataclass(frozen=True)
class Planes:
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
        paths: one file a channel, or one with several channels.
        most: bytes of memory.
        slice_axis: along which it is going to be cut.

    Raises:
        DataError: as `read_image`; what is left in its files, as soon as the wrong plane is read.
    """
    if len(paths) == 1 and ending_of(paths[0]) in FLAT_ENDINGS and paths[0].is_file():
        rows = look_into_rows(paths[0])
        flat = None if rows is None else Volume(cast(np.ndarray, rows), None, paths[0])
        return read_image(paths) if flat is None or bytes_to_read(flat) <= most else flat
    found = look_into(paths)
    if found is None or bytes_to_read(found) <= most or not can_stay(found, slice_axis):
        return read_image(paths)
    return found


def open_truth(case: Case, known: Labels | None, most: int, slice_axis: int = 0) -> Volume:
    """Read a case's mask as `read_truth` does, or leave it in its file if reading it takes more bytes than `most`."""
    mask = case.mask
    if not isinstance(mask, Path) or (known is not None and known.colours is not None):
        return read_truth(case, known)
    found = look_into([mask])
    if (
        found is None
        or len(found.array) > 1
        or pixels_of(found) * MASK_BYTES <= most
        or not can_stay(found, slice_axis)
    ):
        return read_truth(case, known)
    stored = found.array
    labels = Planes(stored.shape[1:], np.dtype(np.int32), lambda z: whole_numbers(stored[..., z, :, :][0], mask))
    return replace(found, array=cast(np.ndarray, labels))


def look_into(paths: Sequence[Path]) -> Volume | None:
    """An image as its headers tell, with its pixels still in the files; None if they don't tell, or don't agree."""
    found = [_look_into(path) for path in paths]
    channels = [channel for channel in found if channel is not None]
    if len(channels) < len(paths):
        return None
    try:
        for channel in channels[1:]:
            require_same_grid(channel, channels[0])
    except DataError:
        return None
    parts = [cast(Planes, channel.array) for channel in channels]

    def read(z: int) -> np.ndarray:
        return np.concatenate([part[..., z, :, :] for part in parts])

    shape = (sum(len(part) for part in parts), *channels[0].shape)
    dtype = np.result_type(*(part.dtype for part in parts))
    planes = Planes(shape, dtype, read if all(part.read for part in parts) else None)
    return replace(channels[0], array=cast(np.ndarray, planes))


def can_stay(found: Volume, slice_axis: int) -> bool:
    """Whether what was looked into can be read plane by plane, and is wanted so."""
    return cast(Planes, found.array).read is not None and (slice_axis == 0 or found.is_flat)


def bytes_to_read(found: Volume) -> int:
    """What it takes to read an image whole that was looked into: its pixels, and as much to put channels together."""
    return 2 * len(found.array) * pixels_of(found) * found.array.dtype.itemsize


def pixels_of(found: Volume) -> int:
    """Number of pixels of one channel."""
    return int(np.prod(found.shape, dtype=np.int64))


def _look_into(path: Path) -> Volume | None:
    return read_patiently(path, lambda: _look_into_once(path))


def _look_into_once(path: Path) -> Volume | None:
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
                shape, dtype, geometry, read = look_into_itk(path)
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

    planes = Planes(shape, dtype, read_patient if read else None)
    return Volume(cast(np.ndarray, planes), geometry, path)
