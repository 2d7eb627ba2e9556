"""Flat images that stay in their file and are read some rows at a time, through libvips: whole slides, maps, mosaics.

Only what comes exactly as `picture.py` and `tiff.py` would read it: grey or RGB, one page, no palette, transparency or
turning. All else is read whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.data.formats.picture import ORIENTATION, open_picture
from dinounet.data.formats.tiff import TIFF_ENDINGS
from dinounet.errors import DataError, reason_of

MODES = ("L", "RGB", "I;16")
"""Pillow's names of what PNG and JPEG may hold to be read so."""


@dataclass
class Rows:
    """Stands in for the array of a flat image, (C, 1, Y, X): `rows[..., 0, first:last, :]` reads some rows.

    The file is decoded once for each time that somebody goes through it from the top; rows that the last reading held
    are not decoded again.
    """

    path: Path
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    _region: Any = None
    _held: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0)))
    """(rows, X, C) that were read last."""
    _first: int = 0
    """The first of them."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """(C, rows, X) of `[..., 0, rows, :]`."""
        _, _, rows, _ = key
        first, last, _ = rows.indices(self.shape[2])
        if first >= last:  # which libvips takes for an error
            return np.empty((len(self), 0, self.shape[3]), self.dtype)
        if self._region is None or first < self._first:
            self._open()
        bottom = self._first + len(self._held)
        if last > bottom:
            kept = self._held[max(first - self._first, 0) :]
            self._first = max(first, bottom) - len(kept)
            self._held = np.concatenate([kept, self._read(max(first, bottom), last)])
        part = self._held[first - self._first : last - self._first]
        return np.moveaxis(part, -1, 0)

    def _open(self) -> None:
        import pyvips

        try:  # libvips remembers files by name, so that one that was replaced would be the old one
            image = pyvips.Image.new_from_file(str(self.path), access="sequential", revalidate=True, fail_on="error")
            self._region = pyvips.Region.new(image)
        except pyvips.Error as error:
            raise self._unreadable(error) from None
        self._held, self._first = np.empty((0, self.shape[3], len(self)), self.dtype), 0

    def _read(self, first: int, last: int) -> np.ndarray:
        import pyvips

        try:
            pixels = self._region.fetch(0, first, self.shape[3], last - first)
        except pyvips.Error as error:
            raise self._unreadable(error) from None
        found = np.frombuffer(pixels, self.dtype).reshape(last - first, self.shape[3], len(self))
        if self.dtype.kind == "f" and not np.isfinite(found).all():
            raise DataError(f"{self.path} holds NaN or infinity in its rows {first} to {last}; repair or exclude it")
        return found

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self.path} can't be read as an image ({reason_of(error, -1)}); is it whole?")


def look_into_rows(path: Path) -> Rows | None:
    """A flat image with its pixels still in the file; None if it is to be read whole."""
    try:
        found = (_tiff if path.name.lower().endswith(TIFF_ENDINGS) else _picture)(path)
    except Exception:  # the readers raise whatever they meet; reading it whole tells what is wrong
        return None
    return found and Rows(path, (found[0], 1, *found[1]), found[2])


Found = tuple[int, tuple[int, int], np.dtype[Any]]
"""Channels, rows and columns, and type."""


def _picture(path: Path) -> Found | None:
    with open_picture(path) as file:
        plain = file.format in ("PNG", "JPEG") and file.mode in MODES and "transparency" not in file.info
        if not plain or file.getexif().get(ORIENTATION, 1) not in (0, 1) or _libvips_differs(path):
            return None
        dtype = np.dtype(np.uint16 if file.mode == "I;16" else np.uint8)
        return len(file.getbands()), (file.height, file.width), dtype


def _libvips_differs(path: Path) -> bool:
    """Whether it is a PNG of less or more bits than Pillow's mode tells."""
    with path.open("rb") as file:
        header = file.read(26)
    return header.startswith(b"\x89PNG") and (header[24] < 8 or (header[24] == 16 and header[25] != 0))


def _tiff(path: Path) -> Found | None:
    import tifffile

    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1 or len(file.series[0].pages) != 1:
            return None
        page: Any = file.series[0].keyframe
        plain = page.photometric.name in ("MINISBLACK", "RGB") and not page.extrasamples
        plain = plain and page.tags.valueof(ORIENTATION, 1) in (0, 1)
        if not plain or page.samplesperpixel not in (1, 3) or page.imagedepth != 1 or page.bitspersample < 8:
            return None
        if page.samplesperpixel == 3 and page.planarconfig.name != "CONTIG":
            return None
        if page.dtype not in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64):
            return None
        return page.samplesperpixel, (page.imagelength, page.imagewidth), np.dtype(page.dtype)
