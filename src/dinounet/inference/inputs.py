"""What may be segmented: files, folders, patterns, DICOM series, arrays, tensors and Pillow's pictures."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from dinounet.data.dataset import find_cases, refuse_same_names
from dinounet.data.formats.dicom_headers import is_series
from dinounet.data.formats.picture import picture_pixels
from dinounet.data.geometry import Volume, body_axes
from dinounet.data.images import KNOWN, ending_of, require_finite, unknown_format
from dinounet.data.layouts import Case, image_files
from dinounet.data.lazy_volume import open_image
from dinounet.errors import ConfigError, DataError, reason_of
from dinounet.io import summarize
from dinounet.schema.plan import BodyAxis, DataPlan
from dinounet.system import free_memory

if TYPE_CHECKING:
    import PIL.Image
    import torch


SOURCE = Path("the array")

USUAL = {2: "YX", 3: "CYX", 4: "CZYX"}
"""Axes of an array that doesn't name them, by their number."""

LETTERS = str.maketrans("HW", "YX")
"""Rows and columns have two names each."""


def array_as_volume(image: Any, plan: DataPlan, axes: str | None = None) -> tuple[Volume, bool]:
    """An array as a volume, and whether it is flat.

    Args:
        image: of NumPy or PyTorch, of whole or broken numbers.
        plan: says how many channels there are, and whether images are flat.
        axes: names of its axes, such as "HWC" or "ZYX": C, Z, Y (or H) and X (or W), in any order.

    Raises:
        DataError: it holds no numbers, or the plan can't mean its shape.
        ConfigError: `axes` are no names of its axes.
    """
    array = _numbers(image)
    if not array.size or (axes is None and array.ndim not in USUAL):
        raise DataError(f"the array has shape {array.shape}; give (H, W), (C, H, W) or (C, Z, H, W)")
    if axes is None:
        _require_one_meaning(array.shape, plan)
    names = USUAL[array.ndim] if axes is None else _parse_axes(axes, array.shape)
    sizes = dict(zip(names, array.shape, strict=True))
    channels, slices = sizes.get("C", 1), sizes.get("Z", 1)
    if channels != len(plan.channels):
        wanted = ", ".join(channel.name for channel in plan.channels)
        raise DataError(
            f"the array has {channels} channels, but {len(plan.channels)} are expected ({wanted}): its shape "
            f"{array.shape} is taken for ({', '.join(names)}); {_advise(array.shape, plan)}"
        )
    if slices > 1 and is_flat(plan):
        raise DataError(
            f"the array of shape {array.shape} would be a volume, ({', '.join(names)}), but the run was trained on "
            "flat images; predict one image after another, each of (H, W) or (C, H, W)"
        )
    missing = [name for name in "CZYX" if name not in names]
    whole = np.transpose(array[(None,) * len(missing)], ["".join([*missing, *names]).index(name) for name in "CZYX"])
    volume = Volume(whole, None, SOURCE)
    require_finite(volume.array, volume.source)
    return volume, "Z" not in names


def picture_as_volume(picture: Any) -> Volume:
    """A picture of Pillow's, which is read here if it was only opened.

    Raises:
        DataError: it can't be read, or what its pixels mean isn't clear.
    """
    name = Path("the picture")
    try:
        pixels = picture_pixels(picture, name)
    except (OSError, ValueError, SyntaxError) as error:  # closed, cut off, broken
        raise DataError(f"{name} can't be read ({error}); open it again, or give its path") from None
    require_finite(pixels, name)
    return Volume(pixels, None, name)


def is_flat(plan: DataPlan) -> bool:
    """Whether a run was trained on single slices, so that no image of its kind has several."""
    return plan.fingerprint.largest_shape[plan.slice_axis] == 1


def _numbers(image: Any) -> np.ndarray:
    """As NumPy has them: whole numbers as they are, broken ones as float32."""
    if hasattr(image, "detach"):  # a tensor, on whatever device and of whatever type
        try:
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()
        except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, of no device
            raise DataError(f"the tensor can't be read as numbers ({reason_of(error)}); give a dense one") from None
    if isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise DataError("the array has masked pixels; fill them with numbers, such as by array.filled(0)")
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"an image can't be a {type(image).__name__}; give a path, a list of paths, or an array of numbers"
        )
    if image.dtype.kind not in "biuf":
        raise DataError(f"an image can't be an array of {image.dtype}; give an array of integers or floats")
    array = np.asarray(image)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told so
            return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="))


