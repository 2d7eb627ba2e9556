"""One optimizer step: loss, optimizer, schedule, moving average, micro-batches, batch norm over all processes.

The loss is Dice plus cross-entropy, one to one, as nnU-Net's (arXiv 1809.10486): Dice over the batch, without
background, smoothed by 1e-5. With regions each output has a binary cross-entropy of its own and Dice counts all of
them. Ignored pixels are left out of every sum and mean; so the mean over no pixel is 0, and a batch without a known
pixel teaches nothing. Shapes: logits (B, K, H, W), mask (B, H, W).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, are_deterministic_algorithms_enabled, nn

from dinounet.console import say
from dinounet.data.arrays import to_targets
from dinounet.distributed import DistributedContext
from dinounet.errors import UserError
from dinounet.schema.plan import DataPlan
from dinounet.schema.recipe import STEPS_AN_EPOCH, Recipe

Loss = Callable[[Tensor | Sequence[Tensor], Tensor], Tensor]

SMOOTH = 1e-5
"""Added to both sides of Dice's fraction, so that an output without a pixel has a Dice of 1."""


def make_loss(plan: DataPlan | None = None) -> Loss:
    """A function of logits (B, K, H, W), or a list of them at 1, 1/2, 1/4 ..., and a mask (B, H, W), to a scalar.

    Scales are weighed 1, 1/2, 1/4 ..., and the weights add up to 1, as in nnU-Net's deep supervision.

    Args:
        plan: of the data, whose regions and ignore label count; None for neither.
    """
    # on CUDA PyTorch's cross-entropy of class numbers has no deterministic form, that of shares has
    plain = plan is None or (plan.labels.regions is None and plan.labels.ignore is None)
    if plan is None or (plain and not are_deterministic_algorithms_enabled()):
        loss_at_scale = dice_and_cross_entropy
    else:
        loss_at_scale = partial(masked_dice_and_cross_entropy, plan=plan)

    def loss(logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        target = mask[:, None].float()
        weights = [2.0**-scale for scale in range(len(scales))]
        parts = [
            weight
            * loss_at_scale(scale.float(), F.interpolate(target, size=scale.shape[-2:], mode="nearest-exact")[:, 0])
            for weight, scale in zip(weights, scales, strict=True)
        ]
        return sum(parts[1:], parts[0]) / sum(weights)

    return loss


def dice_and_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Of logits (B, K, H, W) and a mask (B, H, W) of classes, each of which excludes the others."""
    classes = mask.long()
    target = torch.zeros_like(logits).scatter_(1, classes[:, None], 1)
    return soft_dice_loss(logits.softmax(1)[:, 1:], target[:, 1:]) + F.cross_entropy(logits, classes)


def masked_dice_and_cross_entropy(logits: Tensor, mask: Tensor, plan: DataPlan) -> Tensor:
    """The loss of logits (B, K, H, W), one per class or region, and a mask (B, H, W) with pixels that are ignored."""
    target, known = to_targets(mask, plan)
    if plan.labels.regions is None:
        probability, target_of_dice = logits.softmax(1)[:, 1:], target[:, 1:]
        wrong = F.cross_entropy(logits, target, reduction="none")[:, None]
    else:
        probability, target_of_dice = logits.sigmoid(), target
        wrong = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1, keepdim=True)
    # nnU-Net sums the binary cross-entropy over regions where there is an ignore label, and else takes the mean;
    # here it is the mean, so that an ignore label that never occurs changes nothing
    return soft_dice_loss(probability * known, target_of_dice) + (wrong * known).sum() / known.sum().clamp(min=1)


def soft_dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of (B, K, H, W), each from 0 to 1, over the pixels of the whole batch; the mean over the K outputs."""
    overlap = (probability * target).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + target.sum((0, 2, 3))
    return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


class EMA:
    """Exponential moving average of a network's trained tensors; what is frozen is not copied.

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
        """Average in the weights after a step, counted from 1."""
        decay = min(self.decay, step / (step + 9))
        for name, tensor in self.network.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block, the network holds the averaged weights."""
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


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Endings of the names of batch norm's buffers, which a forward pass changes."""


class BatchNormOnCPU(nn.BatchNorm2d):
    """Synchronised batch norm for CPUs, whose tensors `torch.nn.SyncBatchNorm` refuses.

    Shapes: (B, C, H, W) -> (B, C, H, W), B patches on each process.
    """

    def forward(self, map: Tensor) -> Tensor:
        if not self.training:
            return super().forward(map)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        values = map.float()
        axes = (0, 2, 3)
        count = values.numel() // values.shape[1] * torch.distributed.get_world_size()
        mean = _Sum.apply(values.sum(axes)) / count
        away = values - mean[:, None, None]
        variance = _Sum.apply((away * away).sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (away * scale[:, None, None] + self.bias[:, None, None]).to(map.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes; what flows back to each is the sum of what flows back to all."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return _add_up(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _add_up(gradient)


def _add_up(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total


def share_batch_norm(network: nn.Module, device: str) -> None:
    """Replace a network's batch norms by ones over the patches of all processes; their tensors stay the same."""
    for name, norm in [part for part in network.named_modules() if isinstance(part[1], nn.BatchNorm2d)]:
        if device == "cpu":
            shared: nn.Module = BatchNormOnCPU(norm.num_features, norm.eps, norm.momentum)
            shared._parameters, shared._buffers = norm._parameters, norm._buffers
        else:
            shared = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
        network.set_submodule(name, shared)


class TrainStep:
    """Takes optimizer steps, each from a process's share of a batch; the loss is that of the whole batch.

    With several processes a part is `micro_batch_size` patches of each, and the loss of a part is that of all of them.

    Args:
        context: this process and those that train with it.
        network: as the context set it up.
        optimizer: as well.
        loss_fn: maps logits and mask to a scalar.
        max_grad_norm: largest norm of the gradient.
        micro_batch_size: patches of a part.
        seed: of drop path.
    """

    def __init__(
        self, context: DistributedContext, network: Any, optimizer: Any, loss_fn: Loss,
        max_grad_norm: float, micro_batch_size: int, seed: int,
    ) -> None:  # fmt: skip
        self.context, self.network, self.optimizer = context, network, optimizer
        self.loss_fn, self.max_grad_norm, self.micro_batch_size, self.seed = (
            loss_fn,
            max_grad_norm,
            micro_batch_size,
            seed,
        )
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.skipped_in_a_row = 0

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of fp16; None in other precisions."""
        return getattr(self.context.fabric.strategy.precision, "scaler", None)

    def __call__(self, step: int, image: Tensor, mask: Tensor, *taps: Tensor) -> float | None:
        """Take a step; return its loss, or None if loss or gradient is not finite, when nothing has changed.

        Drop path draws from a generator that is seeded anew in every step, by the run's seed, the step and the process:
        there is no random state to keep, and a run may go on with other processes.

        Args:
            step: counted from 1.
            image: (B, C, h, w), this process's share.
            mask: (B, h, w).
            taps: the backbone's features of the image, where they are known already.

        Raises:
            UserError: not even a single patch fits into memory; or, with several processes, a part doesn't.
        """
        self.network.train()
        statistics = {name: part.clone() for name, part in self._statistics()}
        while True:
            torch.manual_seed(seed_of(self.seed, step, self.context.rank))
            self.optimizer.zero_grad()
            try:
                loss = self._accumulate(image, mask, *taps)
                break
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            self._halve()
            self._put_back(statistics)
        began = time.monotonic()
        norm = self.context.fabric.clip_gradients(
            self.network, self.optimizer, max_norm=self.max_grad_norm, error_if_nonfinite=False
        )
        (not_finite,) = self.context.all_reduce_max(not (math.isfinite(loss) and norm.isfinite()))
        if not_finite:
            self.skipped_in_a_row += 1
            self._put_back(statistics)
            if self.scaler is not None:  # fp16: it was the scale that was too large
                self.scaler.update()
            return None
        self.optimizer.step()
        self.seconds["backward"] += time.monotonic() - began
        self.skipped_in_a_row = 0
        return loss

    def breakdown(self) -> dict[str, float]:
        """Seconds that the step spent on data, forward and backward."""
        return {name: round(self.seconds[name], 4) for name in ("data", "forward", "backward")}

    def _halve(self) -> None:
        """Halve the micro-batch after memory ran out."""
        if self.micro_batch_size == 1:
            raise UserError("one patch alone needs more memory than there is; train a new run with a smaller --patch")
        half = (self.micro_batch_size + 1) // 2
        if self.context.world_size > 1:  # the others are in the middle of the step, which can't be undone
            raise UserError(
                f"a process is out of memory with {self.micro_batch_size} patches at a time; go on with --resume and "
                f"--micro-batch-size {half}"
            )
        self.micro_batch_size = half
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say("memory", f"out of memory: continuing with {half} patches at a time", part=half)

    def _statistics(self) -> Iterator[tuple[str, Tensor]]:
        """Batch norm's buffers, which a forward pass changes."""
        return ((name, part) for name, part in self.network.named_buffers() if name.endswith(STATISTICS))

    def _put_back(self, statistics: dict[str, Tensor]) -> None:
        for name, part in self._statistics():
            part.copy_(statistics[name])

    def _accumulate(self, image: Tensor, mask: Tensor, *taps: Tensor) -> float:
        """Gradients of a batch, part by part; returns the mean loss."""
        total, done = 0.0, 0
        parts = (tensor.split(self.micro_batch_size) for tensor in (image, mask, *taps))
        for some, truth, *features in zip(*parts, strict=True):
            began = time.monotonic()
            done += len(some)
            waits = self.context.world_size > 1 and done < len(image)  # gradients meet once, after the last part
            with self.context.fabric.no_backward_sync(self.network) if waits else nullcontext():
                logits = self.network(some, *features)
                loss = gathered_loss(self.context, self.loss_fn, logits, truth) * (len(some) / len(image))
                value = loss.item()
                middle = time.monotonic()
                # each process has its own patches' share of the gradient; the mean of the shares is taken, not the sum
                self.context.fabric.backward(loss * self.context.world_size)
            total += value
            self.seconds["forward"] += middle - began
            self.seconds["backward"] += time.monotonic() - middle
        return total


def gathered_loss(
    context: DistributedContext, loss_fn: Loss, logits: Tensor | Sequence[Tensor], mask: Tensor
) -> Tensor:
    """The loss of the patches of all processes together."""
    if isinstance(logits, Tensor):
        return loss_fn(context.all_gather(logits), context.all_gather(mask))
    return loss_fn([context.all_gather(scale) for scale in logits], context.all_gather(mask))


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of a step's random numbers in one process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _is_out_of_memory(error: BaseException) -> bool:
    words = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in words
