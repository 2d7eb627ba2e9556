"""One optimizer step, in micro-batches, with batch norm over the patches of all processes."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinounet.console import say
from dinounet.distributed import DistributedContext
from dinounet.errors import UserError
from dinounet.training.loss import Loss

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What batch norm keeps, which already a forward pass changes; how the names of its buffers end."""


class BatchNormOnCPU(nn.BatchNorm2d):
    """What `torch.nn.SyncBatchNorm` is for GPUs; that refuses tensors of the CPU.

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
    """Replace a network's batch norms by ones that see all processes' patches; their tensors stay the same."""
    for name, norm in [part for part in network.named_modules() if isinstance(part[1], nn.BatchNorm2d)]:
        if device == "cpu":
            shared: nn.Module = BatchNormOnCPU(norm.num_features, norm.eps, norm.momentum)
            shared._parameters, shared._buffers = norm._parameters, norm._buffers
        else:
            shared = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
        network.set_submodule(name, shared)


class Learner:
    """Takes optimizer steps, each from a process's share of a batch; the loss is that of the whole batch.

    With several processes a part is `micro_batch` patches of each, and the loss of a part is that of all of them.

    Args:
        context: this process and those that train with it.
        network: as the context set it up.
        optimizer: as well.
        loss_of: logits and mask to a scalar.
        clip: largest norm of the gradient.
        micro_batch: patches of a part.
        seed: of drop path.
    """

    def __init__(
        self, context: DistributedContext, network: Any, optimizer: Any, loss_of: Loss,
        clip: float, micro_batch: int, seed: int,
    ) -> None:  # fmt: skip
        self.context, self.network, self.optimizer = context, network, optimizer
        self.loss_of, self.clip, self.micro_batch, self.seed = loss_of, clip, micro_batch, seed
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.skipped_in_a_row = 0

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What keeps gradients of fp16 from vanishing; None in other precisions."""
        return getattr(self.context.fabric.strategy.precision, "scaler", None)

    def learn(self, step: int, image: Tensor, mask: Tensor, *taps: Tensor) -> float | None:
        """Take a step; return its loss, or None if loss or gradient is not finite, when nothing has changed.

        Drop path draws from a generator that is seeded anew in every step, by the run's seed, the step and the process:
        there is no random state to keep, and a run may go on with other processes.

        Args:
            step: counted from 1.
            image: (B, C, h, w), this process's share.
            mask: (B, h, w).
            taps: what the backbone sees of the image, where that is known already.

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
            self.network, self.optimizer, max_norm=self.clip, error_if_nonfinite=False
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
        """Go on with half as many patches in a part, after memory ran out."""
        if self.micro_batch == 1:
            raise UserError("one patch alone needs more memory than there is; train anew with a smaller --patch")
        half = (self.micro_batch + 1) // 2
        if self.context.world_size > 1:  # the others stand in the middle of the step, from which there is no way back
            raise UserError(
                f"a process is out of memory with {self.micro_batch} patches at a time; go on with --resume and "
                f"--micro-batch {half}"
            )
        self.micro_batch = half
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say("memory", f"out of memory: going on with {half} patches at a time", part=half)

    def _statistics(self) -> Iterator[tuple[str, Tensor]]:
        """What batch norm keeps, which already a forward pass changes."""
        return ((name, part) for name, part in self.network.named_buffers() if name.endswith(STATISTICS))

    def _put_back(self, statistics: dict[str, Tensor]) -> None:
        for name, part in self._statistics():
            part.copy_(statistics[name])

    def _accumulate(self, image: Tensor, mask: Tensor, *taps: Tensor) -> float:
        """Gradients of a batch, part by part; returns the mean loss."""
        total, done = 0.0, 0
        parts = (tensor.split(self.micro_batch) for tensor in (image, mask, *taps))
        for some, truth, *seen in zip(*parts, strict=True):
            began = time.monotonic()
            done += len(some)
            waits = self.context.world_size > 1 and done < len(image)  # gradients meet once, after the last part
            with self.context.fabric.no_backward_sync(self.network) if waits else nullcontext():
                logits = self.network(some, *seen)
                loss = loss_of_all(self.context, self.loss_of, logits, truth) * (len(some) / len(image))
                value = loss.item()
                middle = time.monotonic()
                # each process has its own patches' share of the gradient; the mean of the shares is taken, not the sum
                self.context.fabric.backward(loss * self.context.world_size)
            total += value
            self.seconds["forward"] += middle - began
            self.seconds["backward"] += time.monotonic() - middle
        return total


def loss_of_all(context: DistributedContext, loss_of: Loss, logits: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
    """The loss of the patches of all processes together."""
    if isinstance(logits, Tensor):
        return loss_of(context.all_gather(logits), context.all_gather(mask))
    return loss_of([context.all_gather(scale) for scale in logits], context.all_gather(mask))


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of a step's random numbers in one process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _is_out_of_memory(error: BaseException) -> bool:
    words = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in words
