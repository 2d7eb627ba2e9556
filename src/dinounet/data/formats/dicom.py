"""A folder of DICOM files is one image: a series, its slices sorted by where they lie.

pydicom reads the attributes, so that nothing is known that no file tells; SimpleITK (GDCM) decodes the pixels, of all
compressions that it knows. Each file's and each frame's own rescale slope and intercept hold. What doesn't make one
regular volume is refused.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dinounet.console import quieten_itk
from dinounet.data.formats.dicom_frames import DESCRIBING, Slice, geometry_of_slices, slices_of, sort_slices
from dinounet.data.formats.dicom_headers import damage_told, dicom_files, regions_differ
from dinounet.data.formats.itk import channels_first
from dinounet.data.geometry import Geometry
from dinounet.errors import DataError, collect_errors
from dinounet.io import require_readable, summarize

if TYPE_CHECKING:
    from pydicom import Dataset


OF_PIXELS = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)  # fmt: skip
"""Attributes that decoding depends on."""

CONTAINER = "1.2.840.10008.5.1.4.1.1.7.3"
"""Multi-frame Grayscale Word Secondary Capture: a class whose stored values GDCM leaves as they are."""

DECODED = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)),
)  # fmt: skip
"""Transfer syntaxes that GDCM decodes: plain ones, deflated, RLE, JPEG, JPEG-LS and JPEG 2000."""


Rescales = Sequence[tuple[float, float] | None]
"""Slope and intercept of each frame; None: stored values are meant."""


class Series(NamedTuple):
    """What a folder of DICOM files holds."""

    array: np.ndarray
    """(C, Z, Y, X), in the units that the files' rescaling gives, such as Hounsfield's."""

    geometry: Geometry | None
    """Place in space; None where its pixels have no known size, or its frames are no slices of one volume."""

    modality: str
    """Modality, such as CT or MR."""


def read_series(folder: Path) -> Series:
    """Read the series that a folder holds.

    Raises:
        DataError: a file is damaged, or they make no single regular volume: several series, slices of other sizes or
            directions, missing or double ones.
    """
    slices, modality = find_slices(folder)
    files = list(dict.fromkeys(one.path for one in slices))
    held: dict[Path, np.ndarray] = {}
    problems: list[str] = []
    for path in sorted(files):
        with collect_errors(problems):
            held[path] = _read_pixels(path, sorted((one for one in slices if one.path == path), key=_frame))
    if problems:
        raise DataError(summarize(problems))
    parts = [held[one.path][:, _frame(one)][:, None] for one in slices]
    if len(files) == 1 and [_frame(one) for one in slices] == list(range(len(slices))):
        parts = [held[files[0]]]  # nothing to sort, nothing to copy
    array = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif array.dtype.itemsize > 2 and array.min() >= -(2**15) and array.max() < 2**15:
        array = array.astype(np.int16)  # it was widened for the rescaling
    return Series(array, geometry_of_slices(folder, slices), modality)


def find_slices(folder: Path) -> tuple[list[Slice], str]:
    """The slices of the series that a folder holds, sorted, without their pixels, and how they were taken.

    Raises:
        DataError: as `read_series`, but for damaged pixels.
    """
    slices: list[Slice] = []
    series: Counter[str] = Counter()
    modality = ""
    problems: list[str] = []
    for path in dicom_files(folder):
        with collect_errors(problems), damage_told(path):
            header = _read_header(path)
            slices += slices_of(path, header)
            series[str(header.get("SeriesInstanceUID", ""))] += 1
            modality = modality or str(header.get("Modality", "")).strip()
    if problems:
        raise DataError(summarize(problems))
    if len(series) > 1:
        raise DataError(
            f"{folder} holds {len(series)} DICOM series (of {summarize([str(n) for n in series.values()])} files); "
            "give each a folder of its own"
        )
    return sort_slices(folder, slices), modality


def geometry_of_series(folder: Path) -> Geometry | None:
    """Place of the series in a folder, without reading its pixels; None where it tells no size of pixels.

    Raises:
        DataError: as `find_slices`.
    """
    return geometry_of_slices(folder, find_slices(folder)[0])


def is_film(folder: Path) -> bool:
    """Whether the series in a folder is one object of frames that tell no place, such as an ultrasound cine."""
    files = dicom_files(folder)
    if len(files) != 1:
        return False
    try:
        with damage_told(files[0]):
            slices = slices_of(files[0], _read_header(files[0]))
    except DataError:  # which reading the image tells
        return False
    return len(slices) > 1 and slices[0].place is None


def is_at_the_detector(folder: Path) -> bool:
    """Whether the lengths of the X-ray in a folder are in mm at the detector, without reading its pixels."""
    if len(dicom_files(folder)) != 1:
        return False
    try:
        geometry = geometry_of_series(folder)
    except DataError:  # which reading the image tells
        return False
    return geometry is not None and geometry.unit == "mm at the detector"


def differing_regions(folder: Path) -> bool:
    """Whether an ultrasound image has no spacing since its regions of tissue differ in theirs."""
    files = dicom_files(folder)
    return len(files) == 1 and regions_differ(_read_header(files[0]))


def _frame(one: Slice) -> int:
    return one.frame or 0


def _read_header(path: Path) -> Dataset:
    import pydicom

    require_readable(path)
    header = pydicom.dcmread(path, defer_size=1 << 16, specific_tags=[*DESCRIBING, *OF_PIXELS])
    lacking = _bytes_lacking(path, header)
    if not header.get("Rows") or not header.get("Columns") or "PixelData" not in header:
        raise _unreadable(path)
    if lacking > 0:
        raise DataError(f"{path} lacks {lacking} bytes of its pixels; get the file again")
    return header


def _bytes_lacking(path: Path, header: Dataset) -> int:
    """Number of bytes that its pixels have too few, for which GDCM would give whatever lies in memory."""
    from pydicom.pixels.utils import get_expected_length
    from pydicom.uid import ImplicitVRLittleEndian

    held = header.get_item("PixelData", keep_deferred=True)
    syntax = header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    if held is None or syntax.is_encapsulated or not header.get("Rows") or not header.get("Columns"):
        return 0
    if held.value is not None:
        return get_expected_length(header) - len(held.value)
    cut = 0 if syntax.is_deflated else max(0, held.value_tell + held.length - path.stat().st_size)
    return get_expected_length(header) - held.length + cut


def _read_pixels(path: Path, slices: Sequence[Slice]) -> np.ndarray:
    """Pixels of all frames of a file, in its order: (C, frames, Y, X), rescaled."""
    rescales = [one.rescale for one in slices]
    array = _rescaled(path, *_decode_stored(path, rescales)) if any(rescales) else _decode(path)
    if array.shape[1] != len(slices):
        raise DataError(f"{path} holds {array.shape[1]} frames and describes {len(slices)}; export it again")
    return array


def _decode(path: Path) -> np.ndarray:
    """(C, Z, Y, X) of a file, as GDCM decodes and, where all frames share it, rescales it.

    Raises:
        DataError: it doesn't.
    """
    try:
        return _read_by_gdcm(path)
    except RuntimeError:  # it knows no class of the last years either, whose pixels are as good
        return _rescaled(path, *_decode_stored(path, None))


def _read_by_gdcm(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    quieten_itk(sitk)
    return channels_first(sitk.ReadImage(str(path)))


def _decode_stored(path: Path, rescales: Rescales | None) -> tuple[np.ndarray, Rescales]:
    """Stored values (C, frames, Y, X) of a file, and how to rescale its frames: as given, or else as the file has it.

    GDCM would rescale all frames by the first one's slope. It is given a copy of another class that holds the pixels,
    and nothing that tells how to rescale them.
    """
    import pydicom

    try:
        content = pydicom.dcmread(path, specific_tags=[*OF_PIXELS, "RescaleSlope", "RescaleIntercept"])
        if rescales is None:
            rescales = [_own_rescale(content)] * int(content.get("NumberOfFrames") or 1)
        for name in ("RescaleSlope", "RescaleIntercept"):
            content.pop(name, None)
        if _bytes_lacking(path, content) > 0:
            raise _unreadable(path)
        content.SOPClassUID = content.file_meta.MediaStorageSOPClassUID = CONTAINER
        content.SOPInstanceUID = content.file_meta.MediaStorageSOPInstanceUID
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "stored.dcm"
            content.save_as(copy)
            return _read_by_gdcm(copy), rescales
    except Exception:  # whatever pydicom meets in a damaged file
        raise _unreadable(path) from None


def _own_rescale(content: Dataset) -> tuple[float, float] | None:
    slope, intercept = content.get("RescaleSlope"), content.get("RescaleIntercept")
    return None if slope is None or intercept is None else (float(slope), float(intercept))


def _rescaled(path: Path, stored: np.ndarray, rescales: Rescales) -> np.ndarray:
    """Stored values (C, frames, Y, X) in the units of their frames, as whole numbers where these are."""
    if not any(rescales):
        return stored
    factors = [(1.0, 0.0) if one is None else one for one in rescales]
    if not np.isfinite(factors).all():
        raise DataError(f"{path} is rescaled by NaN or infinity; export it again")
    whole = all(number == int(number) and abs(number) < 2**15 for one in factors for number in one)
    values = np.empty(stored.shape, np.int32 if whole and stored.dtype.itemsize <= 2 else np.float32)
    for index, (slope, intercept) in enumerate(factors[: stored.shape[1]]):
        values[:, index] = stored[:, index].astype(np.float64) * slope + intercept
    return values


def _unreadable(path: Path) -> DataError:
    """The error for an image whose pixels can't be had, by its cause."""
    import pydicom

    try:
        content = pydicom.dcmread(path, defer_size=1 << 16)
        syntax = content.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
        if "FloatPixelData" in content or "DoubleFloatPixelData" in content:
            return DataError(f"{path} holds its pixels as fractions (a parametric map); convert it, such as to .nii.gz")
        if "PixelData" not in content and content.get("Rows"):
            return DataError(f"{path} is a DICOM image without pixels; export it with them, or remove it")
        if syntax not in DECODED:
            return DataError(f"{path} is compressed by {syntax.name}, which isn't read here; export it uncompressed")
    except Exception:  # whatever pydicom meets in a damaged file
        pass
    return DataError(f"{path} can't be read as a DICOM image; is it whole?")
