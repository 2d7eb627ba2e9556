#!/bin/bash
# TIFF that is to be shown with 0 in white: which readers invert its numbers depends on the bits a pixel, not on the reader.
#
# tifffile writes a bool array as such a file (MinIsWhite, photometric 0) without being asked; ImageJ so writes 8 bits with
# an inverting table. Of 1 bit SimpleITK 2.5.7, Pillow 13.0.0, OpenCV 5.0 and libvips 8.18 give True as black, and
# tifffile 2026.3.3 and scikit-image 0.26 as True: a mask of booleans changes sides. Of 8 bits SimpleITK changes camps.
# Of 16 bits Pillow and OpenCV do too, so that libvips alone inverts; of 8 bits with a sign OpenCV alone does.
#
# Seen, and expected by this script (s: as stored, i: inverted, -: not read):
#             bool uint8 uint16 int8
#   tifffile  s    s     s      s
#   skimage   s    s     s      s
#   SimpleITK i    s     s      s
#   Pillow    i    i     s      -
#   OpenCV    i    i     s      i
#   libvips   i    i     i      s
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check numpy==2.2.6 tifffile==2026.3.3 scikit-image==0.26.0 \
    SimpleITK==2.5.7 pillow==13.0.0 opencv-python-headless==5.0.0.93 "pyvips[binary]==3.2.0" pyvips-binary==8.18.7
venv/bin/python - 2>/dev/null <<'PYTHON'
import cv2
import numpy
import pyvips
import SimpleITK
import skimage.io
import tifffile
from PIL import Image

READERS = {
    "tifffile": tifffile.imread,
    "skimage": skimage.io.imread,
    "SimpleITK": lambda path: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)),
    "Pillow": lambda path: numpy.asarray(Image.open(path)),
    "OpenCV": lambda path: cv2.imread(path, cv2.IMREAD_UNCHANGED),
    "libvips": lambda path: pyvips.Image.new_from_file(path).numpy(),
}
EXPECTED = {
    "tifffile": "ssss", "skimage": "ssss", "SimpleITK": "isss", "Pillow": "iis-", "OpenCV": "iisi", "libvips": "iiis",
}
numbers = numpy.arange(64).reshape(8, 8)
stored = {"bool": numbers % 3 == 0} | {name: numbers.astype(name) for name in ("uint8", "uint16", "int8")}
for name, array in stored.items():
    how = {} if name == "bool" else {"photometric": "miniswhite"}
    tifffile.imwrite(f"{name}.tif", array, **how)
    assert tifffile.TiffFile(f"{name}.tif").pages[0].photometric == 0, "tifffile writes otherwise"
print("         ", *stored)
for reader, read in READERS.items():
    found = ""
    for name, array in stored.items():
        try:
            pixels = read(f"{name}.tif")
        except Exception:
            found += "-"
            continue
        pixels = pixels[..., 0] if pixels.ndim == 3 else pixels
        same = ((pixels > 0) == array).all() if name == "bool" else (pixels == array).all()
        found += "s" if same else "i"
    print(f"{reader:9}", *found)
    assert found == EXPECTED[reader], f"{reader} has changed"
PYTHON
