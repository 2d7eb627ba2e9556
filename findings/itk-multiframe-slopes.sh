#!/bin/bash
# ITK rescales all frames of an enhanced DICOM object by the first frame's slope, and stacks them as they are stored.
#
# An Enhanced MR object may have a Pixel Value Transformation Sequence in the functional groups of each frame (PS3.3,
# C.7.6.16.2.9), and its frames may stand in any order, since each has its Image Position. SimpleITK 2.5.7 (ITK 5.4, GDCM)
# applies the first frame's slope and intercept to all, keeps the stored order, and says that they are
# 1 mm apart: no error, no warning. Here planes at 0, 6, 3 and 9 mm are stored as 100 each,
# with slopes 1 to 4. By the standard the values at 0, 3, 6 and 9 mm are 100, 300, 200 and 400, 3 mm apart.
#
# Seen, and expected by this script:
#   values [100, 100, 100, 100], spacing along z 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.2.6
venv/bin/python -W ignore - <<'PYTHON'
import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset


def item(**attributes):
    inside = Dataset()
    for name, value in attributes.items():
        setattr(inside, name, value)
    return [inside]


meta = FileMetaDataset()
meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"  # Enhanced MR Image Storage
meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
made.StudyInstanceUID, made.SeriesInstanceUID = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
made.FrameOfReferenceUID, made.Modality = pydicom.uid.generate_uid(), "MR"
made.Rows, made.Columns, made.SamplesPerPixel, made.NumberOfFrames = 4, 4, 1, 4
made.PhotometricInterpretation, made.PixelRepresentation = "MONOCHROME2", 0
made.BitsAllocated = made.BitsStored = 16
made.HighBit, made.PixelData = 15, np.full((4, 4, 4), 100, np.uint16).tobytes()
made.SharedFunctionalGroupsSequence = item(
    PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    PixelMeasuresSequence=item(PixelSpacing=[1, 1], SliceThickness=3),
)
made.PerFrameFunctionalGroupsSequence = [
    item(
        PlanePositionSequence=item(ImagePositionPatient=[0, 0, z]),
        PixelValueTransformationSequence=item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US"),
    )[0]
    for z, slope in zip((0, 6, 3, 9), (1, 2, 3, 4))
]
made.save_as("a.dcm", enforce_file_format=True)
image = SimpleITK.ReadImage("a.dcm")
values = SimpleITK.GetArrayFromImage(image)[:, 0, 0].tolist()
print(f"values {values}, spacing along z {image.GetSpacing()[2]}")
assert values == [100, 100, 100, 100], "ITK has changed: it has other values"
assert image.GetSpacing()[2] == 1, "ITK has changed: it has another spacing"
PYTHON
