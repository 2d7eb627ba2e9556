"""What is written of a segmented image: its mask, and on demand probabilities, uncertainty and an overlay.

The mask lies in the folder itself, everything else in folders in it, so that a folder of masks is nothing but that.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.data.formats.dicom import is_film
from dinounet.data.formats.dicom_seg import require_highdicom, write_segmentation
from dinounet.data.formats.nifti import NIFTI_ENDINGS
from dinounet.data.geometry import Geometry, Volume
from dinounet.data.images import (
    FLAT_ENDINGS,
    SEGMENTATION_ENDING,
    VOLUME_ENDINGS,
    colours_of,
    ending_for_labels,
    ending_of,
    paint,
    to_grey_levels,
    write_image,
    write_mask,
)
from dinounet.data.layouts import Case
from dinounet.data.preprocessing import in_slice
from dinounet.errors import ConfigError, DataError
from dinounet.inference.postprocessing import Segmentation
from dinounet.io import PROBABILITIES, atomic_write, summarize
from dinounet.schema.labels import Labels
from dinounet.system import versions

UNCERTAINTY, OVERLAYS = "uncertainty", "overlays"
"""Folders beside the masks, as is PROBABILITIES."""

IN_MEMORY = 1 << 28
"""Bytes up to which an array of probabilities is held in memory; larger ones lie on the disk until they are packed."""

SIDE_OF_OVERLAY = 1536
"""Pixels that an overlay's longest side has at most."""

SLICES_OF_OVERLAY = 12
"""That are shown of a volume at most, evenly spaced over those with something found."""

OPACITY = 0.35
"""Opacity of a class in an overlay; its outline is opaque."""


@dataclass(frozen=True)
class Outputs:
    """Which files a case leaves."""

    folder: Path
    """Folder of the masks."""

    endings: Mapping[str, str]
    """Format of each case's mask, by its name; see `choose_endings`."""

    probabilities: bool = False
    """`probabilities/<case>.npz`: the array `probabilities`, float16 (K, Z, Y, X), as nnU-Net names it."""

    uncertainty: bool = False
    """`uncertainty/<case>_entropy` and, of several views, `<case>_disagreement`: a volume, or a TIFF, of float32."""

    overlay: bool = False
    """`overlays/<case>.png`: the image with what was found in colour."""

    def mask_of(self, case: Case) -> Path:
        """Where a case's mask lies."""
        return self.folder / f"{case.name}{self.endings[case.name]}"

    def require_place(self, case: Case, image: Volume) -> None:
        """Raise a DataError if the format of a case's mask can't tell where its image lies."""
        ending = self.endings[case.name]
        if image.geometry is None or not image.geometry.is_sheared:
            return
        if ending not in (*NIFTI_ENDINGS, *FLAT_ENDINGS, ending_of(image.source)):
            raise DataError(
                f"{image.source} is sheared: its axes are not at right angles, which {ending} can't store; predict it "
                "with --format .nii.gz, or resample it onto a straight grid"
            )

    def are_there(self, case: Case) -> bool:
        """Whether a case has been predicted before."""
        wanted = [self.mask_of(case)]
        if self.probabilities:
            wanted.append(self.folder / PROBABILITIES / f"{case.name}.npz")
        if self.overlay:
            wanted.append(self.folder / OVERLAYS / f"{case.name}.png")
        if self.uncertainty:
            wanted.append(self.folder / UNCERTAINTY / f"{case.name}_entropy{self._ending_of_maps(case)}")
        return all(path.is_file() for path in wanted)

    def write(self, case: Case, found: Segmentation, labels: Labels) -> Path:
        """Write all of a case's files, the mask last, so that a mask tells that the others are there."""
        if found.probabilities is not None:
            self._write_probabilities(case, found.probabilities)
        maps = {"entropy": found.entropy, "disagreement": found.disagreement}
        for name, values in maps.items():
            if values is not None:
                path = self._in(UNCERTAINTY) / f"{case.name}_{name}{self._ending_of_maps(case)}"
                _write_map(path, values, found.volume.geometry)
        if self.overlay:
            with atomic_write(self._in(OVERLAYS) / f"{case.name}.png") as temporary:
                _draw(found, labels).save(temporary)
        path = self.mask_of(case)
        if ending_of(path) == SEGMENTATION_ENDING:
            with atomic_write(path) as temporary:
                write_segmentation(
                    temporary, found.labels, found.volume.source, labels.classes, versions().get("dinounet", "unknown")
                )
        else:
            write_mask(path, found.labels, like=found.volume, colours=labels.palette)
        return path

    def _in(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def _ending_of_maps(self, case: Case) -> str:
        ending = self.endings[case.name]
        if ending in VOLUME_ENDINGS:
            return ending
        return ".nii.gz" if ending == SEGMENTATION_ENDING else ".tif"

    def _write_probabilities(self, case: Case, values: np.ndarray) -> None:
        """As NumPy's savez_compressed, but from wherever the array lies, a part at a time."""
        with (
            atomic_write(self._in(PROBABILITIES) / f"{case.name}.npz") as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
            packed.open("probabilities.npy", "w", force_zip64=True) as file,
        ):
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
            for part in values:
                for plane in part:
                    file.write(np.ascontiguousarray(plane).data)


@contextmanager
def allocated(folder: Path) -> Iterator[Any]:
    """What makes arrays: small ones in memory, large ones in files in this folder, which are gone after the block."""
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder, ignore_cleanup_errors=True) as temporary:

        def make(shape: tuple[int, ...], dtype: type) -> np.ndarray:
            if math.prod(shape) * np.dtype(dtype).itemsize <= IN_MEMORY:
                return np.zeros(shape, dtype)
            with tempfile.NamedTemporaryFile(dir=temporary, delete=False) as file:
                return np.memmap(file.name, dtype, "w+", shape=shape)

        yield make


