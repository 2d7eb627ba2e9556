"""What may be segmented: files, folders, patterns, DICOM series, arrays, and whether it is of the kind learned from."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from dinounet.data.dataset import find_cases, refuse_same_names
from dinounet.data.formats.dicom_objects import is_series
from dinounet.data.geometry import BodyAxis, Volume, body_axes
from dinounet.data.images import KNOWN, ending_of, unknown_format
from dinounet.data.pairs import Case, image_files
from dinounet.data.plan import DataPlan
from dinounet.data.stored import open_image
from dinounet.errors import ConfigError, DataError
from dinounet.files import join_some
from dinounet.inference.array_input import array_as_volume, picture_as_volume
from dinounet.memory import free_memory

if TYPE_CHECKING:
    import PIL.Image
    import torch

Image: TypeAlias = Union[str, Path, Sequence[str | Path], np.ndarray, "torch.Tensor", "PIL.Image.Image"]

MOST_HELD = 1 << 30
"""Bytes of an image that is read whole; a larger one stays in its file where its format allows it."""

PATTERN = "*?["
"""Characters of a pattern that shells replace by the files it fits."""


def as_volume(image: Image, plan: DataPlan, axes: str | None = None) -> tuple[Volume, bool]:
    """An image of any kind as a volume, and whether its labels are to be flat.

    Args:
        image: a path, a list of one path a channel, a picture, an array or a tensor.
        plan: of the data.
        axes: of an array, their names; see `array_as_volume`.

    Raises:
        UserError: it can't be read or understood, or the plan can't mean it.
    """
    import PIL.Image

    is_path = isinstance(image, str | os.PathLike)
    if axes is not None and (is_path or isinstance(image, PIL.Image.Image | list | tuple)):
        raise ConfigError("axes are for arrays, and files and pictures tell theirs; leave axes out")
    if isinstance(image, PIL.Image.Image):
        return picture_as_volume(image), True
    if not is_path and not isinstance(image, list | tuple):
        return array_as_volume(image, plan, axes)
    given: Any = image
    paths = [given] if is_path else list(given)
    if not paths:
        raise DataError("an empty list is no image; give a path, a list of one path a channel, or an array")
    if others := [path for path in paths if not isinstance(path, str | os.PathLike)]:
        kind = type(others[0]).__name__
        raise DataError(
            f"a list of {kind} is no image; give a list of one path a channel, or one array, as numpy.asarray makes of "
            "numbers"
        )
    volume = open_input(paths, plan)
    return volume, volume.is_flat


def open_input(paths: Sequence[str | Path], plan: DataPlan) -> Volume:
    """An image from one file a channel, or from one with several channels; a large one is left in its file.

    Raises:
        DataError: it can't be read, or doesn't tell the spacing that the network needs to know.
    """
    volume = open_image([Path(path) for path in paths], min(free_memory() // 4, MOST_HELD), plan.slice_axis)
    if plan.spacing is not None and volume.spacing is None and plan.unknown_spacing is None:
        raise DataError(
            f"{volume.source} doesn't tell its pixels' size in mm, but the run was trained at {plan.spacing[0]:.3g} x "
            f"{plan.spacing[1]:.3g} mm; save it in a format that does, such as .nii.gz"
        )
    return volume


def cut_otherwise(volume: Volume, plan: DataPlan) -> BodyAxis | None:
    """The axis of the body that a volume is cut along, if that is another one than most training volumes were."""
    learned, found = plan.fingerprint.axes, body_axes(volume)
    if learned is None or found is None or found[plan.slice_axis] == learned[plan.slice_axis]:
        return None
    return found[plan.slice_axis]


def tell_cut_otherwise(volumes: Mapping[str, BodyAxis], plan: DataPlan) -> str:
    """A sentence about volumes, by their names, that are cut along another axis of the body than those learned from."""
    learned = plan.fingerprint.axes
    assert learned is not None
    named = join_some([f"{name} ({axis})" for name, axis in volumes.items()])
    return (
        f"{len(volumes)} volume{'s are' if len(volumes) > 1 else ' is'} cut along another axis of the body than those "
        f"that the network has learned from, whose slices lie along {learned[plan.slice_axis]}: {named}; expect worse "
        "masks, or store them in the orientation of the training volumes"
    )


def check_kind(volume: Volume, plan: DataPlan) -> None:
    """Raise a DataError if an image clearly is of another kind than what the network has learned from."""
    if len(plan.channels) != 1:
        return
    (channel,) = plan.channels
    if volume.modality and channel.name in MODALITIES and volume.modality != channel.name:
        raise DataError(
            f"{volume.source} was taken by {volume.modality}, but the run was trained on {channel.name}; use a run "
            f"that was trained on {volume.modality}"
        )
    if channel.normalisation == "ct" and volume.array.dtype == np.uint8:
        raise DataError(
            f"{volume.source} holds grey levels of 8 bits, but the run was trained on CT in Hounsfield units; export "
            "it with 16 bits, or give the DICOM series"
        )


MODALITIES = ("CT", "MR", "PT", "US", "CR", "DX", "MG", "XA", "NM", "OP", "OPT", "ES", "SM", "GM")
"""DICOM's words for how an image was taken, as far as they are images that are segmented."""


def find_inputs(inputs: Sequence[Path], plan: DataPlan) -> list[Case]:
    """The images that a list of files, folders and patterns holds, as cases of the plan's channels.

    A folder is searched with the folders in it, unless it is an image itself: a DICOM series.

    Raises:
        DataError: there is no input, one does not exist, is no image or holds none, or two have the same name.
    """
    channels, ending = len(plan.channels), plan.file_ending
    single: list[Path] = []
    cases: list[Case] = []
    for path in [found for given in inputs for found in _match(given)]:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if not path.is_dir() and not ending_of(path):
            raise unknown_format(path)
        if not path.is_dir() or is_series(path):
            single.append(path)
            continue
        found = image_files(path)
        if not found:
            raise DataError(f"{path} holds no image in a known format ({KNOWN})")
        cases += find_cases(found, channels, ending, path)
    cases += find_cases(single, channels, ending)
    if not cases:
        raise DataError("no image is named; name images, or folders of them, after the run")
    refuse_same_names(cases)
    return sorted(cases, key=lambda case: case.name)


def _match(path: Path) -> list[Path]:
    """The paths that a pattern fits, which no shell has replaced; a path that is none is itself."""
    if path.exists() or not any(character in str(path) for character in PATTERN):
        return [path]
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 absolute or not
    if not found:
        raise DataError(f"nothing fits {path}; name images, or folders of them")
    return found
