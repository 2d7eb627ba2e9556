"""3D Slicer's segmentations, `.seg.nrrd`: NRRD whose keys name what its numbers stand for.

Each segment has a name, a number and a layer; segments that overlap lie in different layers, which are the values of a
voxel (https://slicer.readthedocs.io, developer guide, "Segmentations file format"). An ordinary `.nrrd` with these keys
counts as well. The extent that was painted is what is saved: it is placed by the origin, as all NRRD is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dinounet.errors import DataError
from dinounet.program import quieten_itk


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
