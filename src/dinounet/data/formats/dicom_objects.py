"""What a DICOM file is, by its first kilobyte: an image, or an object without one, such as a report or a segmentation.

By the class that PS3.10 has at the beginning of every file, explained by pydicom's dictionary of PS3.6.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinounet.errors import DataError, UserError, reason_of

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
