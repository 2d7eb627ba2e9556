"""Pictures, PNG, JPEG and BMP, through Pillow: (C, 1, Y, X) in the type that they are stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dinounet.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PictureFile


JPEG_ENDINGS = (".jpg", ".jpeg")
PICTURE_ENDINGS = (".png", ".bmp", *JPEG_ENDINGS)

ORIENTATION = 0x0112
"""EXIF's and TIFF's tag that asks viewers to turn the image; 1 is as stored."""

Purpose = Literal["image", "mask"]


def read_picture(path: Path, of: Purpose) -> np.ndarray:
    """Pixels (C, 1, Y, X); a mask's palette is taken for mere colours of its numbers.

    Raises:
        DataError: as `picture_pixels`.
    """
    with open_picture(path) as file:
        otherwise = None
        if _has_deep_colours(path):
            otherwise = _read_deep_colours
        elif file.format == "BMP" and file.mode == "1" and _bits_of_bmp(path) > 1:
            otherwise = _read_two_greys
        return picture_pixels(file, path, of, otherwise)


def read_palette(path: Path) -> dict[int, str] | None:
    """The colour of each number, "#ff0000", of a picture that has a palette."""
    with open_picture(path) as picture:
        if picture.mode != "P":
            return None
        colours = bytes(picture.getpalette("RGB") or [])
    return {number: f"#{colours[3 * number : 3 * number + 3].hex()}" for number in range(len(colours) // 3)}


def write_picture(path: Path, labels: np.ndarray, colours: Mapping[int, str] | None = None) -> None:
    """Write labels (1, Y, X); colours of numbers ("#ff0000") become their palette."""
    from PIL import Image

    image = Image.fromarray(labels[0])
    if colours is not None:
        image.putpalette(to_palette(colours).tobytes())
    image.save(path)


def to_palette(colours: Mapping[int, str]) -> np.ndarray:
    """(256, 3) red, green and blue of each number; black of those without a colour."""
    palette = np.zeros((256, 3), np.uint8)
    for number, colour in colours.items():
        palette[number] = list(bytes.fromhex(colour[1:]))
    return palette


def picture_pixels(
    picture: PictureFile, path: Path, of: Purpose = "image", otherwise: Callable[[Path], np.ndarray] | None = None
) -> np.ndarray:
    """Pixels (C, 1, Y, X) of a picture of Pillow's.

    Args:
        picture: opened, not necessarily loaded.
        path: its file, or what it is called in errors.
        of: image or mask.
        otherwise: reads the file where Pillow would not give what is stored.

    Raises:
        DataError: what is stored isn't clear, or would not come as stored: several pages, an image's palette,
            transparency, another colour space than RGB, orientation tags.
    """
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise DataError(f"{path} holds {pages} pages; split it into files of one page")
    refuse_turned(path, picture.getexif().get(ORIENTATION, 1))
    if picture.mode == "P" and of == "image":
        raise DataError(f"{path} has a palette; convert it to grey levels or RGB")
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise DataError(f"{path} has its colours in {picture.mode}; convert it to RGB")
    pixels = otherwise(path) if otherwise else np.asarray(picture)
    if "A" in picture.getbands():
        pixels = without_alpha(path, pixels, of)
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    return np.moveaxis(pixels if pixels.ndim == 3 else pixels[..., None], -1, 0)[:, None]


def open_picture(path: Path) -> PictureFile:
    """Open a PNG, JPEG or BMP, by what it begins with, of any size.

    By Pillow's class for the format, because `Image.open` applies a limit that protects servers from strangers' files.
    That limit is a global variable, which other threads rely on, so that it can't be lifted for one call.

    Raises:
        ValueError: it is none of them.
    """
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.JpegImagePlugin import jpeg_factory
    from PIL.PngImagePlugin import PngImageFile

    openers: dict[bytes, Callable[[str], PictureFile]] = {
        b"\x89PNG\r\n\x1a\n": PngImageFile,
        b"\xff\xd8\xff": jpeg_factory,  # type: ignore[dict-item]  # it takes a path where it takes a file
        b"BM": BmpImageFile,
    }
    with path.open("rb") as file:
        beginning = file.read(8)
    for magic, opener in openers.items():
        if beginning.startswith(magic):
            return opener(str(path))
    raise ValueError("it begins as no PNG, JPEG or BMP does")


def _has_deep_colours(path: Path) -> bool:
    """Whether it is a PNG with 16 bits a colour, of which Pillow drops 8 (grey ones it reads in full)."""
    with path.open("rb") as file:
        header = file.read(26)
    return header.startswith(b"\x89PNG") and len(header) == 26 and header[24] == 16 and header[25] != 0


def _read_deep_colours(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _bits_of_bmp(path: Path) -> int:
    """Bits a pixel, as a BMP's header says."""
    with path.open("rb") as file:
        return file.read(30)[28]


def _read_two_greys(path: Path) -> np.ndarray:
    """A BMP with more than a bit a pixel and a palette of black and white, of which Pillow takes each byte for eight
    pixels."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[..., 0] > 0


def without_alpha(path: Path, pixels: np.ndarray, of: Purpose) -> np.ndarray:
    """The other channels of (..., C), if the last hides nothing; of a mask also where it hides background, which is 0.

    Raises:
        DataError: it hides something, or lets it shine through.
    """
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
    shown, alpha = pixels[..., :-1], pixels[..., -1]
    if (alpha == opaque).all() or (of == "mask" and (alpha[shown.any(-1)] == opaque).all()):
        return shown
    if of == "image":
        raise DataError(f"{path} is partly transparent; remove its alpha channel: mogrify -alpha off (ImageMagick)")
    raise DataError(
        f"{path} is a mask that is transparent where it holds more than 0; if what is hidden there is background: "
        "mogrify -background black -alpha remove -alpha off (ImageMagick); if it counts: mogrify -alpha off"
    )


def refuse_turned(path: Path, orientation: int) -> None:
    """Raise a DataError if this value of ORIENTATION asks viewers to turn the image."""
    if orientation not in (0, 1):
        raise DataError(
            f"{path} asks viewers to turn it (orientation {orientation}), so that a mask may fit what is stored or "
            "what is shown; store it as shown: mogrify -auto-orient (ImageMagick)"
        )
