"""Wrong datasets: small functions that each spoil a sound one, with the words that the answer must hold.

Here what is wrong with folders, names and files; `wrong_descriptions.py` has JSON and tables, `wrong_pixels.py` images
and masks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

Maker = Callable[[Path], None]


class Wrong(NamedTuple):
    """One wrong dataset."""

    base: Maker
    """Writes the sound one into an empty folder."""

    spoil: Maker
    """Makes it wrong."""

    words: tuple[str, ...]
    """That the answer must hold: the file, and what to do."""

    data: str
    """What the command is given, below the folder."""

    flags: tuple[str, ...]
    """Of the command."""


CORPUS: dict[str, Wrong] = {}


def wrong(base: Maker, *words: str, data: str = "", flags: tuple[str, ...] = ()) -> Callable[[Maker], Maker]:
    """Enters the function that it decorates into the corpus, by its name."""

    def enter(spoil: Maker) -> Maker:
        assert spoil.__name__ not in CORPUS
        CORPUS[spoil.__name__] = Wrong(base, spoil, words, data, flags)
        return spoil

    return enter


def truth(seed: int, size: tuple[int, ...] = (16, 18)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[..., 4 : 9 + seed % 3, 5:12] = 1
    return mask


def picture(seed: int, size: tuple[int, ...] = (16, 18)) -> np.ndarray:
    return (60 + 90 * truth(seed, size) + np.random.RandomState(seed).randint(0, 60, size)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)


def save_volume(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (0.7, 0.8, 3.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[: image.GetDimension()])
    sitk.WriteImage(image, str(path))


def describe(root: Path, **changes: Any) -> None:
    """Write dataset.json; a change to None leaves a key out."""
    content = {
        "channel_names": {"0": "MR"}, "labels": {"background": 0, "disc": 1}, "numTraining": 3, "file_ending": ".png",
    }  # fmt: skip
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def nothing(root: Path) -> None:
    """An empty folder."""


def pairs(root: Path) -> None:
    """images/ and masks/ of three cases: a, b, c."""
    for seed, name in enumerate("abc"):
        save(root / "images" / f"{name}.png", picture(seed))
        save(root / "masks" / f"{name}.png", truth(seed) * 255)


def side_by_side(root: Path) -> None:
    """Images and masks in one folder."""
    for seed, name in enumerate("abc"):
        save(root / f"{name}.png", picture(seed))
        save(root / f"{name}_mask.png", truth(seed) * 255)


def nnunet(root: Path) -> None:
    for seed, name in enumerate("abc"):
        save(root / "imagesTr" / f"{name}_0000.png", picture(seed))
        save(root / "labelsTr" / f"{name}.png", truth(seed))
    describe(root)


def volumes(root: Path, ending: str = ".nii.gz") -> None:
    """The same as volumes, in nnU-Net's layout."""
    size = (3, 16, 18)
    for seed, name in enumerate("abc"):
        save_volume(root / "imagesTr" / f"{name}_0000{ending}", picture(seed, size).astype(np.int16))
        save_volume(root / "labelsTr" / f"{name}{ending}", truth(seed, size))
    describe(root, file_ending=ending)


def nrrds(root: Path) -> None:
    volumes(root, ".nrrd")


