"""The distance of pixels in a DICOM image, from the attributes that its kind defines for it (PS3.3, 10.7.1.3).

Readers that fall back to 1 mm, as GDCM does, invent it where nothing tells: of most ultrasound, of photographs and of
screens that were captured. Here it is unknown then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dinounet.data.geometry import LengthUnit

if TYPE_CHECKING:
    from pydicom import Dataset

PROJECTIONS = ("CR", "DX", "MG", "IO", "PX", "RF", "RG", "XA")
"""Modalities whose images are shadows: what lies nearer to the source appears larger at the detector."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""And, with numbers behind, its classes of several frames: also films that were scanned."""

TISSUE, CENTIMETRES = 1, 3
"""Of an ultrasound region: that it shows a plane of the body, and the unit of its axes."""

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
