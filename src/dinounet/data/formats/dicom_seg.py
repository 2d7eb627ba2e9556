"""DICOM Segmentation objects: masks that hospital systems show on top of the series that they were made for.

By highdicom, an extra. Each class but background is written as a binary segment under its name, so that numbers need
not be kept. Of other programs' objects segments are found by name too: BINARY, LABELMAP, whose segment 0 is background,
and FRACTIONAL where all fractions are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinounet.data.formats.dicom import find_slices
from dinounet.data.formats.dicom_frames import flat_geometry, in_groups
from dinounet.data.formats.dicom_headers import SEGMENTATIONS, class_name, damage_told, other_object, spacing_of_frame
from dinounet.data.geometry import Geometry
from dinounet.errors import DataError, naming_the_extra
from dinounet.io import require_readable

if TYPE_CHECKING:
    from pydicom import Dataset


EMPTY_IF_MISSING = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "AccessionNumber",
    "StudyID", "StudyDate", "StudyTime",
)  # fmt: skip
"""Attributes that a DICOM object must have and may leave empty, and that anonymised ones often lack."""

MAKER = "dinounet"


class Segmentation(NamedTuple):
    """What a DICOM Segmentation object holds."""

    labels: np.ndarray
    """(Z, Y, X) numbers of segments, 0 where there is none; of segments that overlap (S, Z, Y, X), 1 where each is, in
    the order of their names."""

    names: dict[int, str]
    """The segments' names by their numbers; several may have one name."""

    geometry: Geometry | None
    """Place in space; None where it tells no size of pixels or, of several slices, no place."""


def require_highdicom() -> Any:
    """highdicom, which reads and writes DICOM Segmentation objects.

    Raises:
        MissingPackage: it isn't installed.
    """
    with naming_the_extra("a DICOM segmentation", "; or choose another format for masks, such as --format .nii.gz"):
        import highdicom
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

    slices, _ = find_slices(series)
    sources = [pydicom.dcmread(path, stop_before_pixels=True) for path in dict.fromkeys(one.path for one in slices)]
    if len(sources) == 1:
        labels = labels[np.argsort([one.frame or 0 for one in slices])]  # frames stay in the order of their file
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


def read_names(path: Path) -> tuple[list[str], bool]:
    """The names of a segmentation's segments, and whether it says that they overlap, so that they are read as layers.

    No pixel is read.

    Raises:
        DataError: it is no DICOM segmentation.
        MissingPackage: highdicom isn't installed.
    """
    require_highdicom()
    import pydicom

    with _reading(path):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        return list(_names(path, header).values()), _overlap(header)


def holds_fractions(path: Path) -> list[str]:
    """The names of a segmentation's segments if it holds fractions of them, such as probabilities; else none.

    Raises:
        DataError: it is no DICOM segmentation, or damaged.
    """
    import pydicom

    with _reading(path):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if header.get("SegmentationType") != "FRACTIONAL":
            return []
        values = np.unique(pydicom.dcmread(path).pixel_array)
        whole = {0, int(header.MaximumFractionalValue)}
        return [] if {*values.tolist()} <= whole else [*dict.fromkeys(_names(path, header).values())]


def read_segmentation(path: Path) -> Segmentation:
    """Read a DICOM Segmentation object.

    Raises:
        DataError: it is none, damaged, its segments hold fractions, overlap without its saying so, or form no regular
            volume.
        MissingPackage: highdicom isn't installed.
    """
    highdicom = require_highdicom()
    import pydicom

    with _reading(path):
        content: Any = pydicom.dcmread(path)
        names = _names(path, content)
        geometry: Geometry | None
        if _tells_places(content):
            content = highdicom.seg.Segmentation.from_dataset(content, copy=False)
            if _overlap(content):
                volume = content.get_volume(segment_numbers=list(names), allow_missing_positions=True)
                layers, geometry = _upright(np.asarray(volume.array), np.asarray(volume.affine))
                return Segmentation(np.moveaxis(layers > 0, -1, 0).astype(np.uint8), names, geometry)
            volume = content.get_volume(combine_segments=True, allow_missing_positions=True)
            values, geometry = _upright(np.asarray(volume.array), np.asarray(volume.affine))
        else:
            values, geometry = _without_place(content), _flat_geometry(content)
    unknown = {*np.unique(values).tolist()} - {0, *names}
    padding = content.get("PixelPaddingValue")
    if unknown - {padding}:
        raise DataError(f"{path} holds the number {min(unknown)}, which none of its segments has; export it again")
    if unknown:
        values = np.where(values == padding, 0, values)
    return Segmentation(values, names, geometry)


