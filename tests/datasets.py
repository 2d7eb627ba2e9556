"""Small datasets that tests write."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from dinounet.data.geometry import Volume
from dinounet.data.preprocessing import measure_channels, normalise
from dinounet.schema.plan import ChannelPlan

LABELS = {"background": 0, "disc": 1, "square": 2}


def picture(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image with a bright disc and a dark square, and its mask."""
    random = np.random.RandomState(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.uint8)
    y, x = random.uniform(0.3, 0.5, 2) * size
    mask[(rows - y) ** 2 + (columns - x) ** 2 < (0.2 * min(size)) ** 2] = 1
    corner = (np.array(size) * random.uniform(0.65, 0.75, 2)).astype(int)
    mask[corner[0] : corner[0] + size[0] // 5, corner[1] : corner[1] + size[1] // 5] = 2
    image = np.choose(mask, (100, 180, 30)) + random.normal(0, 8, size)
    return image.clip(0, 255).astype(np.uint8), mask


def describe(root: Path, ending: str, channels: tuple[str, ...] = ("MR",), labels: dict | None = None) -> None:
    content = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": LABELS if labels is None else labels,
        "numTraining": 0,
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(content))


def write_png_dataset(root: Path, cases: int = 6, size: tuple[int, int] = (72, 80), channels: int = 1) -> Path:
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (root / folder).mkdir(parents=True)
    for index in range(cases + 2):
        part = "Tr" if index < cases else "Ts"
        image, mask = picture(size, index)
        pixels = image if channels == 1 else np.stack([image, 255 - image, image // 2][:channels], -1)
        Image.fromarray(pixels).save(root / f"images{part}" / f"case_{index}_0000.png")
        Image.fromarray(mask).save(root / f"labels{part}" / f"case_{index}.png")
    describe(root, ".png", ("MR",) if channels == 1 else ("R", "G", "B"))
    return root


def normalised(channel: np.ndarray, how: ChannelPlan) -> np.ndarray:
    """A whole channel (Z, Y, X) by a plan's rule."""
    (moments,) = measure_channels(Volume(channel[None], None, Path("channel")), [how])
    return normalise(channel, how, moments)


def volume(array: np.ndarray, spacing: tuple[float, ...] = (0.7, 0.8, 3.0)) -> sitk.Image:
    """A volume (Z, Y, X) in an oblique place; spacing is x, y, z."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-12.5, 30.0, 7.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    return image


def write_nifti_dataset(
    root: Path,
    cases: int = 4,
    slices: int = 3,
    size: tuple[int, int] = (64, 70),
    spacing: tuple[float, ...] = (0.7, 0.8, 3.0),
) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(cases):
        pictures = [picture(size, 10 * index + z) for z in range(slices)]
        image = np.stack([p[0] for p in pictures]).astype(np.int16)
        mask = np.stack([p[1] for p in pictures])
        sitk.WriteImage(volume(image, spacing), str(root / "imagesTr" / f"case_{index}_0000.nii.gz"))
        sitk.WriteImage(volume(mask, spacing), str(root / "labelsTr" / f"case_{index}.nii.gz"))
    describe(root, ".nii.gz")
    return root
