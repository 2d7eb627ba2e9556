"""Datasets in nnU-Net's layout of squares of one micrograph (`axon_sem`), for benchmarks."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Corner = tuple[int, int]
"""Row and column of a square's upper left pixel."""


def write_squares(
    data: Path, root: Path, side: int, learn: Sequence[Corner], watch: Sequence[Corner], test: Sequence[Corner] = ()
) -> None:
    """One split of squares to learn from and to watch, and perhaps a folder of squares to be tested on.

    Args:
        data: the folder with image.png and mask.png.
        root: the dataset, which isn't there yet.
        side: of a square, in pixels.
        learn, watch, test: where the squares are.
    """
    image, mask = (np.asarray(Image.open(data / f"{name}.png")) for name in ("image", "mask"))
    classes = np.searchsorted((0, 128, 255), mask if mask.ndim == 2 else mask[..., 0])
    for part, corners in (("Tr", [*learn, *watch]), ("Ts", test)):
        for row, column in corners:
            for folder in ("images", "labels"):
                (root / f"{folder}{part}").mkdir(parents=True, exist_ok=True)
            window = np.s_[row : row + side, column : column + side]
            name = name_of(row, column)
            Image.fromarray(np.ascontiguousarray(image[window])).save(root / f"images{part}" / f"{name}_0000.png")
            Image.fromarray(classes[window].astype(np.uint8)).save(root / f"labels{part}" / f"{name}.png")
    description = {
        "channel_names": {"0": "SEM"},
        "labels": {"background": 0, "myelin": 1, "axon": 2},
        "numTraining": len(learn) + len(watch),
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    split = {"train": [name_of(*corner) for corner in learn], "val": [name_of(*corner) for corner in watch]}
    (root / "splits_final.json").write_text(json.dumps([split]))


def name_of(row: int, column: int) -> str:
    return f"nerve_row{row:03d}_column{column:04d}"
