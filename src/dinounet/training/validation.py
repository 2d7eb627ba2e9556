"""Validation while training: loss and Dice of the validation cases, and a picture of some of their patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinounet.data.arrays import to_classes, to_targets
from dinounet.data.images import colours_of, paint, to_grey_levels
from dinounet.distributed import DistributedContext
from dinounet.io import atomic_write
from dinounet.schema.plan import Plan
from dinounet.schema.run import EXAMPLES
from dinounet.training.step import Loss, gathered_loss

VALIDATION_BATCHES = 10
"""Batches of a validation, as published; nnU-Net takes 50."""

Example = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, h, w), true classes (B, h, w) and predicted classes (B, h, w)."""


@torch.no_grad()
def validate(
    context: DistributedContext, network: torch.nn.Module, loss_fn: Loss, loader: Any, plan: Plan
) -> tuple[dict[str, Any], Example]:
    """Loss, and Dice of each foreground class or region over all known pixels of the validation patches together.

    Each process computes its share of every batch.

    Returns:
        the numbers, and this process's share of the first batch.
    """
    network.eval()
    overlap, both = torch.zeros(2, plan.network.num_classes, dtype=torch.int64)
    losses: list[float] = []
    examples: list[Example] = []
    device = next(network.parameters()).device
    for batch in loader:
        image, mask, *taps = (tensor.to(device) for tensor in batch)
        logits = network(image, *taps)
        losses.append(gathered_loss(context, loss_fn, logits, mask).item())
        target, known = to_targets(mask, plan.data)
        classes = to_classes(logits, plan.data)
        found = to_targets(classes, plan.data)[0] * known  # as a mask would hold them
        overlap += (found * target).sum((0, 2, 3), dtype=torch.int64).cpu()
        both += (found + target).sum((0, 2, 3), dtype=torch.int64).cpu()
        if not examples:
            examples.append((image.cpu(), mask.cpu(), classes.cpu()))
    overlap, both = context.all_reduce_sum(torch.stack([overlap, both]))
    dice = 2 * overlap / both.clamp(min=1)
    return {
        "validation_loss": round(sum(losses) / len(losses), 5),
        "validation_dice": {
            name: round(dice[output].item(), 5)
            for output, name in enumerate(plan.data.labels.outputs)
            if name in plan.data.labels.foreground and both[output]  # what is nowhere has no Dice
        },
    }, examples[0]


PATCHES = 3
"""Rows of a picture."""

LONGEST = 256
"""Side above which a patch is reduced, by leaving out rows and columns; pixels."""

GAP = 4
"""White pixels between two panels."""

FILES = 12
"""Largest number of pictures of a run; beyond it every second one is removed, but for the last."""


def write_example(run: Path, step: int, example: Example, plan: Plan) -> Path:
    """Draw the last patches of a batch, which are those on foreground, one a row: image, truth, prediction."""
    from PIL import Image

    patches = zip(*(part[-PATCHES:].split(1) for part in example), strict=True)
    rows = [_draw(image, mask, predicted, plan) for image, mask, predicted in patches]
    path = run / EXAMPLES / f"step_{step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
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
    colours = colours_of(plan.data.labels.foreground)
    panels = [base]
    known = to_targets(mask, plan.data)[1]
    for classes in (mask, predicted):
        outputs = to_targets(classes, plan.data)[0] * known
        where = dict(zip(plan.data.labels.outputs, outputs[0].numpy() > 0, strict=True))
        regions = [(where[name][::step, ::step], colour) for name, colour in colours.items()]
        panels.append(paint(base, regions, opacity=0.5))
    return _beside(panels, axis=1)


def _beside(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures in a row or a column, with a white gap between them."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis)
