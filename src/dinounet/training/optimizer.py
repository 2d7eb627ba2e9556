"""The optimizer and its learning rate, as the recipe says."""

from __future__ import annotations

import math

import torch

from dinounet.plans import Recipe


def make_optimizer(network: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """An optimizer of the parameters that need a gradient."""
    return torch.optim.AdamW(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up from zero, then a cosine down to zero; steps count from 0."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    share = min((step - recipe.warmup) / max(recipe.length - recipe.warmup, 1), 1.0)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
