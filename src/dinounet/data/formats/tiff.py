"""TIFF through tifffile: flat images, and stacks of pages.

They come as (C, Z, Y, X) in the type that they are stored in, and with the numbers that are stored: that 0 is shown in
white (MinIsWhite, which tifffile gives to bool and ImageJ to inverting tables) changes none of them, as tifffile,
scikit-image and GDAL have it. Several pages are slices, or channels where the axes say so (ImageJ's and
OME's do).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinounet.data.formats.picture import ORIENTATION, Purpose, refuse_turned, to_palette, without_alpha
from dinounet.errors import DataError

if TYPE_CHECKING:
    from tifffile import TiffPageSeries


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
    """The colour of each number, "#ff0000", of a file whose pages have a palette; TIFF's has 16 bits a colour."""
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
