"""DICOM objects with known numbers, written by pydicom and highdicom."""

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "ENHANCED CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "ENHANCED MR": "1.2.840.10008.5.1.4.1.1.4.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "NM": "1.2.840.10008.5.1.4.1.1.20",
    "OP": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "RF": "1.2.840.10008.5.1.4.1.1.12.2",
    "RTDOSE": "1.2.840.10008.5.1.4.1.1.481.2",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
    "SM": "1.2.840.10008.5.1.4.1.1.77.1.6",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "US CINE": "1.2.840.10008.5.1.4.1.1.3.1",
    "XA": "1.2.840.10008.5.1.4.1.1.12.1",
}


def make_image(pixels: np.ndarray, kind: str, **attributes: Any) -> FileDataset:
    """An image (Y, X), or (frames, Y, X), of a kind, with only the attributes that are given beside what all have."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CLASSES[kind], generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(), generate_uid()
    made.Modality, made.PatientID, made.PatientName = kind.split()[-1].replace("CINE", "US"), "x", "Doe^J"
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def write_image(path: Path, pixels: np.ndarray, kind: str, **attributes: Any) -> Path:
    """Write such an image into a file, and give its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(pixels, kind, **attributes).save_as(path, enforce_file_format=True)
    return path.parent


def item(**attributes: Any) -> Sequence:
    """A sequence of one item."""
    inside = Dataset()
    for name, value in attributes.items():
        setattr(inside, name, value)
    return Sequence([inside])


def write_frames(
    path: Path, pixels: np.ndarray, positions: np.ndarray, kind: str = "ENHANCED CT", slopes: Any = None, **more: Any
) -> Path:
    """Write frames (F, Y, X) at positions (F, 3) as one object, 0.8 x 0.7 mm, and give its folder."""
    frames = []
    for index, position in enumerate(positions):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[float(x) for x in position])
        if slopes is not None:
            slope, intercept = slopes[index]
            frame.PixelValueTransformationSequence = item(RescaleSlope=slope, RescaleIntercept=intercept)
        frames.append(frame)
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=item(PixelSpacing=[0.8, 0.7], SliceThickness=3),
    )
    more = {"FrameOfReferenceUID": generate_uid(), **more}
    return write_image(
        path, pixels, kind,
        SharedFunctionalGroupsSequence=shared, PerFrameFunctionalGroupsSequence=Sequence(frames), **more,
    )  # fmt: skip


def write_ct(folder: Path, pixels: np.ndarray, **more: Any) -> list[Dataset]:
    """Write slices (Z, Y, X) as a CT series, 3 mm apart, a file each, and give what they hold."""
    common = {name: generate_uid() for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")}
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"):
        common[name] = ""
    for index, plane in enumerate(pixels):
        write_image(
            folder / f"{index}.dcm", plane, "CT", **common,
            ImagePositionPatient=[0, 0, 3 * index], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[0.8, 0.7], SliceThickness=3, RescaleSlope=1, RescaleIntercept=0, ReferringPhysicianName="",
            SeriesNumber=1, InstanceNumber=index + 1, **more,
        )  # fmt: skip
    return [pydicom.dcmread(folder / f"{index}.dcm") for index in range(len(pixels))]


def write_segments(
    path: Path, sources: list[Dataset], pixels: np.ndarray, names: list[str], kind: str = "BINARY", **options: Any
) -> Path:
    """Write a segmentation of sources by highdicom: (Z, Y, X) numbers, or (Z, Y, X, S) of fractions or overlaps."""
    for source in sources:
        for name in (
            "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
            "ReferringPhysicianName",
        ):  # fmt: skip
            setattr(source, name, source.get(name, ""))
    made = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[
            highdicom.seg.SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
            for number, name in enumerate(names, start=1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="x",
        device_serial_number="x",
        **options,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path
