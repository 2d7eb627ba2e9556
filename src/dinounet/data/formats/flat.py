"""Flat images and stacks of them: PNG, JPEG and BMP through Pillow, TIFF through tifffile.

All come as (C, Z, Y, X) in the type that they are stored in. TIFF may hold several pages: slices, or channels where its
axes say so (ImageJ's and OME's do).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dinounet.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PictureFile
    from tifffile import TiffPageSeries

JPEG_ENDINGS = (".jpg", ".jpeg")
TIFF_ENDINGS = (".ome.tif", ".ome.tiff", ".tif", ".tiff")
FLAT_ENDINGS = (".png", ".bmp", *TIFF_ENDINGS, *JPEG_ENDINGS)

CHANNEL_AXES, SLICE_AXES = "CS", "ZIQ"
"""tifffile's letters: channel and sample; depth, a page of no known meaning, and an axis of none."""

ORIENTATION = 0x0112
"""EXIF's and TIFF's tag that asks viewers to turn the image; 1 is as stored."""

Purpose = Literal["image", "mask"]


def read_flat(path: Path, of: Purpose) -> np.ndarray:
    """Pixels (C, Z, Y, X); a mask's palette is taken for mere colours of its numbers.

    Raises:
        DataError: what is stored isn't clear, or would not come as stored: a palette, transparency, another colour
            space than RGB, orientation tags, axes of unknown meaning.
    """
    read = _read_tiff if path.name.lower().endswith(TIFF_ENDINGS) else _read_picture
    pixels = read(path, of)
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def write_flat(path: Path, labels: np.ndarray, colours: Mapping[int, str] | None = None) -> None:
    """Write labels (Z, Y, X), several slices as TIFF only; colours of numbers ("#ff0000") become their palette."""
    palette = None
    if colours is not None:
        palette = np.zeros((256, 3), np.uint8)
        for number, colour in colours.items():
            palette[number] = list(bytes.fromhex(colour[1:]))
    if path.name.lower().endswith(TIFF_ENDINGS):
        import tifffile

        stack = labels if len(labels) > 1 else labels[0]
        shown: dict[str, Any] = {"photometric": "minisblack"}
        if palette is not None:
            shown = {"photometric": "palette", "colormap": palette.T.astype(np.uint16) * 257}
        tifffile.imwrite(path, stack, **shown, compression="zlib", metadata={"axes": "ZYX"[-stack.ndim :]})
        return
    from PIL import Image

    image = Image.fromarray(labels[0])
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path)


def _read_picture(path: Path, of: Purpose) -> np.ndarray:
    from PIL import Image

    with without_limit(), Image.open(path) as file:
        return picture_pixels(file, path, of, deep=_read_deep_colours if _has_deep_colours(path) else None)


def picture_pixels(
    picture: PictureFile, path: Path, of: Purpose = "image", deep: Callable[[Path], np.ndarray] | None = None
) -> np.ndarray:
    """Pixels (C, 1, Y, X) of a picture of Pillow's.

    Args:
        picture: opened, not necessarily loaded.
        path: its file, or what it is called in errors.
        of: image or mask.
        deep: reads what Pillow would read with fewer bits than are stored.

    Raises:
        DataError: as `read_flat`.
    """
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise DataError(f"{path} holds {pages} pages; split it into files of one page")
    _refuse_turned(path, picture.getexif().get(ORIENTATION, 1))
    if picture.mode == "P" and of == "image":
        raise DataError(f"{path} has a palette; convert it to grey levels or RGB")
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise DataError(f"{path} has its colours in {picture.mode}; convert it to RGB")
    pixels = deep(path) if deep else np.asarray(picture)
    if "A" in picture.getbands():
        pixels = _without_alpha(path, pixels)
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    return np.moveaxis(pixels if pixels.ndim == 3 else pixels[..., None], -1, 0)[:, None]


@contextmanager
def without_limit() -> Iterator[None]:
    """Without Pillow's limit on pixels, which protects servers from strangers' files."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _has_deep_colours(path: Path) -> bool:
    """Whether it is a PNG with 16 bits a colour, of which Pillow drops 8 (grey ones it reads in full)."""
    with path.open("rb") as file:
        header = file.read(26)
    return header.startswith(b"\x89PNG") and len(header) == 26 and header[24] == 16 and header[25] != 0


def _read_deep_colours(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _without_alpha(path: Path, pixels: np.ndarray) -> np.ndarray:
    """The other channels of (..., C), if the last hides nothing."""
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
    if (pixels[..., -1] != opaque).any():
        raise DataError(f"{path} is partly transparent; remove its alpha channel")
    return pixels[..., :-1]


def _refuse_turned(path: Path, orientation: int) -> None:
    if orientation not in (0, 1):
        raise DataError(
            f"{path} asks viewers to turn it (orientation {orientation}), so that a mask may fit what is stored or "
            "what is shown; store it as it is shown, such as by ImageMagick's: mogrify -auto-orient"
        )


def _read_tiff(path: Path, of: Purpose) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise DataError(f"{path} holds {len(file.series)} images of other sizes or types; split it into one a file")
        series = file.series[0]
        page: Any = series.keyframe
        _refuse_turned(path, page.tags.valueof(ORIENTATION, 1))
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
        pixels = np.moveaxis(_without_alpha(path, np.moveaxis(pixels, samples, -1)), -1, samples)
    axes = [*order, *(axis for axis in range(pixels.ndim) if axis not in order)]  # the others are of length 1
    turned = pixels.transpose([axis for axis in axes if axis is not None])
    lengths = [1 if axis is None else pixels.shape[axis] for axis in order]
    return turned.reshape(lengths)


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
    """What tifffile decodes, or else, if it comes as stored, Pillow."""
    page: Any = series.keyframe
    try:
        pixels: np.ndarray = series.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    else:
        if page.photometric.name != "MINISWHITE":
            return pixels
        return ~pixels if pixels.dtype == bool else (2**page.bitspersample - 1) - pixels
    from PIL import Image

    with without_limit(), Image.open(path) as file:
        pages = []
        for part in series.pages:
            assert part is not None
            file.seek(part.index)
            pages.append(np.asarray(file))
    as_stored = series.dtype == pages[0].dtype and (page.samplesperpixel == 1 or page.planarconfig.name == "CONTIG")
    if not as_stored or sum(page.size for page in pages) != series.size:
        raise DataError(
            f"{path} is compressed by {page.compression.name}, which needs another package here: pip install "
            "imagecodecs; or save it uncompressed"
        )
    return np.stack(pages).reshape(series.shape)
