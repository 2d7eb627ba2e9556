"""Example predictions while a run trains: image, truth and prediction of a few validation patches in one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dinounet.drawing import colours_of, paint, to_grey_levels
from dinounet.files import whole_file
from dinounet.plans import Plan
from dinounet.run import EXAMPLES
from dinounet.targets import to_targets
from dinounet.training.validation import Seen

PATCHES = 3
"""Rows of a picture."""

LONGEST = 256
"""Side above which a patch is reduced, by leaving out rows and columns; pixels."""

GAP = 4
"""White pixels between two panels."""

FILES = 12
"""Most pictures of a run; when there are more, every second one is removed, but for the last."""


def write_example(run: Path, step: int, seen: Seen, plan: Plan) -> Path:
    """Draw the last patches of a batch, which are those on foreground, one a row: image, truth, prediction."""
    from PIL import Image

    patches = zip(*(part[-PATCHES:].split(1) for part in seen), strict=True)
    rows = [_draw(image, mask, predicted, plan) for image, mask, predicted in patches]
    path = run / EXAMPLES / f"step_{step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as temporary:
        Image.fromarray(_beside(rows, axis=0)).save(temporary, "png", optimize=True)
    pictures = sorted(path.parent.glob("step_*.png"))
    if len(pictures) > FILES:
        for old in pictures[-2::-2]:
            old.unlink()
    return path


def _draw(image: torch.Tensor, mask: torch.Tensor, predicted: torch.Tensor, plan: Plan) -> np.ndarray:
    """One patch: (1, C, h, w), (1, h, w) and (1, h, w) to RGB."""
    step = max(1, -(-max(image.shape[-2:]) // LONGEST))
    channels = image[0].numpy() if image.shape[1] == 3 else image[0, :1].numpy()
    base = to_grey_levels(channels, *np.percentile(channels, (0.5, 99.5)))[::step, ::step]
    colours = colours_of(plan.data.meaning.foreground)
    panels = [base]
    known = to_targets(mask, plan.data)[1]
    for classes in (mask, predicted):
        outputs = to_targets(classes, plan.data)[0] * known
        where = dict(zip(plan.data.meaning.outputs, outputs[0].numpy() > 0, strict=True))
        regions = [(where[name][::step, ::step], colour) for name, colour in colours.items()]
        panels.append(paint(base, regions, opacity=0.5))
    return _beside(panels, axis=1)


def _beside(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures in a row or a column, with a white gap between them."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis)
