"""How much memory a training step takes on this device, by one trial step; and what patch and batch follow from it.

nnU-Net (arXiv 1809.10486) plans batches by a model of a plain U-Net's memory on a GPU of 8 GB; here it is this network
on this device that is measured. On a CPU it matters most: there the system kills what takes too much, without a word.
"""

from __future__ import annotations

import ctypes
import gc
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Literal

import psutil
import torch
from torch import nn

from dinounet.data.paper import largest_batch
from dinounet.data.plan import PATCH_STEP
from dinounet.device import available_memory
from dinounet.errors import UserError
from dinounet.network.config import UNetConfig, plan_unet
from dinounet.plans import Plan, StepMemory
from dinounet.progress import say
from dinounet.training.batch_norm import STATISTICS
from dinounet.training.loss import make_loss

TRIAL_SIDE = 256
"""Rows and columns of the trial's patch at most; a step's memory grows with its pixels."""

SAMPLE_SECONDS = 0.002
"""Between two looks at the process's memory."""

SMALLEST_SIDE = 64
"""A patch isn't made smaller for want of memory."""


def measure_step(
    network: nn.Module, plan: Plan, device: Literal["cpu", "cuda", "mps"], precision: Literal["fp32", "bf16", "fp16"]
) -> StepMemory:
    """Take one small training step without a consequence: weights, statistics and random state stay as they are.

    Args:
        network: on the CPU or the device; it is on the device afterwards.
        plan: of the run.
        device: where it is to be trained.
        precision: how precisely.
    """
    network.to(device).train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    statistics = {name: buffer.clone() for name, buffer in network.state_dict().items() if name.endswith(STATISTICS)}
    rows, columns = (min(side, TRIAL_SIDE) for side in plan.data.patch)
    image = torch.zeros(1, plan.network.in_channels, rows, columns, device=device)
    mask = torch.zeros(1, rows, columns, dtype=torch.int64, device=device)
    lower = torch.float16 if precision == "fp16" else torch.bfloat16
    loss_of, free = make_loss(plan.data), available_memory(device)
    with torch.random.fork_rng(), watch_memory(device) as peak:
        with torch.autocast(device, dtype=lower, enabled=precision != "fp32"):
            loss = loss_of(network(image), mask)
        loss.backward()
    for parameter in trained:
        parameter.grad = None
    network.load_state_dict(statistics, strict=False)
    moments = {"adamw": 2, "sgd": 1}[plan.recipe.optimizer] + bool(plan.recipe.average)
    return StepMemory(device, free, gradients * (1 + moments), max(peak[0] - gradients, 1) / (rows * columns))


def fit_to_memory(plan: Plan, memory: StepMemory, *, patch_is_given: bool, batch_is_given: bool) -> Plan:
    """The plan with a patch that fits, and with the batch that the device has room for.

    On a CPU the batch stays the recipe's: there a step takes as much longer as it has more patches. Elsewhere it is
    what fits, and at most nnU-Net's largest: 13 patches of 512 x 512 and 5 % of the dataset's pixels.

    Raises:
        UserError: not even one patch fits, and it was given, or it can't be smaller.
    """
    patch = plan.data.patch
    while memory.patches(patch) < 1:
        smaller = max(SMALLEST_SIDE, math.ceil(max(patch) / 2 / PATCH_STEP) * PATCH_STEP)
        if patch_is_given or smaller >= max(patch):
            raise UserError(
                f"a training step of one patch of {patch[0]} x {patch[1]} needs {memory.needed(patch) / 1e9:.2g} GB "
                f"and {memory.free / 1e9:.2g} GB are free on {memory.device}; choose a smaller --patch or backbone"
            )
        patch = (min(patch[0], smaller), min(patch[1], smaller))
    if patch != plan.data.patch:
        say("memory", f"patches are {patch[0]} x {patch[1]}: larger ones don't fit into memory", patch=patch)
        network = plan.network
        if isinstance(network, UNetConfig):  # whose depth follows from the patch
            network = plan_unet(patch, in_channels=network.in_channels, num_classes=network.num_classes)
        plan = replace(plan, data=replace(plan.data, patch=patch), network=network)
    if memory.device != "cpu" and not batch_is_given:
        batch = min(memory.patches(patch), largest_batch(plan.data))
        plan = replace(plan, recipe=replace(plan.recipe, batch=max(batch, plan.recipe.batch)))
    return replace(plan, memory=memory)


@contextmanager
def watch_memory(device: str) -> Iterator[list[int]]:
    """Gives a list that afterwards holds how many bytes more were in use at most within the block."""
    grown = [0]
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield grown
        grown[0] = torch.cuda.max_memory_allocated() - before
        return

    def in_use() -> int:
        return torch.mps.driver_allocated_memory() if device == "mps" else psutil.Process().memory_info().rss

    give_back_freed()
    before, done = in_use(), threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            grown[0] = max(grown[0], in_use() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()


def give_back_freed() -> None:
    """Make the C library return what it keeps of freed memory: else a block would find its own place there already."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc returns it by itself, or never
        ctypes.CDLL(None).malloc_trim(0)
