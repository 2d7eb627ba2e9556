"""Pixels of every photometric interpretation and compression come as numbers by hand, or pydicom, have them."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_objects import make_image
from pydicom.pixels import convert_color_space
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from dinounet.data.images import read_image

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 4096, (16, 18)).astype(np.uint16)
SIGNED = RANDOM.integers(-2048, 2048, (16, 18)).astype(np.int16)
RGB = RANDOM.integers(0, 256, (16, 18, 3)).astype(np.uint8)
TABLE = RANDOM.integers(0, 256, (3, 256))
TWELVE = {"BitsStored": 12, "HighBit": 11}


def in_colours(pixels: np.ndarray, photometric: str, planar: int = 0) -> pydicom.FileDataset:
    made = make_image(
        pixels[..., 0], "CT", SamplesPerPixel=3, PhotometricInterpretation=photometric, PlanarConfiguration=planar
    )
    made.PixelData = (pixels.transpose(2, 0, 1) if planar else pixels).tobytes()
    return made


def with_palette() -> pydicom.FileDataset:
    made = make_image(RGB[..., 0], "CT", PhotometricInterpretation="PALETTE COLOR")
    for name, column in zip(("Red", "Green", "Blue"), TABLE, strict=True):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", (column.astype(np.uint16) * 257).tobytes())
    return made


def compressed(syntax: str) -> pydicom.FileDataset:
    made = make_image(GREY, "CT", **TWELVE)
    if syntax in (RLELossless, JPEGLSLossless):
        made.compress(syntax)
    made.file_meta.TransferSyntaxUID = syntax
    return made


@pytest.mark.parametrize("kind", ["1.2", "1.77.1.8"])  # CT, and a class that GDCM doesn't know
@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (make_image(GREY, "CT", **TWELVE, PhotometricInterpretation="MONOCHROME1"), 4095 - GREY),
        (make_image((SIGNED.view(np.uint16) & 0xFFF).view(np.int16), "CT", **TWELVE), SIGNED),
        (make_image(SIGNED, "CT", RescaleSlope=0.5, RescaleIntercept=-10), SIGNED * 0.5 - 10),
        (in_colours(RGB, "RGB"), RGB.transpose(2, 0, 1)),
        (in_colours(RGB, "RGB", planar=1), RGB.transpose(2, 0, 1)),
        (in_colours(RGB, "YBR_FULL"), convert_color_space(RGB, "YBR_FULL", "RGB").transpose(2, 0, 1)),
        (with_palette(), TABLE[:, RGB[..., 0]]),
        (compressed(RLELossless), GREY),
        (compressed(JPEGLSLossless), GREY),
        (compressed(DeflatedExplicitVRLittleEndian), GREY),
        (compressed(ImplicitVRLittleEndian), GREY),
    ],
    ids=[
        "monochrome1", "12 bits signed", "slope", "rgb", "planar", "ybr", "palette", "rle", "jpeg-ls", "deflated",
        "implicit",
    ],
)  # fmt: skip
def test_pixels_are_decoded(made: pydicom.FileDataset, expected: np.ndarray, kind: str, tmp_path: Path) -> None:
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.{kind}"
    made.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_image([tmp_path]).array[:, 0].squeeze(), expected)
