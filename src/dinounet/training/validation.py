"""A look at the validation cases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dinounet.plans import Plan
from dinounet.targets import to_classes, to_targets
from dinounet.team import Team
from dinounet.training.learner import loss_of_all
from dinounet.training.loss import Loss

VALIDATION_BATCHES = 10
"""Batches in a look, as published; nnU-Net takes 50."""

Seen = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, h, w), true classes (B, h, w) and predicted classes (B, h, w)."""


@torch.no_grad()
def validate(
    team: Team, network: torch.nn.Module, loss_of: Loss, loader: Any, plan: Plan
) -> tuple[dict[str, Any], Seen]:
    """Loss, and Dice of each foreground class or region over all known pixels of the validation patches together.

    Each process looks at its share of every batch.

    Returns:
        the numbers, and the first batch that this process has seen.
    """
    network.eval()
    overlap, both = torch.zeros(2, plan.network.num_classes, dtype=torch.int64)
    losses: list[float] = []
    seen: list[Seen] = []
    device = next(network.parameters()).device
    for batch in loader:
        image, mask, *taps = (tensor.to(device) for tensor in batch)
        logits = network(image, *taps)
        losses.append(loss_of_all(team, loss_of, logits, mask).item())
        target, known = to_targets(mask, plan.data)
        classes = to_classes(logits, plan.data)
        found = to_targets(classes, plan.data)[0] * known  # as a mask would tell it
        overlap += (found * target).sum((0, 2, 3), dtype=torch.int64).cpu()
        both += (found + target).sum((0, 2, 3), dtype=torch.int64).cpu()
        if not seen:
            seen.append((image.cpu(), mask.cpu(), classes.cpu()))
    overlap, both = team.add_up(torch.stack([overlap, both]))
    dice = 2 * overlap / both.clamp(min=1)
    return {
        "validation_loss": round(sum(losses) / len(losses), 5),
        "validation_dice": {
            name: round(dice[output].item(), 5)
            for output, name in enumerate(plan.data.meaning.outputs)
            if name in plan.data.meaning.foreground and both[output]  # what is nowhere has no Dice
        },
    }, seen[0]
