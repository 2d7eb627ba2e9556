"""The frozen backbone's features of each patch, computed once and kept on disk, so that training never runs it.

The backbone does not learn, so its taps of a patch are always the same. There are finitely many samples of a training
case (`data/patches.py`), and the patches of a validation are always the same ones. Taps are kept in
bfloat16 and mapped into memory; images and masks are read and changed anew, by the same random numbers.

A folder of taps is named by a hash of all that they depend on, as is a case's in the cache of slices: another backbone,
plan or file has another name. The training cases' are kept one by one, so that several folds may share them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dinounet.backbones.frozen import FrozenBackbone, Network
from dinounet.console import progress, say
from dinounet.data.cache import (
    CachedCase,
    alone_in,
    array_file,
    estimate_shape,
    expect,
    open_array,
    removed_if_disk_is_full,
    require_room,
)
from dinounet.data.layouts import Case
from dinounet.data.patches import PatchDataset, Tiles, count_samples
from dinounet.io import atomic_dir
from dinounet.network.decoder import pad_to_stride
from dinounet.network.dinounet import DinoUNet
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import FeatureChoice, Plan
from dinounet.schema.run import RunRecord
from dinounet.system import versions
from dinounet.training.loader import make_patches
from dinounet.training.memory import TRIAL_SIDE
from dinounet.training.step import make_loss
from dinounet.training.validation import VALIDATION_BATCHES

FORMAT = 1

FOLDER = "features"
"""Name of the folder of taps within the folder of preprocessed slices."""

FILE = "taps.npy"

WORTH = 0.5
"""Fraction of a step's time that the backbone must take for `auto` to cache its taps."""

SHARE_OF_DISK = 0.8
"""Largest fraction of the free disk that `auto` uses."""

TRIALS = 3
"""Number of timed steps, of which the fastest counts: other programs may be using the computer."""


@dataclass(frozen=True)
class Taps:
    """The taps of numbered patches, in a folder."""

    folder: Path
    shapes: tuple[tuple[int, int], ...]
    """Tokens and channels of each tap."""

    def read(self, number: int) -> list[Tensor]:
        """The taps of one patch: four of (h * w, D), bfloat16."""
        stored = open_array(self.folder / FILE)
        expect(stored[number], stored)
        numbers = torch.from_numpy(stored[number].copy()).view(torch.bfloat16)
        parts = numbers.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class CachedFeatureDataset(Dataset[tuple[Tensor, ...]]):
    """An endless sequence of tiles: image, mask and four taps.

    Args:
        tiles: that are drawn.
        taps: of each case.
    """

    def __init__(self, tiles: Tiles, taps: Sequence[Taps]) -> None:
        self.tiles, self.taps = tiles, taps
        self.batch_size = tiles.patches.batch_size

    def case_of(self, index: int) -> str:
        """Name of the case that the n-th tile is of."""
        return self.tiles.patches.case_of(index)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        case, sample = self.tiles.draw(index)
        return *self.tiles.sample(case, sample), *self.taps[case].read(sample)


class CachedValidationDataset(Dataset[tuple[Tensor, ...]]):
    """The first patches of a sequence: image, mask and four taps.

    Args:
        patches: the sequence.
        taps: of them.
    """

    def __init__(self, patches: PatchDataset, taps: Taps) -> None:
        self.patches, self.taps = patches, taps

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return *self.patches[index], *self.taps.read(index)


@dataclass(frozen=True)
class CachedFeatures:
    """The cached features that a run trains and validates on."""

    training: CachedFeatureDataset
    validation: CachedValidationDataset


def choose_features(
    plan: Plan,
    network: Network,
    training: Sequence[Case],
    validates: bool,
    root: Path,
    device: Literal["cpu", "cuda", "mps"],
    precision: Literal["fp32", "bf16", "fp16"],
) -> FeatureChoice | None:
    """Decide whether the features are cached, and print the decision; None where the recipe says off.

    Args:
        plan: with patch and batch as they are going to be.
        network: the planned one, on its device.
        training: cases to train on.
        validates: whether there are validation cases.
        root: folder of preprocessed slices.
        device: where it is trained.
        precision: how precisely.
    """
    wanted = plan.recipe.cache_features
    if wanted == "off":
        return None
    if not isinstance(network, DinoUNet):
        return _tell(FeatureChoice(False, "a U-Net has no backbone", 0))
    samples = [
        math.prod(
            count_samples(
                estimate_shape(case, plan.data), plan.data.patch, plan.recipe.augmentation, plan.recipe.feature_variants
            )
        )
        for case in training
    ]
    shapes = _shapes(network.backbone, plan.data.patch)
    size = (sum(samples) + validates * VALIDATION_BATCHES * plan.recipe.batch_size) * bytes_of(shapes)
    if wanted == "on":  # what exists already, and the room on the disk, are checked when the cache is written
        return _tell(FeatureChoice(True, "it was asked for", size))
    share = measure_backbone_share(network, plan, device, precision)
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if share <= WORTH:
        why = f"the backbone takes {share:.0%} of a step, which is not worth it"
    elif size > SHARE_OF_DISK * free:
        why = f"it would take {size / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB left"
    else:
        return _tell(FeatureChoice(True, f"the backbone takes {share:.0%} of a step", size, share))
    return _tell(FeatureChoice(False, why, size, share))


