"""The optimizer, its learning rate schedule, and the exponential moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dinounet.schema.recipe import STEPS_AN_EPOCH, Recipe


class Average:
    """Keeps the average of a network's trained tensors; what is frozen is not copied.

    Args:
        network: whose `state_dict()` holds what is trained.
        decay: weight of the past, such as 0.999; early on it is less, so that the initial values are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        decay = min(self.decay, step / (step + 9))
        for name, tensor in self.network.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network has the averaged weights."""
        own: dict[str, Tensor] = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self.network.load_state_dict(own)


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
