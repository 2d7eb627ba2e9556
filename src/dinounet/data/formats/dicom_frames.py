"""The slices that DICOM files hold, a file each or as frames of one, and the regular volume that they must make.

Frames are described by functional groups (enhanced CT, MR, PET, legacy converted, tomosynthesis, ultrasound volumes),
or by vectors (nuclear medicine, dose). What is asked of slices is the same wherever they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinounet.data.formats.dicom_headers import PROJECTIONS, PixelSpacing, spacing_of_frame, spacing_of_image
from dinounet.data.geometry import Geometry
from dinounet.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset


DESCRIBING = [
    "SOPClassUID", "SeriesInstanceUID", "Modality", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "PhotometricInterpretation", "PixelSpacing", "PixelSpacingCalibrationType", "ImagerPixelSpacing",
    "ImagePlanePixelSpacing", "NominalScannedPixelSpacing", "SequenceOfUltrasoundRegions", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "DetectorInformationSequence", "SliceVector", "GridFrameOffsetVector",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "DoseGridScaling",
]  # fmt: skip
"""Attributes that are read of a file to place its slices."""

UNEVEN = 0.02
"""Share of the distance of slices by which they may be displaced."""


class Place(NamedTuple):
    """Place of a slice in the patient."""

    position: np.ndarray
    """(3,) of the centre of its first pixel, mm."""

    along: np.ndarray
    """(2, 3): where its rows run, from column to column, and its columns."""

    @property
    def direction(self) -> np.ndarray:
        """(3, 3): columns are where x, y and z run, as SimpleITK has it."""
        return np.stack([*self.along, np.cross(*self.along)], axis=1)


class Slice(NamedTuple):
    """One slice, as the attributes of its file describe it."""

    path: Path
    """The file."""

    frame: int | None
    """Number of the frame in the file, from 0; None where it is all that the file holds."""

    size: tuple[int, int, int]
    """Rows, columns and channels."""

    spacing: PixelSpacing | None
    place: Place | None

    thickness: float | None
    """Thickness of the slab that it shows, mm."""

    rescale: tuple[float, float] | None
    """Slope and intercept of its frame; None where the file has none but for all together, which GDCM applies."""

    @property
    def name(self) -> str:
        """The slice's name in messages."""
        return self.path.name if self.frame is None else f"frame {self.frame + 1} of {self.path.name}"

    @property
    def times(self) -> str:
        """The slice's size in messages."""
        rows, columns, channels = self.size
        return f"{self.path} is {rows} x {columns} of {channels} channels"


def slices_of(path: Path, header: Dataset) -> list[Slice]:
    """What a file holds, in the order of the file.

    Raises:
        DataError: its frames are no slices.
    """
    colours = header.get("PhotometricInterpretation", "") == "PALETTE COLOR"
    size = (int(header.Rows), int(header.Columns), 3 if colours else int(header.get("SamplesPerPixel", 1)))
    count = int(header.get("NumberOfFrames") or 1)
    whole = int(header.get("TotalPixelMatrixColumns") or 0), int(header.get("TotalPixelMatrixRows") or 0)
    if count > 1 and whole > (size[1], size[0]):
        raise DataError(
            f"{path} is a slide of {whole[0]} x {whole[1]} pixels in {count} tiles; convert it to a TIFF, or cut out "
            "what is wanted"
        )
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    if not own:
        places = _places(header, count)
        spacing, thickness = spacing_of_image(header), _thickness(header)
        dose = (float(header.DoseGridScaling), 0.0) if header.get("DoseGridScaling") else None
        return [
            Slice(path, index if count > 1 else None, size, spacing, place, thickness, dose)
            for index, place in enumerate(places)
        ]
    if len(own) != count:
        raise DataError(f"{path} has {count} frames but describes {len(own)}; export it again")
    shared = list(header.get("SharedFunctionalGroupsSequence") or ())
    return [
        Slice(
            path, index if count > 1 else None, size, spacing_of_frame([one, *shared]) or spacing_of_image(header),
            _place_of_frame([one, *shared]), _thickness_of_frame([one, *shared]), _rescale([one, *shared]),
        )
        for index, one in enumerate(own)
    ]  # fmt: skip