def measure_backbone_share(
    network: DinoUNet, plan: Plan, device: Literal["cpu", "cuda", "mps"], precision: Literal["fp32", "bf16", "fp16"]
) -> float:
    """The backbone's fraction of a training step's time; weights, statistics and random state stay as they are."""
    image = torch.zeros(
        1, plan.network.in_channels, *(min(side, TRIAL_SIDE) for side in plan.data.patch), device=device
    )
    mask = torch.zeros(1, *image.shape[-2:], dtype=torch.int64, device=device)
    lower = torch.float16 if precision == "fp16" else torch.bfloat16
    loss_fn, state = make_loss(plan.data), {name: part.clone() for name, part in network.state_dict().items()}
    seconds = []
    network.to(device).train()
    with torch.random.fork_rng():
        for _ in range(TRIALS):
            began = _clock(device)
            with torch.autocast(device, dtype=lower, enabled=precision != "fp32"):
                taps = network.backbone_features(image)
                middle = _clock(device)
                loss = loss_fn(network(image, *taps), mask)
            loss.backward()
            seconds.append((middle - began, _clock(device) - middle))
            network.zero_grad()
    network.load_state_dict(state)
    backbone, rest = (min(times) for times in zip(*seconds, strict=True))
    return backbone / (backbone + rest)


def cache_features(
    network: Callable[[], DinoUNet],
    record: RunRecord,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    root: Path,
    backbone: FrozenBackbone,
) -> CachedFeatures:
    """Compute the taps that aren't kept yet below `root`, and open all of them.

    Args:
        network: gives the network with its backbone's weights; called only if something has to be computed.
        record: of the run.
        training: cases to train on.
        validation: cases to validate on.
        root: folder of preprocessed slices.
        backbone: the planned one, for the taps' sizes; it may be without weights.

    Raises:
        UserError: the disk has too little room; then nothing is left of what was made here.
    """
    plan, recipe, place = record.plan, record.plan.recipe, root / FOLDER
    shapes = _shapes(backbone, plan.data.patch)
    tiles = Tiles(make_patches(training, plan, recipe.augmentation), recipe.augmentation, recipe.feature_variants)
    validation_patches = make_patches(validation, plan, "none")
    taps = [
        Taps(place / f"{case.name}-{_key(record, [case], recipe.augmentation, recipe.feature_variants)}", shapes)
        for case in training
    ]
    validation_taps = Taps(
        place / f"validation-{_key(record, validation, recipe.batch_size, recipe.foreground_fraction)}", shapes
    )
    stores: list[tuple[Taps, int, Callable[[int], tuple[Tensor, Tensor]]]] = [
        (store, math.prod(shape), partial(tiles.sample, number))
        for number, (store, shape) in enumerate(zip(taps, tiles.shapes, strict=True))
    ]
    if validation:
        stores.append((validation_taps, VALIDATION_BATCHES * recipe.batch_size, validation_patches.__getitem__))
    with alone_in(place, lambda text: say("features", text)):
        missing = [store for store in stores if not store[0].folder.exists()]
        if missing:
            total = sum(count for _, count, _ in missing)
            require_room(total * bytes_of(shapes), place, lambda text: say("features", text))
            made, computing = [store.folder for store, _, _ in missing], network()
            with progress("computing features", total) as advance, removed_if_disk_is_full(made, place):
                for store, count, sample in missing:
                    _fill(store, count, sample, computing, record, advance)
    return CachedFeatures(
        CachedFeatureDataset(tiles, taps), CachedValidationDataset(validation_patches, validation_taps)
    )


def bytes_of(shapes: Sequence[tuple[int, int]]) -> int:
    """Bytes that the taps of one patch take on disk."""
    return 2 * sum(math.prod(shape) for shape in shapes)


def _fill(
    store: Taps,
    count: int,
    sample: Callable[[int], tuple[Tensor, Tensor]],
    network: DinoUNet,
    record: RunRecord,
    advance: Callable[[], None],
) -> None:
    """Compute a folder of taps, one patch after another."""
    lower = torch.float16 if record.precision == "fp16" else torch.bfloat16
    size = sum(math.prod(shape) for shape in store.shapes)
    with atomic_dir(store.folder) as temporary, array_file(temporary / FILE, (count, size), np.int16) as write:
        for number in range(count):
            image = sample(number)[0][None].to(record.device)
            with torch.inference_mode(), torch.autocast(record.device, lower, enabled=record.precision != "fp32"):
                taps = network.backbone_features(image)
            flat = torch.cat([tap.to(torch.bfloat16).flatten() for tap in taps])
            write(flat.view(torch.int16).cpu().numpy())
            advance()


def _shapes(backbone: FrozenBackbone, patch: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Tokens and channels of each tap of a patch."""
    size = pad_to_stride(torch.empty(1, 1, *patch)).shape[-2:]
    return tuple(
        (rows * columns, width) for (rows, columns), width in zip(backbone.grids(size), backbone.widths, strict=True)
    )


def _key(record: RunRecord, cases: Sequence[CachedCase], *more: object) -> str:
    """Hash of all that taps depend on; the slices are named by one of what they depend on."""
    plan, known, running = record.plan, record.backbone, versions()
    assert isinstance(plan.network, NetworkConfig) and known is not None
    names = ("backbone", "taps", "backbone_scale", "backbone_precision", "backbone_args")
    network = [getattr(plan.network, name) for name in names]
    decisions = [plan.data.patch, plan.data.channel_projection, plan.recipe.seed, record.precision]
    packages = [running.get(package) for package in ("torch", "timm", "batchgeneratorsv2")]
    folders = [case.folder.name for case in cases]
    content = [FORMAT, known.sha256, network, decisions, packages, folders, more]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _tell(choice: FeatureChoice) -> FeatureChoice:
    words = f"cached, {choice.bytes / 1e9:.2g} GB on disk" if choice.cached else "not cached"
    say("features", f"{words}: {choice.why}", **asdict(choice))
    return choice


def _clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
