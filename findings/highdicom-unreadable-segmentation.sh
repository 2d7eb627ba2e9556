#!/bin/bash
# highdicom writes segmentations of X-rays that it can't read.
#
# A CR or DX image lies in no frame of reference, and may tell the size of its pixels (Pixel Spacing). highdicom 0.28.2
# makes a segmentation of it (support for sources without a frame of reference) whose shared functional groups have a
# Pixel Measures Sequence with Pixel Spacing alone: valid, since Slice Thickness is of type 1C there (PS3.3, C.7.6.16.2.1),
# required of volumes. Its own `segread` demands Slice Thickness and raises an AttributeError. Without Pixel Spacing in the
# source the object is read, but `get_volume` raises sqlite3's OperationalError of a column in an internal table, where
# for other objects without a place it says that they are no volume. pydicom reads both; whoever stores predictions of
# X-rays by highdicom needs another way to get them back.
#
# Seen, and expected by this script:
#   with Pixel Spacing     segread: AttributeError: Sequence does not have the required attributes for a Pixel Measures ...
#   without Pixel Spacing  get_volume: OperationalError: no such column: FrameLUT.ImagePositionPatient_0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check highdicom==0.28.2 pydicom==3.0.2 numpy==2.2.6
venv/bin/python -W ignore - <<'PYTHON'
import highdicom
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes


def x_ray(**more):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage - For Presentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID, made.SeriesInstanceUID = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "ReferringPhysicianName",
                 "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(made, name, "")
    made.Modality, made.Rows, made.Columns, made.SamplesPerPixel = "DX", 8, 8, 1
    made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelData = 15, bytes(128)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def segmentation(source, path):
    segment = highdicom.seg.SegmentDescription(1, "lesion", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
    made = highdicom.seg.Segmentation(
        [source], np.eye(8, dtype=np.uint8)[None], "BINARY", [segment], pydicom.uid.generate_uid(), 1,
        pydicom.uid.generate_uid(), 1, "maker", "model", "1", "1",
    )
    made.save_as(path)
    assert pydicom.dcmread(path).pixel_array.sum() == 8


segmentation(x_ray(PixelSpacing=[0.15, 0.15]), "spaced.dcm")
segmentation(x_ray(), "plain.dcm")
try:
    highdicom.seg.segread("spaced.dcm")
    raise SystemExit("highdicom has changed: it reads the segmentation of an X-ray with Pixel Spacing")
except AttributeError as error:
    print("with Pixel Spacing     segread: AttributeError:", error)
    assert "Pixel Measures" in str(error)
plain = highdicom.seg.segread("plain.dcm")
try:
    plain.get_volume(combine_segments=True)
    raise SystemExit("highdicom has changed: it makes a volume of the segmentation of an X-ray")
except Exception as error:
    print(f"without Pixel Spacing  get_volume: {type(error).__name__}:", error)
    assert type(error).__name__ == "OperationalError"
PYTHON