def sort_slices(folder: Path, slices: Sequence[Slice]) -> list[Slice]:
    """Slices by where they lie, along their common normal, checked to make one regular volume.

    Raises:
        DataError: they don't: other sizes, directions or spacings, places that are missing or taken twice, uneven
            distances, slices that are shifted against each other.
    """
    first = slices[0]
    for one in slices:
        if one.size != first.size:
            raise DataError(f"{one.times} but {first.times}; keep slices of one size")
        if (one.place is None) != (first.place is None):
            raise DataError(
                f"{folder} holds slices that tell their place and others that don't ({first.name} and {one.name}); "
                "keep those of one kind"
            )
        if not _parallel(one, first):
            raise DataError(
                f"{one.path.parent / one.name} lies in another direction or spacing than {first.name}; keep parallel "
                "slices"
            )
    if first.place is None or len(slices) == 1:
        if len({one.path for one in slices}) > 1:
            raise DataError(
                f"{folder} holds {len(slices)} images that don't tell their place, so that they make no volume; give "
                "each a folder of its own"
            )
        return [*slices]
    normal = first.place.direction[:, 2]
    ordered = sorted(slices, key=lambda one: float(_position(one) @ normal))
    _distance(folder, ordered)
    return ordered


def geometry_of_slices(folder: Path, slices: Sequence[Slice]) -> Geometry | None:
    """Place of sorted slices; None where their pixels have no known size, and of several that tell no place.

    A single slice is a slab where it tells its place and thickness, and flat else. An X-ray lies anywhere.
    """
    first = slices[0]
    if first.spacing is None:
        return None
    in_plane = (first.spacing.columns, first.spacing.rows)
    if first.place is None:
        return flat_geometry(first.spacing) if len(slices) == 1 else None
    between = first.thickness if len(slices) == 1 else _distance(folder, slices)
    spacing = in_plane if between is None else (*in_plane, between)
    direction = tuple(first.place.direction.ravel().tolist())
    return Geometry(spacing, tuple(first.place.position.tolist()), direction, first.spacing.unit)


def flat_geometry(spacing: PixelSpacing) -> Geometry:
    """Geometry of a single image that tells its pixels' size and no place."""
    return Geometry((spacing.columns, spacing.rows), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), spacing.unit, is_placed=False)


def _parallel(one: Slice, other: Slice) -> bool:
    if (one.spacing is None) != (other.spacing is None):
        return False
    if one.spacing and other.spacing:
        same = np.allclose(one.spacing[:2], other.spacing[:2], rtol=1e-3) and one.spacing.unit == other.spacing.unit
        if not same:
            return False
    return not (one.place and other.place) or np.allclose(one.place.along, other.place.along, atol=1e-3)


def _position(one: Slice) -> np.ndarray:
    assert one.place is not None
    return one.place.position


def _distance(folder: Path, slices: Sequence[Slice]) -> float:
    """Distance of neighbouring slices, which must all be as far apart and lie straight above each other."""
    first = slices[0].place
    assert first is not None
    positions = np.stack([_position(one) for one in slices])
    steps = np.diff(positions @ first.direction[:, 2])
    usual = float(np.median(steps))
    tolerance = max(UNEVEN * usual, 1e-3)
    for above, below, step in zip(slices, slices[1:], steps, strict=False):
        pair = f"{above.name} and {below.name}"
        if step < tolerance:
            raise DataError(f"{folder} holds two slices at one place ({pair}); keep one series of one time in a folder")
        if abs(step - usual) > tolerance:
            raise DataError(
                f"{folder} lacks slices or has them at uneven distances: {pair} are {step:.3g} mm apart, others "
                f"{usual:.3g} mm; add what is missing, or resample the series"
            )
    shift = (positions - positions[0]) @ first.along.T
    if np.abs(shift).max() > tolerance * len(slices):
        raise DataError(
            f"{folder} holds slices that are shifted against each other, as a tilted gantry does; resample the series "
            "into a straight volume"
        )
    return float(steps.mean())


