"""The optimizer and its learning rate, as the recipe says."""

from __future__ import annotations

import math

import torch

from dinounet.plans import STEPS_AN_EPOCH, Recipe

POLY_POWER = 0.9


def make_optimizer(network: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """An optimizer of the parameters that need a gradient."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0  # torch refuses it without
        return torch.optim.SGD(trained, lr=rate, weight_decay=decay, momentum=recipe.momentum, nesterov=nesterov)
    # fused, a step makes no copies; elsewhere it would forbid clipping by a scaler of float16
    fused = trained[0].device.type == "cpu"
    return torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=fused)


def learning_rate_at(step: int, recipe: Recipe, steps_an_epoch: int = STEPS_AN_EPOCH) -> float:
    """Linear warm-up from zero, then the schedule down to zero; steps count from 0."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    if recipe.schedule == "poly":  # as nnU-Net's, of whole epochs
        epochs = math.ceil(recipe.length / steps_an_epoch)
        return recipe.learning_rate * (1 - step // steps_an_epoch / epochs) ** POLY_POWER
    share = min((step - recipe.warmup) / max(recipe.length - recipe.warmup, 1), 1.0)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
