"""Headers of DICOM files: which object a file is, and the distance of its pixels (PS3.3, 10.7.1.3)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinounet.errors import DataError, UserError, reason_of
from dinounet.schema.plan import LengthUnit

if TYPE_CHECKING:
    from pydicom import Dataset


MAGIC = b"DICM"
"""What every DICOM file has at byte 128."""

DICOM_SUFFIXES = ("", ".dcm", ".ima")
"""Usual endings of DICOM files' names."""

CLASS = b"\x02\x00\x02\x00UI"
"""Media Storage SOP Class UID, before its length in two bytes, in the encoding that all files begin with."""

DIRECTORY = "DICOMDIR"
"""A DICOM file that lists others and holds no image."""

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage (BINARY, FRACTIONAL) and Label Map Segmentation Storage (LABELMAP)."""

OF_SEGMENTS = "1.2.840.10008.5.1.4.1.1.66"
"""Raw data and what describes space and parts of images, newer classes than pydicom's dictionary knows included."""

IMAGES = frozenset(
    {
        "CornealTopographyMapStorage",
        "EnhancedUSVolumeStorage",
        "OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage",
        "OphthalmicThicknessMapStorage",
        "ParametricMapStorage",
        "RTDoseStorage",
    }
)
"""Classes of images whose keyword doesn't say Image."""


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM images that lie in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if _is_image(path))


def is_series(folder: Path) -> bool:
    """Whether DICOM images lie in a folder."""
    return any(_is_image(path) for path in folder.iterdir())


def is_dicom(path: Path) -> bool:
    """Whether a file is in DICOM, as it says itself."""
    return _beginning(path)[128:132] == MAGIC


def patient_id(folder: Path) -> str:
    """Whom a folder's first DICOM image is of, as its header says; "" if it doesn't, or can't be read.

    Reading the image tells what is wrong with it.
    """
    import pydicom

    path = next(path for path in sorted(folder.iterdir()) if _is_image(path))
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip()
    except Exception:  # pydicom raises whatever a broken file leads it to
        return ""


def other_object(path: Path) -> str | None:
    """What a DICOM file holds that is no image, such as "RT Structure Set Storage"; None for images and other files."""
    begin = _beginning(path)
    if begin[128:132] != MAGIC:
        return None
    uid = _class_of(begin)
    return None if _is_image_class(uid) else class_name(uid)


@contextmanager
def damage_told(path: Path, what: str = "a DICOM image") -> Iterator[None]:
    """Within the block, whatever pydicom and who works with its numbers meet in a damaged file is a DataError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{path} can't be read as {what} ({reason_of(error)}); is it whole?") from None


def class_name(uid: str) -> str:
    """The name of a class of objects, as the standard has it."""
    from pydicom.uid import UID

    return "Label Map Segmentation Storage" if uid == SEGMENTATIONS[1] else UID(uid).name


def other_objects(folder: Path) -> list[str]:
    """The kinds of DICOM objects in a folder that are no images."""
    kinds = {other_object(path) for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    return sorted(kind for kind in kinds if kind)


def _is_image(path: Path) -> bool:
    if path.name == DIRECTORY or path.name.startswith(".") or not path.is_file():
        return False
    begin = _beginning(path)
    return begin[128:132] == MAGIC and _is_image_class(_class_of(begin))


def _is_image_class(uid: str) -> bool:
    """Whether objects of a class are images; of classes that nobody knows they may be, and reading them tells."""
    if uid == OF_SEGMENTS or uid.startswith(f"{OF_SEGMENTS}."):
        return False
    from pydicom.uid import UID

    keyword = UID(uid).keyword
    return not keyword or "Image" in keyword or keyword in IMAGES


def _class_of(begin: bytes) -> str:
    """The UID of a file's class; "" if its beginning doesn't tell."""
    place = begin.find(CLASS, 132)
    if place < 0:
        return ""
    start = place + len(CLASS) + 2
    length = int.from_bytes(begin[start - 2 : start], "little")
    return begin[start : start + length].decode("ascii", "replace").rstrip("\0 ")


def _beginning(path: Path) -> bytes:
    if not os.access(path, os.R_OK):  # named as a slice it is taken for one, so that reading it tells what is wrong
        return b"\0" * 128 + MAGIC if path.suffix.lower() in DICOM_SUFFIXES else b""
    with path.open("rb") as file:
        return file.read(1024)


PROJECTIONS = ("CR", "DX", "MG", "IO", "PX", "RF", "RG", "XA")
"""Modalities whose images are shadows: what lies nearer to the source appears larger at the detector."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""And, with numbers behind, its classes of several frames: also films that were scanned."""

