"""Checkpoints of nnU-Net, and the published Dino U-Net's in them.

A checkpoint is a pickle of a dictionary with the trained weights and what was needed to go on training. It is read by
`torch.load(weights_only=True)`, which builds tensors and plain values, and of NumPy only numbers. The published code
keeps the backbone in it as well, and its network's sizes nowhere: they are those of its tensors.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals

from dinounet.backbones.frozen import build_backbone, build_network
from dinounet.backbones.key_names import BACKBONE, load_published_state_dict, mismatches
from dinounet.backbones.registry import VARIANTS, network_config
from dinounet.errors import DataError, WeightsError
from dinounet.network.dinounet import DinoUNet
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import DataPlan

FINAL = "checkpoint_final.pth"

INTENSITIES = ("foreground_intensity_properties_per_channel", "foreground_intensities_per_channel")
"""nnU-Net's name for the statistics of the foreground's intensities, and the published code's."""

ADAPTER = "encoder.dinov3_adapter."
HEADS = 16
"""Of the deformable attention: the published code's, which no tensor tells."""

BACKBONES = ("dinov3_vits16", "dinov3_vitb16", "dinov3_vitl16", "dinov3_vit7b16")
"""That it was published with."""

_SCALAR: Any = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before and since NumPy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "bool")),
]
"""What a checkpoint's pickle may name beside tensors: nnU-Net keeps losses and scores as NumPy's numbers."""


def find_checkpoints(trained: Path) -> list[Path]:
    """The checkpoints that are meant: the file, the fold's, or those of all numbered folds, or else of fold_all."""
    if not trained.is_dir():
        return [trained]
    if (trained / FINAL).is_file():
        return [trained / FINAL]
    folds = sorted(trained.glob(f"fold_*/{FINAL}"))
    folds = [path for path in folds if path.parent.name != "fold_all"] or folds
    if not folds:
        raise DataError(f"{trained} holds no {FINAL}, and no fold_0/{FINAL}; finish the training, or name a checkpoint")
    return folds


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The dictionary that nnU-Net's trainer saved, with its weights as tensors.

    Raises:
        WeightsError: it can't be read, names what is no number, or holds no weights.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; name a checkpoint of nnU-Net's, such as checkpoint_final.pth")
    try:
        with safe_globals(NUMBERS):
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"names {named[1]}, which" if named else "is no such file, or holds more than numbers, which"
        raise WeightsError(
            f"{path} {what} could run code and is not read; save it again with tensors and plain values only"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged or incomplete ({reason}); download it again") from None
    weights = held.get("network_weights") if isinstance(held, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise WeightsError(
            f"{path} holds no network_weights, as checkpoints of nnU-Net do; for weights of a backbone use --weights"
        )
    return held


def arguments_of(held: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the checkpoint's trainer was made with: configuration, fold, plan and description of the data."""
    arguments = held.get("init_args")
    return arguments if isinstance(arguments, Mapping) else {}


def tell_checkpoint(held: Mapping[str, Any]) -> str:
    """Where a checkpoint comes from, in words."""
    fold = arguments_of(held).get("fold")
    return f"trainer {held.get('trainer_name')}, epoch {held.get('current_epoch')}, fold {fold}"


def require_same(arguments: Mapping[str, Any], planned: Any, described: Any, checkpoint: Path) -> None:
    """Raise a DataError if the checkpoint says that it was trained by another plan, or on other labels."""
    for name, given, parts in (
        ("plans", planned, ("configurations", "transpose_forward", *INTENSITIES)),
        ("dataset_json", described, ("labels", "channel_names", "regions_class_order")),
    ):
        own = arguments.get(name)
        if not isinstance(own, Mapping):
            continue
        differing = [part for part in parts if own.get(part) != given.get(part)]
        if differing:
            raise DataError(
                f"{checkpoint} was trained by another {name.replace('_', '.').replace('plans', 'plans.json')} than the "
                f"one given: {', '.join(differing)} differ; give the one in its folder"
            )


def require_shapes(weights: Mapping[str, Tensor], config: NetworkConfig, path: Path) -> None:
    """Raise a WeightsError unless these are the tensors of the network that the plan names."""
    with torch.device("meta"):
        expected = build_network(config).state_dict()
    problems = mismatches(expected, weights)
    if problems:
        listed = "; ".join(f"{len(keys)} {kind}, as {', '.join(keys[:3])}" for kind, keys in problems.items())
        raise WeightsError(f"{path} is not of the network that its plan names ({listed}); give the plan in its folder")


def require_published(held: Mapping[str, Any], path: Path) -> None:
    """Raise a WeightsError if the checkpoint is of another network than the published Dino U-Net."""
    if not any(str(name).startswith(ADAPTER) for name in held["network_weights"]):
        raise WeightsError(
            f"{path} was made by the trainer {held.get('trainer_name')}, whose network is no Dino U-Net: it has no "
            f"{ADAPTER}*; import a checkpoint of the published Dino U-Net, or of a run of DinoUNetTrainer's"
        )


def build_published(held: Mapping[str, Any], data: DataPlan, path: Path) -> DinoUNet:
    """The published network that a checkpoint holds, filled."""
    weights = held["network_weights"]
    try:
        config = _read_sizes(weights, len(data.channels))
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{path} lacks a part of a Dino U-Net ({error}); download it again") from None
    outputs = data.labels.outputs
    if config.num_classes != len(outputs):
        raise WeightsError(
            f"{path} predicts {config.num_classes} classes but the dataset.json given has {len(outputs)} "
            f"({', '.join(outputs)}); give the one in its folder"
        )
    network = DinoUNet(config, build_backbone(config)).eval()
    try:
        load_published_state_dict(network, weights)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return network


def _read_sizes(weights: Mapping[str, Tensor], channels: int) -> NetworkConfig:
    """The network's configuration, from the shapes of its tensors."""
    width = weights[f"{ADAPTER}level_embed"].shape[1]
    depth = _count(weights, re.escape(BACKBONE) + r"blocks\.(\d+)\.")
    points = len(weights[f"{ADAPTER}interactions.0.extractor.attn.sampling_offsets.bias"]) // (2 * HEADS)
    first, second, third, last = (weights[f"encoder.ups.{scale}.up2.weight"].shape[0] for scale in range(4))
    known = [name for name in BACKBONES if (VARIANTS[name].width, VARIANTS[name].depth) == (width, depth)]
    sizes: dict[str, Any] = {}
    if not known:  # not one of the published, but built like S
        heads = width // (4 * len(weights[f"{BACKBONE}rope_embed.periods"]))
        taps = tuple(round(quarter * depth / 4) - 1 for quarter in (1, 2, 3, 4))
        sizes = {"backbone_args": {"embed_dim": width, "depth": depth, "num_heads": heads}, "taps": taps}
    return network_config(
        backbone=known[0] if known else BACKBONES[0],
        backbone_precision="fp32",  # nothing of the checkpoint is rounded
        in_channels=channels,
        num_classes=weights["decoder.seg_layers.2.weight"].shape[0],
        stem_width=weights[f"{ADAPTER}spm.stem.0.weight"].shape[0],
        attention_heads=HEADS,
        attention_points=points,
        rank=weights["encoder.fapm.shared_basis.weight"].shape[0],
        widths=(first, second, third, last),
        convolutions_per_stage=_count(weights, r"decoder\.stages\.0\.convs\.(\d+)\."),
        **sizes,
    )


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers stand in the place of the group in the tensors' names."""
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them, none a part of another."""
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
