"""Arrays, tensors and Pillow's pictures as images: an array means one thing, or its axes are named.

Without names the axes are (H, W), (C, H, W) or (C, Z, H, W). What a plan can't mean by these is refused rather than
read: three RGB images in one array, (3, 3, H, W), would otherwise be a volume of three slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.data.formats.picture import picture_pixels
from dinounet.data.geometry import Volume
from dinounet.data.images import require_finite
from dinounet.data.plan import DataPlan
from dinounet.errors import ConfigError, DataError, reason_of

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
            f"the array has {channels} channels, but {len(plan.channels)} are wanted ({wanted}): its shape "
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
        raise DataError(f"an image can't be an array of {image.dtype}; give an array of whole or broken numbers")
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
