#!/bin/bash
# ITK adds scl_inter to a NIfTI file's values where scl_slope is 0, by which the standard says that there is no scaling.
#
# nifti1.h: "If the scl_slope field is nonzero, then each voxel value in the dataset should be scaled as
# y = scl_slope * x + scl_inter". A slope of 0 means that values are as stored, whatever the intercept is. SimpleITK 2.5.7
# (ITK 5.4) takes a slope of 0 for 1 and still adds the intercept; nibabel 5.4.2 gives what is stored. A pipeline that
# reads some files by one and some by the other has intensities that differ by the intercept, without a word.
#
# Seen, and expected by this script:
#   nibabel   [0 1 2 3] int16
#   SimpleITK [10. 11. 12. 13.] float32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check nibabel==5.4.2 SimpleITK==2.5.7 numpy==2.2.6
venv/bin/python - <<'PYTHON'
import nibabel
import numpy as np
import SimpleITK

stored = np.arange(4, dtype=np.int16).reshape(4, 1, 1)
nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), "a.nii")
with open("a.nii", "r+b") as file:
    file.seek(112)  # scl_slope, scl_inter
    file.write(np.array([0, 10], "<f4").tobytes())
ours = np.asarray(nibabel.load("a.nii").dataobj).ravel()
theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("a.nii")).ravel()
print("nibabel  ", ours, ours.dtype)
print("SimpleITK", theirs, theirs.dtype)
assert ours.tolist() == [0, 1, 2, 3]
assert theirs.tolist() == [10, 11, 12, 13], "ITK has changed"
PYTHON
