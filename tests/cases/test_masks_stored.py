"""What is stored in a mask counts, whatever a viewer is asked to make of it."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

import dinounet
from datasets import picture
from dinounet.data.dataset import read_dataset
from dinounet.data.images import read_image
from dinounet.data.lazy_volume import open_image
from dinounet.data.masks import read_mask
from dinounet.planning.data_plan import plan_data

LESION = np.zeros((24, 30), np.uint8)
LESION[5:12, 6:20] = 1


def write_pairs(root: Path, mask: np.ndarray, **how: object) -> Path:
    """Three images and TIFF masks, which tifffile writes as it is told to."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(3):
        tifffile.imwrite(root / "images" / f"c{index}.tif", picture((24, 30), index)[0])
        tifffile.imwrite(root / "masks" / f"c{index}.tif", mask, **how)
    return root


@pytest.mark.parametrize(
    ("mask", "how", "number"),
    [
        (LESION.astype(bool), {}, 1),  # which tifffile writes as MinIsWhite
        (LESION * 255, {"photometric": "miniswhite"}, 255),  # ImageJ's inverting table
        (LESION.astype(np.uint16) * 700, {"photometric": "miniswhite"}, 700),
    ],
)
def test_white_is_zero_swaps_no_classes(mask: np.ndarray, how: dict, number: int, tmp_path: Path) -> None:
    plan = plan_data(read_dataset(write_pairs(tmp_path, mask, **how)))
    path = tmp_path / "masks" / "c0.tif"
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE
    assert plan.labels.classes == {"background": 0, "foreground": number}
    assert plan.fingerprint.label_pixels == {"background": 3 * (24 * 30 - 7 * 14), "foreground": 3 * 7 * 14}
    np.testing.assert_array_equal(read_mask(path).array[0], tifffile.imread(path))
    truth = write_png(tmp_path / "png", LESION * np.uint16(number))
    metrics = dinounet.evaluate(tmp_path / "masks", truth, labels=f"background=0,foreground={number}")
    assert metrics.mean_over_cases["foreground"].dice == 1


def write_png(folder: Path, mask: np.ndarray) -> Path:
    folder.mkdir()
    for index in range(3):
        Image.fromarray(mask if mask.max() > 255 else mask.astype(np.uint8)).save(folder / f"c{index}.png")
    return folder


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.float32])
def test_images_too_come_as_tifffile_and_simpleitk_have_them(dtype: type, tmp_path: Path) -> None:
    pixels = np.arange(120, dtype=dtype).reshape(10, 12)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="miniswhite")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), pixels)
    for found in (read_image([path]), open_image([path], most=0)):
        np.testing.assert_array_equal(found.array[..., 0, 0:10, :][0].reshape(10, 12), pixels)


def test_pages_and_palettes_are_numbers(tmp_path: Path) -> None:
    stack = np.stack([LESION, LESION * 2, LESION * 0])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="miniswhite", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(read_mask(tmp_path / "stack.tif").array, stack)
    table = np.zeros((3, 256), np.uint16)
    table[:, 0] = 65535  # background drawn in white, the class in black
    tifffile.imwrite(tmp_path / "palette.tif", LESION, photometric="palette", colormap=table)
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.tif").array[0], LESION)


def turned(path: Path, tag: str, value: int) -> None:
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)


def test_what_pillow_unpacks_for_tifffile_are_the_same_numbers(tmp_path: Path) -> None:
    """Compressed by LZW, or with 4 bits per pixel, neither of which tifffile reads without another package."""
    Image.fromarray(LESION * 7).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    turned(tmp_path / "lzw.tif", "PhotometricInterpretation", 0)
    np.testing.assert_array_equal(read_mask(tmp_path / "lzw.tif").array[0], LESION * 7)
    for name, photometric in (("black", 1), ("white", 0)):
        path = tmp_path / f"{name}.tif"
        mask = LESION * 3
        tifffile.imwrite(path, mask[:, ::2] << 4 | mask[:, 1::2], photometric="minisblack", metadata=None)
        turned(path, "PhotometricInterpretation", photometric)
        turned(path, "BitsPerSample", 4)
        turned(path, "ImageWidth", 30)
        np.testing.assert_array_equal(read_mask(path).array[0], mask)
        np.testing.assert_array_equal(read_image([path]).array[0, 0], mask)


def test_pictures_of_one_bit_and_palettes_are_numbers(tmp_path: Path) -> None:
    Image.fromarray(LESION.astype(bool)).save(tmp_path / "bits.png")
    Image.fromarray(LESION.astype(bool)).save(tmp_path / "bits.bmp")
    for name, table in {"black": [0, 0, 0, 255, 255, 255], "white": [255, 255, 255, 0, 0, 0]}.items():
        drawn = Image.frombytes("P", (30, 24), LESION.tobytes())
        drawn.putpalette(table)
        for ending in ("png", "bmp"):  # Pillow reads a BMP of 8 bits whose palette is black and white as one of 1 bit
            drawn.save(tmp_path / f"{name}.{ending}")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 6
    for path in files:
        np.testing.assert_array_equal(read_mask(path).array[0], LESION, err_msg=path.name)
