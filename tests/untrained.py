"""Runs that nobody trained: written in a moment, for tests of how a network is used, whatever it has learned."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from dinounet.backbones.frozen import build_backbone
from dinounet.backbones.weights import fill_backbone
from dinounet.io import write_json
from dinounet.schema.plan import DataPlan, Plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import MODEL, PLAN, RECORD, DataRecord, RunRecord
from dinounet.training.memory import build_planned
from networks import planned

GAIN = 30.0
"""By which logits are enlarged, so that networks and mirrored copies are sure of themselves, and disagree."""


def write_run(folder: Path, data: DataPlan, *, seed: int = 0) -> Path:
    """A finished run of the tiny network whose answers to noise are spread over all classes."""
    network = planned(num_classes=len(data.labels.outputs), in_channels=len(data.channels))
    plan = Plan(data, network, Recipe(steps=1, augmentation="none", seed=seed))
    frozen = build_backbone(network)
    backbone = fill_backbone(frozen, network.backbone, "random", seed)
    built = build_planned(plan, frozen).eval()
    heads = [module for module in built.modules() if getattr(module, "out_channels", 0) == network.num_classes]
    with torch.no_grad():
        for head in heads:
            head.weight *= GAIN
            head.bias *= GAIN
        shift = built(torch.randn(1, len(data.channels), 64, 64)).flatten(2).median(2).values[0]
        for head in heads:
            head.bias -= shift
    folder.mkdir(parents=True)
    save_file({key: tensor.clone().contiguous() for key, tensor in built.state_dict().items()}, folder / MODEL)
    record = RunRecord(
        plan=plan, data=DataRecord(data.dataset, "0" * 64, (), ()), backbone=backbone, fold="all", device="cpu",
        precision="fp32", trained_parameters=1, frozen_parameters=1, command=("train",), versions={}, machine={},
        started="2026-01-01", status="finished", steps_done=1,
    )  # fmt: skip
    write_json(folder / RECORD, record)
    write_json(folder / PLAN, plan)
    return folder