def _parse_axes(axes: str, shape: Sequence[int]) -> str:
    names = str(axes).upper().translate(LETTERS)
    if not {"Y", "X"} <= {*names} <= {*"CZYX"} or len({*names}) < len(names):
        raise ConfigError(
            f"axes is {axes!r}; name each axis of the array once, rows and columns with the others that it has: C, Z, "
            "Y (or H), X (or W), as in HWC or ZYX"
        )
    if len(names) != len(shape):
        raise ConfigError(f"axes is {axes!r}, but the array has {len(shape)} axes, {tuple(shape)}; name each of them")
    return names


def _require_one_meaning(shape: Sequence[int], plan: DataPlan) -> None:
    """Raise a DataError where channels might be the first axis or the second."""
    channels = len(plan.channels)
    if len(shape) == 4 and 1 < channels == shape[0] == shape[1] and not is_flat(plan):
        raise DataError(
            f"the array of shape {tuple(shape)} may be (C, Z, H, W) or (Z, C, H, W); name its axes, as in axes='CZYX'"
        )


def _advise(shape: Sequence[int], plan: DataPlan) -> str:
    """What to do about an array whose channels are another number than the plan's."""
    channels, flat = len(plan.channels), is_flat(plan)
    several = "if these are several images, predict one after another"
    if len(shape) == 3:
        if shape[-1] == channels > 1:
            return "if the channels are its last axis, give axes='HWC'"
        if channels == 1:
            if shape[-1] == 1:
                return "if the channel is its last axis, give axes='HWC'"
            if shape[-1] == 3:
                return "if its last axis, as in axes='HWC', is colours, make one channel of them, (H, W)"
            return several if flat else "if these are slices, give axes='ZYX'"
    if len(shape) == 4:
        if shape[1] == channels:
            return several if flat else "if these are slices, give axes='ZCYX'"
        if shape[-1] == channels and not flat:
            return "if the channels are its last axis, give axes='ZYXC'"
    form = f"({channels}, H, W)" if flat else f"({channels}, H, W) or ({channels}, Z, H, W)"
    return f"give an array of {'(H, W) or ' * (channels == 1)}{form}"


Image: TypeAlias = Union[str, Path, Sequence[str | Path], np.ndarray, "torch.Tensor", "PIL.Image.Image"]

MOST_HELD = 1 << 30
"""Bytes of an image that is read whole; a larger one stays in its file where its format allows it."""

PATTERN = "*?["
"""Characters of a pattern that shells replace by the files it fits."""


def as_volume(image: Image, plan: DataPlan, axes: str | None = None) -> tuple[Volume, bool]:
    """An image of any kind as a volume, and whether its labels are to be flat.

    Args:
        image: a path, a list of one path per channel, a picture, an array or a tensor.
        plan: of the data.
        axes: of an array, their names; see `array_as_volume`.

    Raises:
        UserError: it can't be read or understood, or the plan can't mean it.
    """
    import PIL.Image

    is_path = isinstance(image, str | os.PathLike)
    if axes is not None and (is_path or isinstance(image, PIL.Image.Image | list | tuple)):
        raise ConfigError("axes is for arrays only, since files and pictures define their own; leave axes out")
    if isinstance(image, PIL.Image.Image):
        return picture_as_volume(image), True
    if not is_path and not isinstance(image, list | tuple):
        return array_as_volume(image, plan, axes)
    given: Any = image
    paths = [given] if is_path else list(given)
    if not paths:
        raise DataError("an empty list is not an image; give a path, a list of one path per channel, or an array")
    if others := [path for path in paths if not isinstance(path, str | os.PathLike)]:
        kind = type(others[0]).__name__
        raise DataError(
            f"a list of {kind} is not an image; give a list of one path per channel, or one array, as numpy.asarray "
            "makes of numbers"
        )
    volume = open_input(paths, plan)
    return volume, volume.is_flat


def open_input(paths: Sequence[str | Path], plan: DataPlan) -> Volume:
    """An image from one file per channel, or from one with several channels; a large one is left in its file.

    Raises:
        DataError: it can't be read, or doesn't tell the spacing that the network needs to know.
    """
    volume = open_image([Path(path) for path in paths], min(free_memory() // 4, MOST_HELD), plan.slice_axis)
    if plan.spacing is not None and volume.spacing is None and plan.unknown_spacing is None:
        raise DataError(
            f"{volume.source} does not state its pixel size in mm, but the run was trained at {plan.spacing[0]:.3g} x "
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
    named = summarize([f"{name} ({axis})" for name, axis in volumes.items()])
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
        raise DataError(f"nothing matches {path}; name images, or folders of them")
    return found
