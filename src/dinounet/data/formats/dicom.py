"""A folder of DICOM files is one image: a series, its slices sorted by where they lie.

Read by SimpleITK (GDCM) slice by slice, so that each one's own rescale slope and intercept hold; what doesn't make one
regular volume is refused.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinounet.errors import DataError, noted
from dinounet.files import join_some

MAGIC = b"DICM"
"""At byte 128 of every DICOM file."""

DICOM_SUFFIXES = ("", ".dcm", ".ima")
"""How the names of such files mostly end."""

SEGMENTATION = b"1.2.840.10008.5.1.4.1.1.66.4\0"
"""The class of DICOM objects that are masks, as it stands at the beginning of such a file."""

DIRECTORY = "DICOMDIR"
"""A DICOM file that lists others and holds no image."""

SERIES, MODALITY = "0020|000e", "0008|0060"

UNEVEN = 0.02
"""Share of the distance of slices by which they may be displaced."""


class _Slice(NamedTuple):
    path: Path
    image: Any
    depth: float
    """Along the normal of the slices, mm."""


class Series(NamedTuple):
    """What a folder of DICOM files holds."""

    array: np.ndarray
    """(C, Z, Y, X), in the units that the files' rescaling gives, such as Hounsfield's."""

    spacing: tuple[float, ...]
    """x, y, z in mm."""

    origin: tuple[float, ...]
    """Of the first slice."""

    direction: tuple[float, ...]
    """As SimpleITK tells it."""

    modality: str
    """Such as CT or MR."""


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM images that lie in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if _is_slice(path))


def is_series(folder: Path) -> bool:
    """Whether DICOM images lie in a folder."""
    return any(_is_slice(path) for path in folder.iterdir())


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM."""
    return _beginning(path)[128:132] == MAGIC


def patient_id(folder: Path) -> str:
    """Whom a folder's first DICOM image is of, as its header says; "" if it doesn't, or can't be read.

    Reading the image tells what is wrong with it.
    """
    import pydicom

    path = next(path for path in sorted(folder.iterdir()) if _is_slice(path))
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip()
    except Exception:  # pydicom raises whatever a broken file leads it to
        return ""


def _is_slice(path: Path) -> bool:
    """Whether it is a DICOM file other than a list of files, or a mask."""
    if path.name == DIRECTORY or path.name.startswith(".") or not path.is_file():
        return False
    begin = _beginning(path)
    return begin[128:132] == MAGIC and SEGMENTATION not in begin


def _beginning(path: Path) -> bytes:
    if not os.access(path, os.R_OK):  # named as a slice it is taken for one, so that reading it tells what is wrong
        return b"\0" * 128 + MAGIC if path.suffix.lower() in DICOM_SUFFIXES else b""
    with path.open("rb") as file:
        return file.read(1024)


def read_series(folder: Path) -> Series:
    """Read the series that a folder holds.

    Raises:
        DataError: a file is damaged, or they make no single regular volume: several series, slices of other sizes or
            directions, missing or double ones.
    """
    read: list[tuple[Path, Any]] = []
    problems: list[str] = []
    for path in dicom_files(folder):
        with noted(problems):
            read.append((path, _read(path)))
    if problems:
        raise DataError(join_some(problems))
    found = Counter(image.GetMetaData(SERIES) if image.HasMetaDataKey(SERIES) else "" for _, image in read)
    if len(found) > 1:
        raise DataError(
            f"{folder} holds {len(found)} DICOM series (of {join_some([str(n) for n in found.values()])} files); give "
            "each a folder of its own"
        )
    first_path, first = read[0]
    spacing, direction = first.GetSpacing(), np.reshape(first.GetDirection(), (3, 3))
    for path, image in read:
        if image.GetSize() != first.GetSize() or image.GetNumberOfComponentsPerPixel() != (
            first.GetNumberOfComponentsPerPixel()
        ):
            raise DataError(f"{_times(path, image)} but {_times(first_path, first)}; keep slices of one size")
        if not np.allclose(image.GetDirection(), first.GetDirection(), atol=1e-3) or not np.allclose(
            image.GetSpacing()[:2], spacing[:2], rtol=1e-3
        ):
            raise DataError(f"{path} lies in another direction or spacing than {first_path}; keep parallel slices")
    slices = sorted((_Slice(*one, float(one[1].GetOrigin() @ direction[:, 2])) for one in read), key=lambda s: s.depth)
    between = spacing[2] if len(slices) == 1 else _distance(folder, slices, direction)
    arrays = [_pixels(one.image) for one in slices]
    array = np.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0]
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif array.dtype.itemsize > 2 and array.min() >= -(2**15) and array.max() < 2**15:
        array = array.astype(np.int16)  # GDCM has doubled it for the rescaling
    modality = first.GetMetaData(MODALITY).strip() if first.HasMetaDataKey(MODALITY) else ""
    origin = slices[0].image.GetOrigin()
    return Series(array, (*spacing[:2], between), origin, tuple(direction.ravel().tolist()), modality)


def _read(path: Path) -> Any:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError:
        if not os.access(path, os.R_OK):
            raise DataError(f"{path} may not be read by you; change its permissions") from None
        raise DataError(f"{path} can't be read as a DICOM image; is it whole, and does it hold pixels?") from None


def _pixels(image: Any) -> np.ndarray:
    """(C, Z, Y, X)."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    return np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]


def _distance(folder: Path, slices: list[_Slice], direction: np.ndarray) -> float:
    """Of neighbouring slices, which must all be as far apart and lie straight above each other."""
    if slices[0].image.GetSize()[2] > 1:
        raise DataError(f"{folder} holds {len(slices)} DICOM files of several slices each; give each a folder")
    steps = np.diff([one.depth for one in slices])
    usual = float(np.median(steps))
    tolerance = max(UNEVEN * usual, 1e-3)
    for above, below, step in zip(slices, slices[1:], steps, strict=False):
        pair = f"{above.path.name} and {below.path.name}"
        if step < tolerance:
            raise DataError(f"{folder} holds two slices at one place ({pair}); keep one series of one time in a folder")
        if abs(step - usual) > tolerance:
            raise DataError(
                f"{folder} lacks slices or has them at uneven distances: {pair} are {step:.3g} mm apart, others "
                f"{usual:.3g} mm; add what is missing, or resample the series"
            )
    shift = np.subtract(slices[-1].image.GetOrigin(), slices[0].image.GetOrigin()) @ direction[:, :2]
    if np.abs(shift).max() > tolerance * len(slices):
        raise DataError(
            f"{folder} holds slices that are shifted against each other, as a tilted gantry does; resample the series "
            "into a straight volume"
        )
    return float(steps.mean())


def _times(path: Path, image: Any) -> str:
    columns, rows, _ = image.GetSize()
    return f"{path} is {rows} x {columns} of {image.GetNumberOfComponentsPerPixel()} channels"