def _write_map(path: Path, values: np.ndarray, geometry: Geometry | None) -> None:
    if ending_of(path) in VOLUME_ENDINGS:
        write_image(path, values.astype(np.float32), geometry)
        return
    import tifffile

    with atomic_write(path) as temporary:
        stack = values if len(values) > 1 else values[0]
        tifffile.imwrite(temporary, stack.astype(np.float32), compression="zlib", photometric="minisblack")


def _draw(found: Segmentation, known: Labels) -> Any:
    """The image with what was found in colour; of a volume, slices in rows."""
    import PIL.Image
    import PIL.ImageDraw

    labels, volume, axis = found.labels, found.volume, found.axis
    shown = _slices_to_show(labels, axis)
    columns = math.ceil(math.sqrt(len(shown)))
    size = tuple(np.delete(labels.shape, axis).tolist())
    every = max(1, math.ceil(max(size) * columns / SIDE_OF_OVERLAY))
    pictures = []
    for index in shown:
        pixels = _read_thinly(volume, axis, index, every)
        channels = pixels if len(pixels) == 3 else pixels[:1]
        base = to_grey_levels(channels, *np.percentile(channels, (0.5, 99.5)))
        here = labels[in_slice(axis, index)][::every, ::every]
        numbers = known.foreground
        regions = [(np.isin(here, numbers[name]), colour) for name, colour in colours_of(numbers).items()]
        pictures.append(paint(base, regions, OPACITY))
    rows = math.ceil(len(pictures) / columns)
    sheet = np.zeros((rows * pictures[0].shape[0], columns * pictures[0].shape[1], 3), np.uint8)
    corners = [(place // columns * len(one), place % columns * one.shape[1]) for place, one in enumerate(pictures)]
    for (top, left), picture in zip(corners, pictures, strict=True):
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    drawn = PIL.Image.fromarray(sheet)
    if not volume.is_flat:
        for (top, left), index in zip(corners, shown, strict=True):
            PIL.ImageDraw.Draw(drawn).text((left + 3, top + 1), f"slice {index + 1}", fill="white")
    return drawn


def _slices_to_show(labels: np.ndarray, axis: int) -> list[int]:
    others = tuple(other for other in range(3) if other != axis)
    found = np.flatnonzero(labels.any(axis=others))
    if not len(found):
        found = np.array([labels.shape[axis] // 2])
    if len(found) <= SLICES_OF_OVERLAY:
        return found.tolist()
    return found[np.linspace(0, len(found) - 1, SLICES_OF_OVERLAY).round().astype(int)].tolist()


def _read_thinly(volume: Volume, axis: int, index: int, every: int) -> np.ndarray:
    """Every so many pixels of a slice, (C, H, W), which may lie in its file."""
    rows = np.delete(volume.shape, axis)[0]
    together = 64 * every
    parts = [
        volume.array[in_slice(axis, index, slice(first, first + together))][:, ::every, ::every]
        for first in range(0, rows, together)
    ]
    return np.concatenate(parts, axis=1)


def choose_endings(cases: Sequence[Case], format: str | None, largest: int) -> dict[str, str]:
    """In which format each case's mask is to be written: the image's own, or one for all.

    Args:
        cases: to be predicted.
        format: of all masks; None: see `own_ending`.
        largest: number that a mask may hold.

    Raises:
        ConfigError: masks can't be written in that format, or highdicom isn't installed and is needed.
    """
    known = (*VOLUME_ENDINGS, SEGMENTATION_ENDING)
    if format is not None and format not in known:
        raise ConfigError(f"--format is {format}; masks of every size and place can be {', '.join(known)}")
    others = [str(case.images[0]) for case in cases if not case.images[0].is_dir()]
    if format == SEGMENTATION_ENDING and others:
        raise ConfigError(f"--format is {format}, which is for DICOM series only, but there is {summarize(others, 3)}")
    films = [case.name for case in cases if format in (None, SEGMENTATION_ENDING) and _is_film(case)]
    if format == SEGMENTATION_ENDING and films:
        raise ConfigError(
            f"--format is {format}, but {summarize(films, 3)} are frames that have no position, for which DICOM has no "
            "segmentation; leave it out for TIFF, or choose .nii.gz"
        )
    endings = {case.name: format or own_ending(case, largest) for case in cases}
    if format is None:
        endings |= {case.name: SEGMENTATION_ENDING for case in cases if case.images[0].is_dir()}
        endings |= dict.fromkeys(films, ".tif")
    if SEGMENTATION_ENDING in endings.values():
        require_highdicom()
    return endings


def _is_film(case: Case) -> bool:
    return case.images[0].is_dir() and is_film(case.images[0])


def own_ending(case: Case, largest: int) -> str:
    """The ending of a case's mask: its image's, or for DICOM series NIfTI, which needs no other package.

    PNG or TIFF for images in a format that would change labels (JPEG) or can't hold numbers up to the largest.
    """
    return ending_for_labels(ending_of(case.images[0]) or ".nii.gz", largest)
