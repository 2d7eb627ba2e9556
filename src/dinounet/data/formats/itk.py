"""NRRD and MHA by SimpleITK, whole or plane by plane, with 3D Slicer's segments (`.seg.nrrd`)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinounet.console import quieten_itk
from dinounet.data.geometry import Geometry, Volume, rounded
from dinounet.errors import DataError


class Segment(NamedTuple):
    """What a name stands for in a mask."""

    name: str
    value: int
    layer: int = 0


def is_segmentation(path: Path) -> bool:
    """Whether a file is one by its name, so that it may hold a part of its image's grid."""
    return path.name.lower().endswith(".seg.nrrd")


def read_segments(path: Path) -> tuple[Segment, ...]:
    """The segments that an NRRD file names, read from its header alone; none if it names none.

    Raises:
        DataError: what it says of them makes no sense.
    """
    import SimpleITK as sitk

    quieten_itk(sitk)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # reading the pixels tells what is wrong
        return ()
    return segments_in(reader, reader.GetNumberOfComponents(), path)


def segments_in(image: Any, layers: int, path: Path) -> tuple[Segment, ...]:
    """The segments of SimpleITK's image, or the reader of one, with so many layers, in the order of their keys."""
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    found = []
    index = 0
    while f"Segment{index}_ID" in fields or f"Segment{index}_Name" in fields:
        found.append(_segment(fields, index, layers, path))
        index += 1
    return tuple(found)


def _segment(fields: Mapping[str, str], index: int, layers: int, path: Path) -> Segment:
    """One of them; Slicer before 4.11 gave each a layer of its own, in which it is 1."""
    value = fields.get(f"Segment{index}_LabelValue", "1")
    layer = fields.get(f"Segment{index}_Layer", "0" if f"Segment{index}_LabelValue" in fields else str(index))
    name = (fields.get(f"Segment{index}_Name") or fields.get(f"Segment{index}_ID") or "").strip() or f"Segment_{index}"
    if not value.strip().isdigit() or not layer.strip().isdigit() or int(layer) >= layers:
        raise DataError(
            f"{path} says that its segment {name} is the number {value} in the layer {layer}, counted from 0, and has "
            f"{layers} layers; save it again"
        )
    return Segment(name, int(value), int(layer))


ITK_ENDINGS = (".nrrd", ".mha")