def _places(header: Dataset, count: int) -> list[Place | None]:
    """The place of each frame of a file that describes all frames together."""
    if header.get("Modality") in PROJECTIONS:
        return [None] * count  # a position in the patient, if it has one, isn't that of its pixels
    inside = header.get("DetectorInformationSequence")
    first = _place(header) or (inside and _place(inside[0])) or None
    if count == 1 or first is None:
        return [first] if count == 1 else [None] * count
    offsets = None
    if header.get("GridFrameOffsetVector"):
        offsets = np.array(header.GridFrameOffsetVector, np.float64)
        offsets -= offsets[0]
    elif header.get("SliceVector") and header.get("SpacingBetweenSlices"):
        offsets = (np.atleast_1d(header.SliceVector).astype(int) - 1) * float(header.SpacingBetweenSlices)
    if offsets is None or len(offsets) != count:
        return [None] * count
    return [Place(first.position + offset * first.direction[:, 2], first.along) for offset in offsets]


def _place_of_frame(groups: Sequence[Dataset]) -> Place | None:
    for kind in ("Patient", "Volume"):
        suffix = "" if kind == "Patient" else "Volume"
        position = in_groups(groups, f"PlanePosition{suffix}Sequence", f"ImagePosition{kind}")
        along = in_groups(groups, f"PlaneOrientation{suffix}Sequence", f"ImageOrientation{kind}")
        if position is not None and along is not None:
            return _made_place(position, along)
    return None


def _place(header: Dataset) -> Place | None:
    return _made_place(header.get("ImagePositionPatient"), header.get("ImageOrientationPatient"))


def _made_place(position: Sequence[float] | None, along: Sequence[float] | None) -> Place | None:
    if not position or not along or len(position) != 3 or len(along) != 6:
        return None
    rows, columns = np.array([float(number) for number in along]).reshape(2, 3)
    if not np.isfinite([*position, *along]).all() or not 0.9 < np.linalg.norm(rows) < 1.1:
        return None
    rows = rows / np.linalg.norm(rows)
    columns = columns - (columns @ rows) * rows  # what rounding has left
    if not 0.9 < np.linalg.norm(columns) < 1.1:
        return None
    return Place(np.array([float(number) for number in position]), np.stack([rows, columns / np.linalg.norm(columns)]))


def _thickness(header: Dataset) -> float | None:
    """Thickness of a slab: what the slice shows, or else its distance to the next."""
    found = (abs(float(header.get(name) or 0)) for name in ("SliceThickness", "SpacingBetweenSlices"))
    return next((one for one in found if 0 < one < np.inf), None)


def _thickness_of_frame(groups: Sequence[Dataset]) -> float | None:
    for group in groups:
        if group.get("PixelMeasuresSequence") and (found := _thickness(group.PixelMeasuresSequence[0])):
            return found
    return None


def _rescale(groups: Sequence[Dataset]) -> tuple[float, float] | None:
    """Slope and intercept of a frame; parametric maps have real-world values in the place of a rescaling."""
    for sequence, of in (
        ("PixelValueTransformationSequence", "Rescale"),
        ("RealWorldValueMappingSequence", "RealWorldValue"),
    ):
        slope, intercept = (in_groups(groups, sequence, f"{of}{what}") for what in ("Slope", "Intercept"))
        if slope is not None and intercept is not None:
            return float(slope), float(intercept)
    return None


def in_groups(groups: Sequence[Dataset], sequence: str, name: str) -> Any:
    """An attribute of a frame: from its own functional groups, or else from those that all frames share."""
    found = (group[sequence].value[0].get(name) for group in groups if group.get(sequence))
    return next((value for value in found if value is not None), None)