def write_whole(path: Path, copy: Path) -> np.ndarray:
    """Write a copy of a segmentation in which each pixel is in the segment that holds at least half of it, or in none.

    Of several segments that do, the one with the most. Other segmentations than those of fractions stay as they are.

    Returns:
        (frames, Y, X) how far each pixel's fraction was from 0 and 1.

    Raises:
        DataError: it is no DICOM segmentation, or damaged.
    """
    import pydicom
    from pydicom.pixels import pack_bits
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    with _reading(path):
        content = pydicom.dcmread(path)
        frames = content.pixel_array.reshape(-1, content.Rows, content.Columns)
        if content.SegmentationType != "FRACTIONAL":
            content.save_as(copy)
            return np.zeros(frames.shape, np.float32)
        fractions = frames.astype(np.float32) / float(content.MaximumFractionalValue)
        together: dict[tuple[float, ...], list[int]] = {}
        for index, place in enumerate(_frame_places(content)):
            together.setdefault(place, []).append(index)
    whole = fractions >= 0.5
    for indices in together.values():
        most = fractions[indices].argmax(0)
        for order, index in enumerate(indices):
            whole[index] &= most == order
    content.PixelData = pack_bits(whole.astype(np.uint8))
    content.SegmentationType = "BINARY"
    content.BitsAllocated = content.BitsStored = 1
    content.HighBit = 0
    del content.MaximumFractionalValue
    content.pop("SegmentationFractionalType", None)
    content.SOPInstanceUID = content.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content["PixelData"].is_undefined_length = False
    content.save_as(copy)
    return np.minimum(fractions, 1 - fractions)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within the block a segmentation is read; whatever goes wrong is told by its cause."""
    require_readable(path)
    kind = other_object(path)
    if kind is not None and kind not in map(class_name, SEGMENTATIONS):
        raise DataError(
            f"{path} is a DICOM object of the kind {kind} and no DICOM segmentation; convert it to one, or give the "
            "mask in another format"
        )
    with damage_told(path, "a DICOM segmentation"):
        try:
            yield
        except (RuntimeError, ValueError) as error:  # highdicom's
            if "overlap" not in str(error):
                raise
            raise DataError(
                f"{path} has segments that overlap; give each pixel to one, or write overlapping classes as nnU-Net's "
                "regions (dataset.json)"
            ) from None


def _overlap(content: Dataset) -> bool:
    return content.get("SegmentsOverlap") == "YES" and _tells_places(content)


def _names(path: Path, content: Dataset) -> dict[int, str]:
    """Names of a segmentation's segments by number; 0 is the background, whatever it is called.

    Raises:
        DataError: it has none, and is no segmentation.
    """
    if "SegmentSequence" not in content:
        raise DataError(f"{path} is no DICOM segmentation; give masks as such, or in another format")
    segments = content.SegmentSequence
    return {int(one.SegmentNumber): str(one.SegmentLabel) for one in segments if int(one.SegmentNumber)}


def _upright(labels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, Geometry]:
    """Labels (Z, Y, X, ...) with an affine of z, y, x, as SimpleITK would have them: slices along their normal."""
    along = affine[:3, 2::-1]  # x, y, z
    if np.linalg.det(along) < 0:
        labels, affine = labels[::-1], affine.copy()
        affine[:3, 3] += affine[:3, 0] * (len(labels) - 1)
        affine[:3, 0] *= -1
        along = affine[:3, 2::-1]
    spacing = np.linalg.norm(along, axis=0)
    direction = tuple((along / spacing).ravel().tolist())
    return labels, Geometry(tuple(spacing.tolist()), tuple(affine[:3, 3].tolist()), direction)


def _tells_places(content: Dataset) -> bool:
    groups = content.get("PerFrameFunctionalGroupsSequence") or [{}]
    shared = content.get("SharedFunctionalGroupsSequence") or [{}]
    return "PlanePositionSequence" in groups[0] or "PlanePositionSequence" in shared[0]


def _without_place(content: Dataset) -> np.ndarray:
    """Labels of an X-ray, ultrasound or the like, of one image or its frames, as highdicom gives those with a place.

    highdicom 0.28 writes such objects, and can't read them where they tell their pixels' size.
    """
    frames = content.pixel_array.reshape(-1, content.Rows, content.Columns)
    groups = content.PerFrameFunctionalGroupsSequence
    places = [(_source_frame(one) or 1) - 1 for one in groups]
    shape = (max(places) + 1, content.Rows, content.Columns)
    if content.SegmentationType == "LABELMAP":
        labels = np.zeros(shape, frames.dtype)
        for place, frame in zip(places, frames, strict=True):
            labels[place] = frame
        return labels
    labels = np.zeros(shape, np.uint16)
    shared = content.get("SharedFunctionalGroupsSequence") or []
    for place, group, frame in zip(places, groups, frames, strict=True):
        if (labels[place][frame > 0] > 0).any():
            raise ValueError("segments overlap")
        number = in_groups([group, *shared], "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        labels[place][frame > 0] = number
    return labels


def _frame_places(content: Dataset) -> list[tuple[float, ...]]:
    """Place of each frame of a segmentation: its position, or the number of the frame that it is of."""
    shared = content.get("SharedFunctionalGroupsSequence") or []
    positions = [
        in_groups([one, *shared], "PlanePositionSequence", "ImagePositionPatient")
        for one in content.PerFrameFunctionalGroupsSequence
    ]
    return [
        (float(_source_frame(one) or 1),) if position is None else tuple(round(float(x), 3) for x in position)
        for position, one in zip(positions, content.PerFrameFunctionalGroupsSequence, strict=True)
    ]


def _source_frame(group: Dataset) -> int | None:
    """The number of the frame that a frame of a segmentation is of; None where it is of a whole image."""
    for derivation in group.get("DerivationImageSequence") or ():
        for source in derivation.get("SourceImageSequence") or ():
            number = source.get("ReferencedFrameNumber")
            return None if number is None else int(number)
    return None


def _flat_geometry(content: Dataset) -> Geometry | None:
    """Pixel size of a segmentation without place, if it is of a single image and tells it."""
    found = spacing_of_frame(content.get("SharedFunctionalGroupsSequence") or [])
    several = any(_source_frame(one) not in (None, 1) for one in content.PerFrameFunctionalGroupsSequence)
    if found is None or several:
        return None
    return flat_geometry(found)
