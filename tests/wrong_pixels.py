"""Wrong datasets: pixels, grids and masks."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image

from test_dicom import edit, sorted_files, write_series
from wrong_datasets import Maker, describe, nnunet, nothing, pairs, picture, save, save_volume, truth, volumes, wrong

SIZE = (3, 16, 18)


def replaced(name: str, base: Maker, path: str, pixels: np.ndarray, *words: str, **options: Any) -> None:
    """Enters a dataset in which one file holds other pixels."""

    def spoil(root: Path) -> None:
        for old in (root / path).parent.glob(Path(path).name.split(".")[0] + ".*"):
            old.unlink()
        (save_volume if path.endswith((".nii.gz", ".nii", ".nrrd", ".mha")) else save)(root / path, pixels, **options)

    spoil.__name__ = name
    wrong(base, path, *words)(spoil)


def with_bad(*values: float, size: tuple[int, ...] = SIZE) -> np.ndarray:
    pixels = picture(1, size).astype(np.float32)
    pixels.flat[: len(values)] = values
    return pixels


# ---- pixels

NAN, INF = float("nan"), float("inf")
REPAIR = "pixels that are NaN or infinite; repair or exclude it"
replaced("nan_in_nifti", volumes, "imagesTr/b_0000.nii.gz", with_bad(NAN, NAN), "holds 2", REPAIR)
replaced("infinity_in_nifti", volumes, "imagesTr/b_0000.nii.gz", with_bad(INF), "holds 1", REPAIR)
replaced("nan_in_nrrd", pairs, "images/b.nrrd", with_bad(NAN, INF, size=(1, 16, 18)), "holds 2", REPAIR)
replaced("nan_in_tiff", pairs, "images/b.tif", with_bad(NAN, -INF, size=(16, 18)), "holds 2", REPAIR)
replaced("nan_in_a_mask", pairs, "masks/b.tif", with_bad(NAN, size=(16, 18)) * 0, "infinite; store a number in")
replaced("complex_numbers", pairs, "images/b.tif", picture(1).astype(np.complex64), "complex64; save real ones")
replaced(
    "a_partly_transparent_image", pairs, "images/b.png", np.stack([picture(1)] * 4, -1), "remove its alpha channel"
)
replaced("more_channels_than_others", pairs, "images/b.png", np.stack([picture(1)] * 3, -1), "3 channels, but 1 are")
replaced("more_channels_than_named", nnunet, "imagesTr/b_0000.png", np.stack([picture(1)] * 3, -1), "3 channels, but 1")


def _four_dimensions(root: Path) -> None:
    pixels = np.zeros((18, 16, 3, 4), np.int16)
    nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), root / "imagesTr" / "b_0000.nii.gz")


_four_dimensions.__name__ = "a_film_of_volumes"
wrong(volumes, "imagesTr/b_0000.nii.gz has 4 dimensions; only 2 and 3 are possible")(_four_dimensions)


@wrong(pairs, "images/b.png has a palette; convert it to grey levels or RGB")
def a_palette_in_an_image(root: Path) -> None:
    Image.fromarray(picture(1)).convert("P").save(root / "images" / "b.png")


@wrong(pairs, "images/b.jpg has its colours in CMYK; convert it to RGB")
def inks(root: Path) -> None:
    (root / "images" / "b.png").unlink()
    Image.fromarray(np.stack([picture(1)] * 3, -1)).convert("CMYK").save(root / "images" / "b.jpg")


@wrong(pairs, "images/b.tif holds 2 images of other sizes or types; split it")
def pages_of_several_sizes(root: Path) -> None:
    (root / "images" / "b.png").unlink()
    pages = [Image.fromarray(picture(1)), Image.fromarray(picture(1, (8, 8)))]
    pages[0].save(root / "images" / "b.tif", save_all=True, append_images=pages[1:])


@wrong(pairs, "hold one value alone in channel 0", "check how they were exported")
def constant_images_only(root: Path) -> None:
    for path in (root / "images").iterdir():
        save(path, np.full((16, 18), 7, np.uint8))


@wrong(
    pairs, "images/b.tif holds 0 to 999 in the channel rgb, but colours go from 0 to 255", flags=("--channels", "rgb")
)
def colours_beyond_a_byte(root: Path) -> None:
    (root / "images" / "b.png").unlink()
    save(root / "images" / "b.tif", np.linspace(0, 999, 16 * 18).reshape(16, 18).astype(np.uint16))


@wrong(nothing, "hold one value alone in channel 0", "check how they were exported")
def images_of_one_pixel(root: Path) -> None:
    for name in "abc":
        save(root / "images" / f"{name}.png", np.ones((1, 1), np.uint8))
        save(root / "masks" / f"{name}.png", np.ones((1, 1), np.uint8))


def with_nifti_header(name: str, place: int, value: bytes, *words: str) -> None:
    """Enters a NIfTI with other bytes in its header."""

    def spoil(root: Path) -> None:
        path = root / "imagesTr" / "b_0000.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[place : place + len(value)] = value
        path.write_bytes(gzip.compress(content))

    spoil.__name__ = name
    wrong(volumes, "imagesTr/b_0000.nii.gz", *words)(spoil)


with_nifti_header("a_nifti_of_nothing", 42, struct.pack("<h", 0), "can't be read", "is it whole?")
with_nifti_header("a_nifti_of_a_negative_size", 42, struct.pack("<h", -5), "can't be read", "is it whole?")
with_nifti_header(
    "a_nifti_that_promises_more_than_any_memory", 42, struct.pack("<3h", *[30000] * 3), "can't be read", "is it whole?"
)
with_nifti_header("a_nifti_of_an_unknown_type", 70, struct.pack("<h", 77), "can't be read", "is it whole?")
with_nifti_header("a_nifti_of_complex_numbers", 70, struct.pack("<2h", 32, 64), "b_0000.nii.gz")
with_nifti_header("a_nifti_scaled_to_infinity", 112, struct.pack("<f", 3e38), "b_0000.nii.gz")
with_nifti_header(
    "a_spacing_of_nan", 80, struct.pack("<f", float("nan")), "has the spacing [nan,", "correct its header"
)
with_nifti_header("a_spacing_of_zero", 80, bytes(12), "has the spacing [0.0, 0.0, 0.0]", "correct its header")

# ---- grids

replaced("a_mask_of_another_size", pairs, "masks/b.png", truth(1, (16, 16)) * 255, "16 x 16", "16 x 18", "pair others")
replaced("a_mask_turned_by_90_degrees", pairs, "masks/b.png", truth(1, (18, 16)) * 255, "18 x 16", "16 x 18")
replaced(
    "a_mask_of_another_spacing", volumes, "labelsTr/b.nii.gz", truth(1, SIZE), "differ in spacing",
    "resample one onto the other's grid", spacing=(0.7, 0.8, 2.0),
)  # fmt: skip
replaced("a_flat_mask_of_a_volume", volumes, "labelsTr/b.nii.gz", truth(1, (16, 18)), "1 x 16 x 18", "3 x 16 x 18")


def moved(path: Path, **changes: tuple[float, ...]) -> None:
    image = sitk.ReadImage(str(path))
    for name, value in changes.items():
        getattr(image, f"Set{name}")(value)
    sitk.WriteImage(image, str(path))


@wrong(volumes, "labelsTr/b.nii.gz and", "differ in origin", "resample one onto the other's grid")
def a_mask_elsewhere(root: Path) -> None:
    moved(root / "labelsTr" / "b.nii.gz", Origin=(5, 0, 0))


@wrong(volumes, "labelsTr/b.nii.gz and", "differ in direction", "resample one onto the other's grid")
def a_mask_in_another_direction(root: Path) -> None:
    moved(root / "labelsTr" / "b.nii.gz", Direction=(1, 0, 0, 0, -1, 0, 0, 0, -1))


@wrong(volumes, "labelsTr/a.nii.gz and", "labelsTr/b.nii.gz", "labelsTr/c.nii.gz and", "differ in origin")
def every_mask_is_wrong_in_its_way(root: Path) -> None:
    moved(root / "labelsTr" / "a.nii.gz", Origin=(5, 0, 0))
    (root / "labelsTr" / "b.nii.gz").write_bytes(b"")
    moved(root / "labelsTr" / "c.nii.gz", Origin=(5, 0, 0))


@wrong(nnunet, "imagesTr/b_0001.png is 1 x 8 x 18 but", "imagesTr/b_0000.png is 1 x 16 x 18")
def channels_of_several_sizes(root: Path) -> None:
    describe(root, channel_names={"0": "T1", "1": "T2"})
    for name in "abc":
        save(root / "imagesTr" / f"{name}_0001.png", picture(1, (8 if name == "b" else 16, 18)))


def with_nrrds(header: str, *words: str, name: str) -> None:
    """Enters NRRDs with this line in the header of image and mask."""

    def spoil(root: Path) -> None:
        for folder, pixels in (("images", picture(1)), ("masks", truth(1))):
            (root / folder / "b.png").unlink()
            text = f"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 18 16\nencoding: raw\n{header}\n\n"
            (root / folder / "b.nrrd").write_bytes(text.encode() + pixels.tobytes())

    spoil.__name__ = name
    wrong(pairs, "images/b.nrrd", *words)(spoil)


with_nrrds("spacings: 0 0", "spacing (0) invalid", name="an_nrrd_with_a_spacing_of_zero")
with_nrrds("spacings: 1 inf", "spacing (inf) invalid", name="an_nrrd_with_an_infinite_spacing")

# ---- masks


@wrong(pairs, "contain only background; there is nothing to learn")
def empty_masks_only(root: Path) -> None:
    for path in (root / "masks").iterdir():
        save(path, np.zeros((16, 18), np.uint8))


@wrong(nnunet, "contain only background; there is nothing to learn")
def ignored_pixels_only(root: Path) -> None:
    describe(root, labels={"background": 0, "disc": 1, "ignore": 2})
    for path in (root / "labelsTr").iterdir():
        save(path, np.full((16, 18), 2, np.uint8))


@wrong(pairs, "masks/a.png", "swapped")
def images_and_masks_that_are_swapped(root: Path) -> None:
    (root / "images").rename(root / "x")
    (root / "masks").rename(root / "images")
    (root / "x").rename(root / "masks")


@wrong(pairs, "masks/b.png", "images/b.png", "swapped")
def one_pair_that_is_swapped(root: Path) -> None:
    save(root / "images" / "b.png", truth(1) * 255)
    save(root / "masks" / "b.png", picture(1))


@wrong(nnunet, "labelsTr/b.png", "imagesTr/b_0000.png", "swapped")
def one_pair_of_nnunet_that_is_swapped(root: Path) -> None:
    save(root / "imagesTr" / "b_0000.png", truth(1))
    save(root / "labelsTr" / "b.png", picture(1))


HALVES = truth(1).astype(np.float32) / 2
replaced("a_mask_of_halves", pairs, "masks/b.tif", HALVES, "holds the value 0.5; a mask must hold whole numbers")
replaced("a_mask_of_huge_numbers", pairs, "masks/b.tif", HALVES * 1e12, "numbers in masks must be below 16777216")
replaced("a_negative_mask", pairs, "masks/b.tif", -truth(1).astype(np.int16), "holds the label -1; store a number from")
replaced("a_mask_of_large_numbers", pairs, "masks/b.tif", truth(1).astype(np.uint32) * ((1 << 24) + 5), "16777221")
replaced("a_mask_of_other_labels", nnunet, "labelsTr/b.png", truth(1) * 7, "holds 7, but the labels are", "name them")
replaced(
    "a_coloured_mask_among_numbers", nnunet, "labelsTr/b.png", truth(1)[..., None] * np.array([255, 9, 9], np.uint8),
    "mask in different colours (#000000, #ff0909), but the labels are numbers", "convert it",
)  # fmt: skip
replaced(
    "a_mask_of_two_channels", pairs, "masks/b.tif", np.stack([truth(1)] * 2, -1), "2 channels; convert it",
    photometric="minisblack", planarconfig="contig",
)  # fmt: skip


@wrong(pairs, "hold 0, 100, 255; say what they stand for, such as --labels background=0,class1=100,class2=255")
def masks_with_gaps(root: Path) -> None:
    save(root / "masks" / "b.png", np.choose(truth(1), (0, 100)).astype(np.uint8))


@wrong(
    pairs,
    "masks/b.png holds 100, but the labels are background=0,disc=255",
    flags=("--labels", "background=0,disc=255"),
)
def masks_with_numbers_that_nobody_named(root: Path) -> None:
    save(root / "masks" / "b.png", np.choose(truth(1), (0, 100)).astype(np.uint8))


@wrong(pairs, "288 different values", "each object has a number of its own; store a number per class")
def masks_with_a_number_for_each_object(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.unlink()
        save(path.with_suffix(".tif"), np.arange(288, dtype=np.uint16).reshape(16, 18))


@wrong(pairs, "as smoothed masks do; export them without anti-aliasing", "dinounet relabel")
def smoothed_masks(root: Path) -> None:
    from scipy.ndimage import gaussian_filter

    for path in (root / "masks").iterdir():
        save(path, gaussian_filter(np.asarray(Image.open(path)).astype(float), 1).astype(np.uint8))


@wrong(pairs, "masks/a.jpg, ", "masks/c.jpg are JPEGs, which changes labels", "export masks as PNG", "dinounet relabel")
def masks_as_jpeg(root: Path) -> None:
    for path in (root / "masks").iterdir():
        pixels = np.asarray(Image.open(path))
        path.unlink()
        save(path.with_suffix(".jpg"), pixels)


def coloured(root: Path, *colours: tuple[int, int, int]) -> None:
    for path in (root / "masks").iterdir():
        pixels = np.zeros((16, 18, 3), np.uint8)
        for row, colour in enumerate(colours):
            pixels[2 + row] = colour
        save(path, pixels)


@wrong(pairs, "#400000", "mixtures of others; say what they stand for, such as --labels")
def colours_that_are_mixtures(root: Path) -> None:
    coloured(root, (255, 0, 0), (64, 0, 0))


@wrong(
    pairs, "masks/a.png, ", "masks/b.png, ", "masks/c.png hold #00ff00 in", "name them, or give each pixel the nearest",
    flags=("--labels", "background=#000000,disc=#ff0000"),
)  # fmt: skip
def colours_that_nobody_named(root: Path) -> None:
    coloured(root, (255, 0, 0), (0, 255, 0))


def classes(root: Path) -> None:
    """One file per class."""
    for seed, name in enumerate("abc"):
        save(root / "images" / f"{name}.png", picture(seed))
        save(root / "masks" / "disc" / f"{name}.png", truth(seed) * 255)
        save(root / "masks" / "rest" / f"{name}.png", 255 - truth(seed) * 255)


@wrong(classes, "a has no mask of disc; b has no mask of rest; add masks of 0 where there is nothing")
def classes_that_are_missing(root: Path) -> None:
    (root / "masks" / "disc" / "a.png").unlink()
    (root / "masks" / "rest" / "b.png").unlink()


@wrong(classes, "masks/disc/b.png and", "masks/rest/b.png both hold", "give each to one class, or write overlapping")
def classes_that_overlap(root: Path) -> None:
    save(root / "masks" / "rest" / "b.png", np.full((16, 18), 255, np.uint8))


@wrong(classes, "masks/rest/b.png is 1 x 8 x 18 but")
def classes_of_several_sizes(root: Path) -> None:
    save(root / "masks" / "rest" / "b.png", np.zeros((8, 18), np.uint8))


# ---- DICOM


def series(root: Path) -> None:
    """CT of two patients, and their masks."""
    (root / "masks").mkdir()
    for seed, name in enumerate("ab"):
        write_series(root / "images" / name, picture(seed, (5, 40, 48)))
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(root / "images" / name)))
        mask = sitk.GetImageFromArray(truth(seed, (5, 40, 48)))
        mask.CopyInformation(image)
        sitk.WriteImage(mask, str(root / "masks" / f"{name}.nii.gz"))


@wrong(series, "images/a holds 2 DICOM series (of", "give each a folder of its own")
def two_series_in_a_folder(root: Path) -> None:
    edit(sorted_files(root / "images" / "a")[0], SeriesInstanceUID=pydicom.uid.generate_uid())


@wrong(series, "images/a lacks slices or has them at uneven distances", "images/b", "add what is missing")
def slices_that_are_missing(root: Path) -> None:
    for name in "ab":
        sorted_files(root / "images" / name)[2].unlink()


@wrong(series, "images/a holds two slices at one place", "keep one series of one time in a folder")
def a_slice_that_stands_twice(root: Path) -> None:
    shutil.copy(sorted_files(root / "images" / "a")[2], root / "images" / "a" / "again")


@wrong(series, "images/a", "20 x 48 of 1 channels", "keep slices of one size")
def slices_of_several_sizes(root: Path) -> None:
    path = sorted_files(root / "images" / "a")[1]
    edit(path, Rows=20, PixelData=pydicom.dcmread(path).PixelData[: 40 * 48])


@wrong(series, "images/a", "lacks 300 bytes of its pixels; get the file again")
def a_truncated_slice(root: Path) -> None:
    path = sorted_files(root / "images" / "a")[3]
    path.write_bytes(path.read_bytes()[:-300])


@wrong(series, "images/a", "can't be read as a DICOM image", "images/b")
def slices_cut_in_their_header(root: Path) -> None:
    for name in "ab":
        path = sorted_files(root / "images" / name)[3]
        path.write_bytes(path.read_bytes()[:300])


@wrong(series, "images holds DICOM files themselves; put each series into a folder of its own")
def slices_beside_the_folders(root: Path) -> None:
    for path in sorted_files(root / "images" / "a"):
        path.rename(root / "images" / path.name)
    (root / "images" / "a").rmdir()
