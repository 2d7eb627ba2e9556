"""Pictures: PNG, JPEG and BMP through Pillow, TIFF through tifffile.

They come as (C, Z, Y, X) in the type that they are stored in, Z = 1 but for TIFF, and with the numbers that are stored:
that a TIFF shows 0 in white (MinIsWhite, which tifffile gives to bool and ImageJ to inverting tables) changes none of
them, as tifffile, scikit-image and GDAL have it. Several pages of a TIFF are slices, or channels where the axes say so
(ImageJ's and OME's do).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dinounet.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PictureFile
    from tifffile import TiffPageSeries


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
        if depth_of_png(path) == (16, True):  # of which Pillow drops 8 bits; grey ones it reads in full
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


def depth_of_png(path: Path) -> tuple[int, bool]:
    """Bits a sample of a PNG, by its header, and whether it has more than grey levels; 8 for another file."""
    with path.open("rb") as file:
        header = file.read(26)
    is_png = header.startswith(b"\x89PNG") and len(header) == 26
    return (header[24], header[25] != 0) if is_png else (8, False)


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


TIFF_ENDINGS = (".ome.tif", ".ome.tiff", ".tif", ".tiff")

CHANNEL_AXES, SLICE_AXES = "CS", "ZIQ"
"""tifffile's letters: channel and sample; depth, a page of no known meaning, and an axis of none."""


def read_tiff(path: Path, of: Purpose) -> np.ndarray:
    """Pixels (C, Z, Y, X); a mask's palette is taken for mere colours of its numbers.

    Raises:
        DataError: what is stored isn't clear, or would not come as stored: a palette, transparency, another colour
            space than RGB, orientation tags, axes of unknown meaning.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        if not file.series:
            raise DataError(f"{path} holds no image; write it again")
        if len(file.series) != 1:
            raise DataError(f"{path} holds {len(file.series)} images of other sizes or types; split it into one a file")
        series = file.series[0]
        page: Any = series.keyframe
        refuse_turned(path, page.tags.valueof(ORIENTATION, 1))
        photometric = page.photometric.name
        if photometric == "PALETTE" and of == "image":
            raise DataError(f"{path} has a palette; convert it to grey levels or RGB")
        if photometric not in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR"):
            raise DataError(f"{path} has its colours in {photometric}; convert it to RGB")
        order = _understand_axes(path, series.axes, series.shape)
        pixels = _tiff_pixels(path, series)
        if photometric == "YCBCR" and page.compression.name != "JPEG":  # which is decoded into RGB
            raise DataError(f"{path} has its colours in YCbCr; convert it to RGB")
        has_alpha = bool(page.extrasamples) and page.extrasamples[-1].name in ("ASSOCALPHA", "UNASSALPHA")
    if pixels.dtype.kind not in "biuf":
        raise DataError(f"{path} holds numbers of the type {pixels.dtype}; save real ones")
    if has_alpha and "S" in series.axes:
        samples = series.axes.index("S")
        pixels = np.moveaxis(without_alpha(path, np.moveaxis(pixels, samples, -1), of), -1, samples)
    axes = [*order, *(axis for axis in range(pixels.ndim) if axis not in order)]  # the others are of length 1
    turned = pixels.transpose([axis for axis in axes if axis is not None])
    lengths = [1 if axis is None else pixels.shape[axis] for axis in order]
    turned = turned.reshape(lengths)
    return turned.astype(np.uint8) if turned.dtype == bool else turned


def read_tiff_palette(path: Path) -> dict[int, str] | None:
    """The colour of each number, "#ff0000", of a file whose pages have a palette; TIFF's has 16 bits per colour."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.series[0].keyframe
        if page.photometric.name != "PALETTE" or page.colormap is None:
            return None
        colours = (page.colormap.T >> 8).astype(np.uint8)
    return {number: f"#{colour.tobytes().hex()}" for number, colour in enumerate(colours)}


def write_tiff(path: Path, labels: np.ndarray, colours: Mapping[int, str] | None = None) -> None:
    """Write labels (Z, Y, X), a page a slice; colours of numbers ("#ff0000") become their palette."""
    import tifffile

    stack = labels if len(labels) > 1 else labels[0]
    shown: dict[str, Any] = {"photometric": "minisblack"}
    if colours is not None:
        shown = {"photometric": "palette", "colormap": to_palette(colours).T.astype(np.uint16) * 257}
    tifffile.imwrite(path, stack, **shown, compression="zlib", metadata={"axes": "ZYX"[-stack.ndim :]})


def _understand_axes(path: Path, axes: str, shape: tuple[int, ...]) -> tuple[int | None, int | None, int, int]:
    """Which of TIFF's axes are channels, slices, rows and columns; None: there is none."""
    long = [index for index, length in enumerate(shape) if length > 1 and axes[index] not in "YX"]
    channels = [index for index in long if axes[index] in CHANNEL_AXES]
    slices = [index for index in long if axes[index] in SLICE_AXES]
    if len(channels) > 1 or len(slices) > 1 or len(channels) + len(slices) < len(long) or not {*"YX"} <= {*axes}:
        sizes = ", ".join(f"{axis} {length}" for axis, length in zip(axes, shape, strict=True))
        raise DataError(
            f"{path} has axes that aren't clear ({sizes}); save one volume a file, with axes that say what is a slice "
            "and what a channel (ZYX, CYX or ZCYX, as ImageJ and OME do)"
        )
    return next(iter(channels), None), next(iter(slices), None), axes.index("Y"), axes.index("X")


def _tiff_pixels(path: Path, series: TiffPageSeries) -> np.ndarray:
    """The stored numbers as tifffile decodes them, or else, if they can be had from it, Pillow."""
    page: Any = series.keyframe
    try:
        stored: np.ndarray = series.asarray()
        return stored
    except (ImportError, KeyError):  # a module of Python's, or a compression, that isn't there
        pass
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
    from PIL.TiffImagePlugin import TiffImageFile

    pages: list[np.ndarray] = []
    # not `Image.open`, for its limit: see `open_picture`; a SyntaxError is a compression that Pillow doesn't know
    with suppress(SyntaxError), TiffImageFile(str(path)) as file:
        for part in series.pages:
            assert part is not None
            file.seek(part.index)
            pages.append(_as_stored(np.asarray(file), page))
    in_order = page.samplesperpixel == 1 or page.planarconfig.name == "CONTIG"
    if not pages or series.dtype != pages[0].dtype or not in_order or sum(one.size for one in pages) != series.size:
        raise DataError(
            f"{path} is compressed by {page.compression.name}, which needs another package here: pip install "
            "imagecodecs; or save it uncompressed"
        )
    return np.stack(pages).reshape(series.shape)


def _as_stored(pixels: np.ndarray, page: Any) -> np.ndarray:
    """The numbers that a page holds, of what Pillow makes of them: it turns MinIsWhite, and fills a byte."""
    if page.samplesperpixel > 1 or page.photometric.name not in ("MINISWHITE", "MINISBLACK") or page.bitspersample > 8:
        return pixels
    if page.photometric.name == "MINISWHITE":
        pixels = ~pixels if pixels.dtype == bool else 255 - pixels
    return pixels if pixels.dtype == bool else pixels // (255 // (2**page.bitspersample - 1))