TISSUE, CENTIMETRES = 1, 3
"""What an ultrasound region must tell: that it shows a plane of the body, and the unit of its axes."""

SAME = 1e-3
"""Share by which two spacings may differ and count as one."""


class PixelSpacing(NamedTuple):
    """Distances of neighbouring pixels."""

    rows: float
    """Distance between the centres of neighbouring rows."""

    columns: float
    """Distance between the centres of neighbouring columns."""

    unit: LengthUnit = "mm"


def spacing_of_image(header: Dataset) -> PixelSpacing | None:
    """Spacing of an image whose attributes are the same for all frames; None where they don't tell."""
    planes = _planes_of_tissue(header)
    if planes:
        return _common(planes)
    calibrated, detector = _pair(header, "PixelSpacing"), _at_the_detector(header)
    if calibrated and detector and not header.get("PixelSpacingCalibrationType") and _same(calibrated, detector):
        calibrated = None  # the standard's way to say that nobody has calibrated it
    if calibrated:
        return PixelSpacing(*calibrated)
    return PixelSpacing(*detector, "mm at the detector") if detector else None


def regions_differ(header: Dataset) -> bool:
    """Whether an ultrasound image has regions of tissue that have no common spacing."""
    planes = _planes_of_tissue(header)
    return bool(planes) and _common(planes) is None


def spacing_of_frame(groups: Sequence[Dataset]) -> PixelSpacing | None:
    """Spacing of one of several frames, from its functional groups: its own, then those that all frames share."""
    places: tuple[tuple[str, str, LengthUnit], ...] = (
        ("PixelMeasuresSequence", "PixelSpacing", "mm"),
        ("ProjectionPixelCalibrationSequence", "ObjectPixelSpacingInCenterOfBeam", "mm"),
        ("FramePixelDataPropertiesSequence", "ImagerPixelSpacing", "mm at the detector"),
    )
    for sequence, name, unit in places:
        for group in groups:
            if group.get(sequence) and (found := _pair(group[sequence].value[0], name)):
                return PixelSpacing(*found, unit)
    return None


def _at_the_detector(header: Dataset) -> tuple[float, float] | None:
    kind, modality = str(header.get("SOPClassUID", "")), header.get("Modality")
    if modality in PROJECTIONS and (found := _pair(header, "ImagerPixelSpacing")):
        return found
    if modality == "RTIMAGE":
        return _pair(header, "ImagePlanePixelSpacing")
    if kind == SECONDARY_CAPTURE or kind.startswith(f"{SECONDARY_CAPTURE}."):
        return _pair(header, "NominalScannedPixelSpacing")  # on the film, which was the detector
    return None


def _planes_of_tissue(header: Dataset) -> list[Dataset]:
    """The regions of an ultrasound image in millimetres, other than curves over time and spectra."""
    return [
        region
        for region in header.get("SequenceOfUltrasoundRegions") or ()
        if region.get("RegionSpatialFormat", TISSUE) == TISSUE
        and region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == CENTIMETRES
    ]


def _common(planes: Sequence[Dataset]) -> PixelSpacing | None:
    """The spacing that all of an image's regions have; None where they differ, since an image can have but one."""
    found = [
        tuple(abs(float(region.get(name) or 0)) * 10 for name in ("PhysicalDeltaY", "PhysicalDeltaX"))
        for region in planes
    ]
    (rows, columns), *others = found
    if min(rows, columns) <= 0 or not all(_same((rows, columns), (y, x)) for y, x in others):
        return None
    return PixelSpacing(rows, columns)


def _pair(dataset: Dataset, name: str) -> tuple[float, float] | None:
    """Rows' and columns' distance; None where the attribute is absent, empty, or no distance."""
    value = dataset.get(name)
    try:
        rows, columns = (float(number) for number in value or ())
    except (TypeError, ValueError):
        return None
    return (rows, columns) if min(rows, columns) > 0 and math.isfinite(rows + columns) else None


def _same(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=SAME) for a, b in zip(one, other, strict=True))