MM = {"nm": 1e-6, "um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0}
"""Lengths by their names."""

OTHER_NAMES = {
    "μm": "um", "µm": "um", "micron": "um", "microns": "um", "micrometer": "um", "micrometers": "um",
    "micrometre": "um", "micrometres": "um", "nanometer": "nm", "nanometers": "nm", "nanometre": "nm",
    "nanometres": "nm", "millimeter": "mm", "millimeters": "mm", "millimetre": "mm", "millimetres": "mm",
    "centimeter": "cm", "centimeters": "cm", "centimetre": "cm", "centimetres": "cm", "meter": "m", "meters": "m",
    "metre": "m", "metres": "m", "": "mm", "none": "mm", "?": "mm", "???": "mm", "unknown": "mm",
}  # fmt: skip
"""Other spellings of these units, and of none."""

LONGEST_HEADER = 1 << 20
"""Bytes after which the text before the pixels must have ended."""


def read_itk(path: Path) -> Volume:
    """Read a file whole.

    Raises:
        DataError: it is whole, but can't be used.
        RuntimeError: it is broken.
    """
    import SimpleITK as sitk

    quieten_itk(sitk)
    _refuse_slice_in_space(path)
    image = sitk.ReadImage(str(path))
    _require_dimensions(path, image)
    array = channels_first(image)
    return Volume(array, _place(path, image), path, segments=segments_in(image, len(array), path))


def channels_first(image: Any) -> np.ndarray:
    """Pixels of SimpleITK's image, (C, Z, Y, X), of which a flat one has a single slice."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    array = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
    return array[:, None] if image.GetDimension() == 2 else array


def probe_itk(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], Geometry, Callable[[int], np.ndarray] | None]:
    """The shape (C, Z, Y, X), type and place of a file, and what reads (C, Y, X) of a plane, if that is possible.

    Raises:
        DataError, RuntimeError: as `read_itk`.
    """
    import SimpleITK as sitk

    quieten_itk(sitk)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    _require_dimensions(path, reader)
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    dtype = sitk.GetArrayViewFromImage(sitk.Image([1] * len(size), reader.GetPixelID(), components)).dtype
    shape = (components, *((1, *size[::-1])[-3:]))
    can_give_planes = len(size) == 3 and path.name.lower().endswith(".mha") and not _is_compressed(path)
    return shape, dtype, _place(path, reader), (lambda z: _read_plane(path, size, z)) if can_give_planes else None


def write_itk(path: Path, array: np.ndarray, geometry: Geometry | None) -> None:
    """Write an array (Z, Y, X) of the given place; a slice that lies in 3D space becomes a volume of one slice."""
    import SimpleITK as sitk

    is_plane = geometry is not None and len(geometry.origin) == 2
    image: Any = sitk.GetImageFromArray(array[0] if is_plane else array)
    if geometry is not None:
        dims, units = len(geometry.origin), _units_to_keep(path, geometry)
        affine = geometry.affine[:dims, [*range(dims), 3]]
        affine /= np.reshape([MM[unit] for unit in units] or [1.0] * dims, (dims, 1))
        spacing = np.linalg.norm(affine[:, :dims], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(affine[:, dims].tolist())
        image.SetDirection((affine[:, :dims] / spacing).ravel().tolist())
        if units and path.name.lower().endswith(".mha"):
            image.SetMetaData("ITK_VoxelUnits", units[0])
    sitk.WriteImage(image, str(path), useCompression=True)
    if geometry is not None and units and path.name.lower().endswith(".nrrd"):
        named = " ".join(f'"{unit}"' for unit in units)
        _add_line(path, f"space units: {named}")


def _require_dimensions(path: Path, image: Any) -> None:
    if image.GetDimension() not in (2, 3):
        raise DataError(
            f"{path} has {image.GetDimension()} dimensions; only 2 and 3 are possible, and further values as channels"
        )


def _place(path: Path, image: Any) -> Geometry:
    """Where SimpleITK's image, or the reader of one, says that it lies, in its file's units."""
    spacing, origin, direction = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    if not np.isfinite([*spacing, *origin, *direction]).all() or min(spacing) <= 0:
        raise DataError(
            f"{path} has the spacing {rounded(spacing)} and the origin {rounded(origin)}; correct its header"
        )
    units = _units(path, len(spacing))
    if all(unit == "mm" for unit in units):
        return Geometry(spacing, origin, direction)
    mm = np.array([MM[unit] for unit in units])
    axes = np.reshape(direction, (len(units), -1)) * spacing * mm[:, None]
    lengths = np.linalg.norm(axes, axis=0)
    return Geometry(
        tuple(lengths.tolist()),
        tuple((origin * mm).tolist()),
        tuple((axes / lengths).ravel().tolist()),
        file_units=units,
    )


def _units(path: Path, dims: int) -> tuple[str, ...]:
    """Units of the numbers in a file, along each axis of space; none if it doesn't tell."""
    fields = _fields(path) if path.name.lower().endswith(ITK_ENDINGS) else {}
    if path.name.lower().endswith(".mha"):
        words = [fields.get("DistanceUnits", "")] * dims
    elif "space units" in fields:
        words = re.findall(r'"([^"]*)"', fields["space units"])
    elif "units" in fields and "space directions" not in fields:
        words = re.findall(r'"([^"]*)"', fields["units"])
        kinds = fields.get("kinds", "").split() or ["domain"] * len(words)
        if len(words) > dims:  # one axis holds the values of a pixel
            words = [word for word, kind in zip(words, kinds, strict=False) if kind in ("domain", "space", "time")]
    else:
        return ()
    units = tuple(OTHER_NAMES.get(word.strip().lower(), word.strip()) for word in words)
    if len(units) != dims or not set(units) <= MM.keys():
        raise DataError(
            f"{path} has the units {', '.join(words) or 'none'}; give one of {', '.join(MM)} for each of its {dims} "
            "axes, or leave them out for mm"
        )
    return units


def _fields(path: Path) -> dict[str, str]:
    """The header's fields by their names."""
    with path.open("rb") as file:
        begin = file.read(LONGEST_HEADER)
    if path.name.lower().endswith(".mha"):
        text, sign = begin.partition(b"ElementDataFile")[0], "="
    else:
        text, sign = re.split(rb"\r?\n\r?\n", begin, maxsplit=1)[0], ": "
    lines = text.decode("utf-8", "replace").splitlines()
    pairs = [line.split(sign, 1) for line in lines if sign in line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, value in pairs}


def _refuse_slice_in_space(path: Path) -> None:
    """Raise a DataError for two dimensions in a space of three, which NRRD can tell and ITK can't."""
    fields = _fields(path) if path.name.lower().endswith(".nrrd") else {}
    kinds = fields.get("kinds", "").split()
    values = len([kind for kind in kinds if kind not in ("domain", "space", "time", "???", "none")])
    vectors = re.findall(r"\([^)]*\)", fields.get("space directions", ""))
    if vectors and int(fields.get("dimension", 0)) - values == 2 and vectors[0].count(",") == 2:
        raise DataError(f"{path} is a slice of two dimensions in a space of three; save it as a volume of one slice")


def _units_to_keep(path: Path, geometry: Geometry) -> Sequence[str]:
    """Units of the image's file, where the mask's format has them."""
    units = geometry.file_units
    one_of_mha = len(set(units)) == 1 and units[0] in ("um", "cm")
    return units if path.name.lower().endswith(".nrrd") or one_of_mha else ()


def _add_line(path: Path, line: str) -> None:
    """Add a line to an NRRD file's header."""
    longer = path.with_name(f"{path.name}.longer")
    try:
        with path.open("rb") as file, longer.open("wb") as copy:
            copy.write(file.readline())
            while (read := file.readline()) not in (b"\n", b""):
                copy.write(read)
            copy.write(f"{line}\n".encode() + read)
            shutil.copyfileobj(file, copy)
        longer.replace(path)
    finally:
        longer.unlink(missing_ok=True)


def _is_compressed(path: Path) -> bool:
    return _fields(path).get("CompressedData", "").lower() == "true"


def _read_plane(path: Path, size: tuple[int, ...], z: int) -> np.ndarray:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetExtractIndex((0, 0, z))
    reader.SetExtractSize((*size[:2], 1))
    plane = sitk.GetArrayFromImage(reader.Execute())[0]
    return plane[None] if plane.ndim == 2 else np.moveaxis(plane, -1, 0)
