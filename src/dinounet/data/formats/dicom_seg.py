"""DICOM Segmentation objects: masks that hospital systems show on top of the series that they were made for.

By highdicom, an extra. Each class but background is a binary segment under its name, so that numbers need not be kept;
other programs' segments are found by name too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinounet.data.formats.dicom import dicom_files
from dinounet.errors import ConfigError, DataError

EMPTY_IF_MISSING = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "AccessionNumber",
    "StudyID", "StudyDate", "StudyTime",
)  # fmt: skip
"""Attributes that a DICOM object must have and may leave empty, and that anonymised ones often lack."""

MAKER = "dinounet"


class Segmentation(NamedTuple):
    """What such an object holds."""

    labels: np.ndarray
    """(Z, Y, X) numbers of segments, 0 where there is none."""

    names: dict[str, int]
    """The segments' names and numbers."""

    spacing: tuple[float, ...]
    """x, y, z in mm."""

    origin: tuple[float, ...]
    """Of the first slice."""

    direction: tuple[float, ...]
    """As SimpleITK tells it."""


def require_highdicom() -> Any:
    """The package that reads and writes them.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        import highdicom
    except ImportError:
        raise ConfigError(
            "DICOM segmentations need highdicom: pip install 'dinounet[dicom]'; or choose another format for masks, "
            "such as --format .nii.gz"
        ) from None
    return highdicom


def write_segmentation(path: Path, labels: np.ndarray, series: Path, names: Mapping[str, int], version: str) -> None:
    """Write labels (Z, Y, X) as segmentation of the series in a folder, on whose grid they are, sorted as it is read.

    Args:
        path: the file.
        labels: numbers of classes; 0 is background.
        series: folder of the series.
        names: of the classes, background included.
        version: of the program that made the labels.

    Raises:
        DataError: the series lacks what such an object must tell.
    """
    highdicom = require_highdicom()
    import pydicom
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in dicom_files(series)]
    if len(sources) > 1:
        normal = np.cross(sources[0].ImageOrientationPatient[:3], sources[0].ImageOrientationPatient[3:])
        sources.sort(key=lambda source: float(np.dot(source.ImagePositionPatient, normal)))
    for source in sources:
        for name in EMPTY_IF_MISSING:
            setattr(source, name, getattr(source, name, ""))
    classes = {name: number for name, number in names.items() if number}
    segments = np.zeros(labels.shape, np.uint8)
    for segment, number in enumerate(classes.values(), start=1):
        segments[labels == number] = segment
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=MAKER, version=version, family=codes.DCM.ArtificialIntelligence
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=segment,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.Tissue,  # the names don't tell which code would be true
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for segment, name in enumerate(classes, start=1)
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as about the patient's name
            made = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=segments,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=descriptions,
                series_instance_uid=highdicom.UID(),
                series_number=1000,
                series_description=f"segmented by {MAKER}",
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=MAKER,
                manufacturer_model_name=MAKER,
                software_versions=version,
                device_serial_number="none",
                omit_empty_frames=False,  # so that the object alone tells the whole grid
            )
    except (AttributeError, ValueError, TypeError) as error:
        raise DataError(
            f"{series} lacks what a DICOM segmentation must tell ({error}); choose another format for masks, such "
            "as --format .nii.gz"
        ) from None
    made.save_as(path)


def segment_names(path: Path) -> list[str]:
    """The names of a segmentation's segments, without its pixels.

    Raises:
        DataError: it is no DICOM segmentation.
        ConfigError: highdicom isn't installed.
    """
    require_highdicom()
    import pydicom

    try:
        content = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SegmentSequence"])
        return [str(segment.SegmentLabel) for segment in content.SegmentSequence]
    except (OSError, AttributeError, pydicom.errors.InvalidDicomError):
        raise DataError(f"{path} is no DICOM segmentation; give masks as such, or in another format") from None


def read_segmentation(path: Path) -> Segmentation:
    """Read a DICOM Segmentation object.

    Raises:
        DataError: it is none, damaged, or its segments overlap or form no regular volume.
        ConfigError: highdicom isn't installed.
    """
    highdicom = require_highdicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = highdicom.seg.segread(path)
            volume = content.get_volume(combine_segments=True, allow_missing_positions=True)
    except Exception as error:  # whatever pydicom meets in a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} can't be read as a DICOM segmentation ({reason}); is it whole?") from None
    labels, affine = np.asarray(volume.array), np.asarray(volume.affine)
    along = affine[:3, 2::-1]  # x, y, z
    if np.linalg.det(along) < 0:  # SimpleITK's slices follow each other along the normal
        labels, affine = labels[::-1], affine.copy()
        affine[:3, 3] += affine[:3, 0] * (len(labels) - 1)
        affine[:3, 0] *= -1
        along = affine[:3, 2::-1]
    spacing = np.linalg.norm(along, axis=0)
    names = {str(segment.SegmentLabel): int(segment.SegmentNumber) for segment in content.SegmentSequence}
    direction = tuple((along / spacing).ravel().tolist())
    return Segmentation(labels, names, tuple(spacing.tolist()), tuple(affine[:3, 3].tolist()), direction)
