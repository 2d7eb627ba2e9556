#!/bin/bash
# Pillow reads an 8-bit BMP whose palette is black and white as one of 1 bit: what it wrote itself comes back empty.
#
# A BMP of 8 bits a pixel may say that its palette has two colours. If these are black and white, Pillow 13.0.0 opens it
# with the mode "1" and takes each byte for eight pixels, so that an index of 1 is the last of them, and is mostly cut
# off. White and black, in this order, and any two other colours are read rightly, as are three greys. OpenCV and SimpleITK
# read the file as it is. Saving such a picture by Pillow writes just that header.
#
# Seen, and expected by this script:
#   bits 8 colours 2
#   Pillow   1 [0, 0, 0, 0, 0, 0, 0, 0]
#   OpenCV     [0, 255, 0, 255, 0, 255, 0, 255]
#   ITK        [0, 255, 0, 255, 0, 255, 0, 255]
#   Pillow, white first P [0, 1, 0, 1, 0, 1, 0, 1]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.2.6 opencv-python-headless==5.0.0.93 SimpleITK==2.5.7
venv/bin/python - <<'PYTHON'
import cv2
import numpy
import SimpleITK
from PIL import Image

pixels = (numpy.arange(64, dtype=numpy.uint8) % 2).reshape(8, 8)
for name, palette in {"black first": [0, 0, 0, 255, 255, 255], "white first": [255, 255, 255, 0, 0, 0]}.items():
    picture = Image.frombytes("P", (8, 8), pixels.tobytes())
    picture.putpalette(palette)
    picture.save(f"{name}.bmp")
with open("black first.bmp", "rb") as file:
    header = file.read(54)
print("bits", header[28], "colours", int.from_bytes(header[46:50], "little"))
assert (header[28], header[46]) == (8, 2), "Pillow writes otherwise"
black, white = (Image.open(f"{name} first.bmp") for name in ("black", "white"))
print("Pillow  ", black.mode, numpy.asarray(black)[0].astype(int).tolist())
print("OpenCV    ", cv2.imread("black first.bmp", cv2.IMREAD_UNCHANGED)[0].tolist())
print("ITK       ", SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("black first.bmp"))[0, :, 0].tolist())
print("Pillow, white first", white.mode, numpy.asarray(white)[0].tolist())
assert black.mode == "1" and not numpy.asarray(black).any(), "Pillow has changed"
assert (numpy.asarray(white) == pixels).all(), "Pillow has changed"
assert (cv2.imread("black first.bmp", cv2.IMREAD_UNCHANGED) == pixels * 255).all(), "OpenCV has changed"
itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage("black first.bmp"))
assert (itk.reshape(8, 8, -1)[..., 0] == pixels * 255).all(), "ITK has changed"
PYTHON