def cut(path: Path, share: float = 0.6) -> None:
    """Keep the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


# ---- folders and names


@wrong(nothing, "wrong", "holds 0 images and 0 masks; give a folder with")
def an_empty_folder(root: Path) -> None: ...


@wrong(nothing, "nowhere", "does not exist; give the folder", data="nowhere")
def a_folder_that_does_not_exist(root: Path) -> None: ...


@wrong(pairs, "images/a.png is not a folder; give the folder", data="images/a.png")
def a_file_in_the_place_of_a_folder(root: Path) -> None: ...


@wrong(pairs, "images/b.png has no mask", "images/c.png has no mask", "add, rename or remove files")
def masks_that_are_missing(root: Path) -> None:
    (root / "masks" / "b.png").unlink()
    (root / "masks" / "c.png").unlink()


@wrong(pairs, "masks/b.png has no image", "add, rename or remove files")
def an_image_that_is_missing(root: Path) -> None:
    (root / "images" / "b.png").unlink()


@wrong(side_by_side, "b_mask.png has no image", "c.png has no mask", "add, rename or remove files")
def lonely_halves_side_by_side(root: Path) -> None:
    (root / "b.png").unlink()
    (root / "c_mask.png").unlink()


@wrong(pairs, "has a folder images but no masks beside it; name their folder masks")
def no_folder_of_masks(root: Path) -> None:
    (root / "masks").rename(root / "truth")


@wrong(pairs, "holds 0 images and 3 masks", "give a folder with")
def an_empty_folder_of_images(root: Path) -> None:
    shutil.rmtree(root / "images")
    (root / "images").mkdir()


@wrong(pairs, "holds 3 images and 0 masks", "give a folder with")
def an_empty_folder_of_masks(root: Path) -> None:
    shutil.rmtree(root / "masks")
    (root / "masks").mkdir()


@wrong(nothing, "holds 2 images and 0 masks; give a folder with")
def images_without_any_mask(root: Path) -> None:
    save(root / "a.png", picture(0))
    save(root / "b.png", picture(1))


@wrong(nothing, "holds 0 images and 0 masks; give a folder with")
def files_of_unknown_formats(root: Path) -> None:
    for name in ("images/a.docx", "images/b.svg", "masks/a.docx", "masks/b.svg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("hello")


@wrong(pairs, "2 files in", "images are named b", "add, rename or remove files")
def two_images_of_one_name(root: Path) -> None:
    save(root / "images" / "b.jpg", picture(1))


@wrong(pairs, "B and b differ only in small and capital letters", "add, rename or remove files")
def names_that_differ_in_capital_letters_only(root: Path) -> None:
    save(root / "images" / "B.png", picture(1))
    save(root / "masks" / "B.png", truth(1))


@wrong(nnunet, "B and b differ only in small and capital letters", "rename them")
def names_of_nnunet_that_differ_in_capital_letters_only(root: Path) -> None:
    save(root / "imagesTr" / "B_0000.png", picture(1))
    save(root / "labelsTr" / "B.png", truth(1))


@wrong(pairs, "images/again is a symbolic link that leads back to", "remove it")
def a_loop_of_folders(root: Path) -> None:
    (root / "images" / "again").symlink_to(root / "images")


@wrong(pairs, "images/b.png is a symbolic link that leads nowhere; remove or repair it")
def a_link_to_itself(root: Path) -> None:
    (root / "images" / "b.png").unlink()
    (root / "images" / "b.png").symlink_to("b.png")


@wrong(
    pairs, "images/b.png is a symbolic link that leads nowhere", "masks/c.png is a symbolic link that leads nowhere",
    "remove or repair it",
)  # fmt: skip
def links_that_lead_nowhere(root: Path) -> None:
    for path in (root / "images" / "b.png", root / "masks" / "c.png"):
        path.unlink()
        path.symlink_to("/nowhere/at/all.png")


@wrong(pairs, "masks is a symbolic link that leads nowhere; remove or repair it")
def a_folder_of_masks_that_leads_nowhere(root: Path) -> None:
    shutil.rmtree(root / "masks")
    (root / "masks").symlink_to("/nowhere/at/all")


@wrong(nnunet, "labelsTr/b.png is missing", "labelsTr/c.png is missing", "labelsTr/d.png has no image")
def cases_of_nnunet_that_lack_a_half(root: Path) -> None:
    (root / "labelsTr" / "b.png").unlink()
    (root / "labelsTr" / "c.png").rename(root / "labelsTr" / "d.png")


@wrong(nnunet, "no folder labelsTr; an nnU-Net dataset keeps its training data there")
def nnunet_without_its_masks(root: Path) -> None:
    shutil.rmtree(root / "labelsTr")


@wrong(nnunet, "dataset.json does not exist; it should be the description of an nnU-Net dataset")
def nnunet_without_its_description(root: Path) -> None:
    (root / "dataset.json").unlink()


@wrong(nnunet, "imagesTr holds no file that ends with .png; check file_ending in dataset.json")
def nnunet_without_images(root: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(root / folder)
        (root / folder).mkdir()


@wrong(nnunet, "don't end with .png", "imagesTr/d_0000.tif")
def nnunet_with_another_format(root: Path) -> None:
    save(root / "imagesTr" / "d_0000.tif", picture(3))
    save(root / "labelsTr" / "d.tif", truth(3))


@wrong(nnunet, "b should have one file per channel (2), or one with all, but has b_0001.png", "c_0001.png")
def nnunet_with_channels_that_are_missing(root: Path) -> None:
    describe(root, channel_names={"0": "T1", "1": "T2"})
    save(root / "imagesTr" / "a_0001.png", picture(0))
    (root / "imagesTr" / "b_0000.png").rename(root / "imagesTr" / "b_0001.png")
    (root / "imagesTr" / "c_0000.png").rename(root / "imagesTr" / "c_0001.png")


@wrong(pairs, r"images/b\nc.png can't be read", "is it whole?")
def a_broken_file_with_a_newline_in_its_name(root: Path) -> None:
    save(root / "masks" / "b\nc.png", truth(1))
    (root / "images" / "b\nc.png").write_text("hello")


@wrong(pairs, r"'\udcff' is no text in UTF-8", "add, rename or remove files")
def a_name_that_is_no_text(root: Path) -> None:
    for folder in ("images", "masks"):
        shutil.copy(root / folder / "b.png", os.fsencode(root / folder) + b"/\xff.png")


@wrong(nnunet, r"'\udcff' is no text in UTF-8", "rename them")
def a_name_of_nnunet_that_is_no_text(root: Path) -> None:
    shutil.copy(root / "imagesTr" / "b_0000.png", os.fsencode(root / "imagesTr") + b"/\xff_0000.png")
    shutil.copy(root / "labelsTr" / "b.png", os.fsencode(root / "labelsTr") + b"/\xff.png")


@wrong(pairs, "images/b.png is neither a file nor a folder; remove it")
def a_pipe_in_the_place_of_an_image(root: Path) -> None:
    (root / "images" / "b.png").unlink()
    os.mkfifo(root / "images" / "b.png")


# ---- files


def spoil_file(name: str, base: Maker, path: str, *words: str, content: bytes | None = None) -> None:
    """Enters a dataset one of whose files is cut, or holds something else."""

    def spoil(root: Path) -> None:
        assert (root / path).exists()
        if content is None:
            cut(root / path)
        else:
            (root / path).write_bytes(content)

    spoil.__name__ = name
    wrong(base, path, *words)(spoil)


def in_format(ending: str, **options: Any) -> Maker:
    """Pairs whose images have this ending."""

    def base(root: Path) -> None:
        pairs(root)
        for path in (root / "images").iterdir():
            pixels = np.asarray(Image.open(path))
            path.unlink()
            if ending in (".nii", ".mha"):
                save_volume(path.with_suffix(ending), pixels[None].astype(np.float32))
            else:
                as_colours = ending == ".bmp"  # others begin with a palette, which would be cut
                save(path.with_suffix(ending), np.stack([pixels] * 3, -1) if as_colours else pixels, **options)

    return base


WHOLE = ("can't be read", "is it whole?")
for ending in (".png", ".jpg", ".bmp", ".tif", ".nii", ".mha"):
    spoil_file(f"a_truncated_{ending[1:]}", in_format(ending), f"images/b{ending}", *WHOLE)
    spoil_file(f"an_empty_{ending[1:]}", in_format(ending), f"images/b{ending}", *WHOLE, content=b"")
spoil_file("a_truncated_compressed_tif", in_format(".tif", compression="zlib"), "images/b.tif", *WHOLE)
spoil_file("a_truncated_nii_gz", volumes, "imagesTr/b_0000.nii.gz", *WHOLE)
spoil_file("an_empty_nii_gz", volumes, "imagesTr/b_0000.nii.gz", *WHOLE, content=b"")
spoil_file("a_truncated_mask_nii_gz", volumes, "labelsTr/b.nii.gz", *WHOLE)
spoil_file("a_truncated_nrrd", nrrds, "imagesTr/b_0000.nrrd", *WHOLE)
spoil_file("an_empty_nrrd", nrrds, "imagesTr/b_0000.nrrd", *WHOLE, content=b"")
spoil_file("an_empty_mask", pairs, "masks/b.png", *WHOLE, content=b"")
spoil_file("a_web_page_named_png", pairs, "images/b.png", *WHOLE, content=b"<html>404 not found</html>")
spoil_file("a_nii_that_is_not_compressed_named_gz", volumes, "imagesTr/b_0000.nii.gz", *WHOLE, content=b"\0" * 400)
spoil_file(
    "an_nrrd_whose_pixels_are_elsewhere", nrrds, "imagesTr/b_0000.nrrd", *WHOLE,
    content=b"NRRD0004\ntype: short\ndimension: 3\nsizes: 18 16 3\nencoding: raw\ndata file: elsewhere.raw\n\n",
)  # fmt: skip
spoil_file(
    "an_nrrd_that_promises_more_than_any_memory", nrrds, "imagesTr/b_0000.nrrd", *WHOLE,
    content=b"NRRD0004\ntype: double\ndimension: 3\nsizes: 90000 90000 9000\nencoding: raw\n\n1234",
)  # fmt: skip


@wrong(pairs, "images/a.png can't be read", "images/c.png can't be read", "masks/b.png can't be read", "is it whole?")
def several_broken_files_at_once(root: Path) -> None:
    for name in ("images/a.png", "masks/b.png", "images/c.png"):
        cut(root / name)


@wrong(pairs, "images/b.png can't be read", "masks/b.png can't be read")
def both_halves_of_a_case_are_broken(root: Path) -> None:
    for name in ("images/b.png", "masks/b.png"):
        cut(root / name)


@wrong(pairs, "images/b.png can't be read", "is it whole?")
def a_header_that_promises_20000_x_20000_pixels(root: Path) -> None:
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (root / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
