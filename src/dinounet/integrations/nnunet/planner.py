"""Plans a dataset for Dino U-Net by nnU-Net's own planner: what it says of the data stays, the network is another.

Of the slices' spacing, normalisation and resampling nothing differs from nnU-Net's 2d configuration. Patch and batch
are derived for this network: the patch covers the median slice, up to 512, and the batch is what fits into the memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    plan_experiment_dataset,
    preprocess_dataset,
)

from dinounet.data.dataset import read_dataset
from dinounet.data.plan import LARGEST_PATCH, PATCH_STEP, plan_data
from dinounet.errors import ConfigError
from dinounet.integrations.nnunet.environment import CONFIGURATION, PLANS, folder_of
from dinounet.integrations.nnunet.network import architecture_of
from dinounet.network.backbone import build_backbone
from dinounet.network.config import NetworkConfig
from dinounet.network.variants import SIDE, find_variant, memory_at, usual_precision
from dinounet.network.weights import fill_backbone
from dinounet.progress import say

LEAST_BATCH = 2
"""nnU-Net's; before it is undercut, the patch is made smaller."""

LEAST_PATCH = 64
"""Side below which a patch is not made smaller."""


class DinoUNetPlanner(ExperimentPlanner):  # type: ignore[misc]
    """nnU-Net's planner, but for the network, the patch, the batch, and volumes.

    Args:
        args: nnU-Net's.
        architecture: what stands under that name in the plan.
        memory: GB that one patch of 512 x 512 takes in training, and the weights alone.
        named: nnU-Net's.
    """

    def __init__(self, *args: Any, architecture: dict[str, Any], memory: tuple[float, float], **named: Any) -> None:
        super().__init__(*args, **named)
        self.architecture, self.memory = architecture, memory

    @staticmethod
    def static_estimate_VRAM_usage(*_: Any, **__: Any) -> int:  # noqa: N802 -- nnU-Net's name
        """Nothing: the memory of the U-Net that nnU-Net would plan does not matter."""
        return 1

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        """As nnU-Net's for slices; of volumes only what keeps its planning going, which is not written."""
        if len(spacing) == 3:
            return {"patch_size": median_shape, "spacing": spacing}
        planned = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        patch, batch = fit(median_shape, self.memory, self.UNet_vram_target_GB)
        most = round(approximate_n_voxels_dataset * self.max_dataset_covered / math.prod(patch))
        batch = max(LEAST_BATCH, min(batch, most))
        return {**planned, "patch_size": list(patch), "batch_size": batch, "architecture": self.architecture}

    def generate_data_identifier(self, configuration_name: str) -> str:
        """The same for plans of every name: the slices don't depend on the network."""
        return f"{PLANS}_{configuration_name}"

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plan, of slices only."""
        plans["configurations"] = {CONFIGURATION: plans["configurations"][CONFIGURATION]}
        super().save_plans(plans)


def fit(median: Sequence[float], memory: tuple[float, float], there: float) -> tuple[tuple[int, int], int]:
    """Patch and batch that fit into `there` GB.

    The patch covers the median slice up to 512 pixels a side; where two don't fit, the side that covers most is cut.

    Args:
        median: rows and columns of the median slice.
        memory: GB that one patch of 512 x 512 takes in training, and the weights alone.
        there: GB.
    """
    whole, fixed = memory
    a_pixel = (whole - fixed) / SIDE**2
    sides = [min(LARGEST_PATCH, math.ceil(side / PATCH_STEP) * PATCH_STEP) for side in median]

    def fitting() -> int:
        return int((there - fixed) / (a_pixel * math.prod(sides)))

    while fitting() < LEAST_BATCH and max(sides) > LEAST_PATCH:
        shares = [
            side / whole_side if side > LEAST_PATCH else 0 for side, whole_side in zip(sides, median, strict=True)
        ]
        sides[shares.index(max(shares))] -= PATCH_STEP
    return (sides[0], sides[1]), max(fitting(), LEAST_BATCH)


def plan_dataset(
    dataset: str,
    network: NetworkConfig,
    weights: str,
    *,
    seed: int = 0,
    memory: float = 8.0,
    plans: str = PLANS,
    preprocess: bool = True,
    processes: int = 2,
) -> Path:
    """Measure, plan and preprocess a dataset, by nnU-Net's functions, for Dino U-Net.

    Args:
        dataset: name of its folder.
        network: what to train, but for channels and classes, which the dataset decides.
        weights: of the backbone: hub, random, or a file or folder.
        seed: of random weights.
        memory: GB that training may take.
        plans: name of the plan.
        preprocess: whether the slices are made as well.
        processes: that measure and preprocess.

    Returns:
        the plan's file.

    Raises:
        WeightsError: the weights can't be had.
        DataError: the dataset is wrong.
    """
    if not 0 < memory < math.inf:
        raise ConfigError(f"--memory is {memory:g}; it must be more than 0")
    if processes < 1:
        raise ConfigError(f"--processes is {processes}; it must be at least 1")
    if Path(plans).name != plans:
        raise ConfigError(f"--plans is {plans!r}; give a name without folders")
    found = read_dataset(folder_of("raw") / dataset)
    assert found.channels is not None
    backbone = fill_backbone(build_backbone(network), network.backbone, weights, seed)
    variant = find_variant(network.backbone)
    fixed = variant.frozen * (2 if usual_precision(variant) == "bf16" else 4) / 1e9
    needed = memory_at(variant, network.backbone_scale)[1]
    projection = None
    if len(found.channels) not in (1, 3):  # nnU-Net's fingerprint has no components of the channels
        projection = plan_data(found).channel_projection
    number = int(dataset.removeprefix("Dataset").partition("_")[0])  # by which these functions know it
    extract_fingerprint_dataset(number, num_processes=processes, clean=False, verbose=False)
    planner = partial(
        DinoUNetPlanner,
        architecture=architecture_of(network, backbone, seed, projection),
        memory=(needed, fixed),
    )
    plan_experiment_dataset(number, planner, memory, overwrite_plans_name=plans)
    if preprocess:
        preprocess_dataset(number, plans, (CONFIGURATION,), [processes])
    path = folder_of("preprocessed") / dataset / f"{plans}.json"
    named = "" if plans == PLANS else f" --plans {plans}"
    say("planned", f"{path}: train by it: dinounet nnunet train {dataset} 0{named}", plan=str(path))
    return path
