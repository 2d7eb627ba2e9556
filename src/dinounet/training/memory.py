"""Memory of a training step on this device, measured by one trial step, and the patch and batch that fit into it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import psutil
import torch
from torch import nn

from dinounet.backbones.frozen import FrozenBackbone, Network, build_network
from dinounet.console import say
from dinounet.data.dataset import Dataset
from dinounet.errors import ConfigError, UserError
from dinounet.io import summarize
from dinounet.network.decoder import initialise_he
from dinounet.network.dinounet import DinoUNet
from dinounet.planning.data_plan import PATCH_STEP
from dinounet.planning.planner import largest_batch
from dinounet.schema.network import UNetConfig, plan_unet
from dinounet.schema.plan import Plan, StepMemory
from dinounet.system import available_memory, give_back_freed
from dinounet.training.step import STATISTICS, make_loss

TRIAL_SIDE = 256
"""Rows and columns of the trial's patch at most; a step's memory grows with its pixels."""

SAMPLE_SECONDS = 0.002
"""Interval at which the process's memory is sampled."""

SMALLEST_SIDE = 64
"""Pixels: shortest side to which a patch is reduced when memory is short."""


def measure_step(
    network: nn.Module, plan: Plan, device: Literal["cpu", "cuda", "mps"], precision: Literal["fp32", "bf16", "fp16"]
) -> StepMemory:
    """Measure the memory of one small training step; weights, statistics and random state stay as they are.

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
    loss_fn, free = make_loss(plan.data), available_memory(device)
    with torch.random.fork_rng(), watch_memory(device) as peak:
        with torch.autocast(device, dtype=lower, enabled=precision != "fp32"):
            loss = loss_fn(network(image), mask)
        loss.backward()
    for parameter in trained:
        parameter.grad = None
    network.load_state_dict(statistics, strict=False)
    moments = {"adamw": 2, "sgd": 1}[plan.recipe.optimizer] + bool(plan.recipe.ema_decay)
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
        plan = replace(plan, recipe=replace(plan.recipe, batch_size=max(batch, plan.recipe.batch_size)))
    return replace(plan, memory=memory)


@contextmanager
def watch_memory(device: str) -> Iterator[list[int]]:
    """Yields a list that, after the block, holds the peak number of bytes in use above those at its start."""
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


def check_plan(plan: Plan, dataset: Dataset) -> None:
    """Raise a ConfigError unless an edited plan still fits this dataset."""
    names = tuple(channel.name for channel in plan.data.channels)
    classes = dataset.labels and dataset.labels.classes
    if dataset.channels not in (None, names) or classes not in (None, plan.data.labels.classes):
        raise ConfigError(
            f"the plan is for channels {list(names)} and labels {plan.data.labels.classes}, but {dataset.name} has "
            f"{list(dataset.channels or names)} and {classes}; make a new plan"
        )
    if dataset.labels not in (None, plan.data.labels):
        raise ConfigError(
            f"the plan has other regions, colours or another ignore label than {dataset.name}; make a new plan"
        )
    if plan.data.test_cases != dataset.test_cases:
        raise ConfigError(
            f"the plan holds out {summarize(plan.data.test_cases) or 'no case'}, and not what --test names; make a new "
            "plan with that --test, or leave it out"
        )


def fit_plan(
    plan: Plan,
    frozen: FrozenBackbone | None,
    device: Literal["cpu", "cuda", "mps"],
    precision: Literal["fp32", "bf16", "fp16"],
    *,
    patch_is_given: bool,
    batch_is_given: bool,
) -> tuple[Plan, Network]:
    """Build the planned network and take a trial step; the plan comes back with patch and batch that memory allows.

    Raises:
        UserError: not even one patch fits, and it was given, or it can't be smaller.
    """
    network = build_planned(plan, frozen)
    memory = measure_step(network, plan, device, precision)
    fitted = fit_to_memory(plan, memory, patch_is_given=patch_is_given, batch_is_given=batch_is_given)
    return fitted, network if fitted.network == plan.network else build_planned(fitted, frozen)


def build_planned(plan: Plan, frozen: FrozenBackbone | None) -> Network:
    """The planned network with its initial values, which the recipe's seed decides."""
    torch.manual_seed(plan.recipe.seed)
    network = build_network(plan.network, frozen)
    if plan.recipe.initialisation == "he":
        initialise_he(network)
    if plan.data.channel_projection is not None and isinstance(network, DinoUNet):
        network.channel_projection = torch.tensor(plan.data.channel_projection)
    return network
