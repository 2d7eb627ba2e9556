"""Checkpoints of the published Dino U-Net as bundles.

Such a checkpoint is nnU-Net's: a pickle of a dictionary with the weights, backbone included, and what was needed to go
on training. It is read by `torch.load(weights_only=True)`, which builds tensors and plain values, and of NumPy only
numbers. How images become patches stands beside it, in nnU-Net's `plans.json` and `dataset.json`. The network's sizes
are those of its tensors: of a trainer of another network there are none that fit.
"""

from __future__ import annotations

import math
import pickle
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import safe_globals

from dinounet.data.dataset import read_description
from dinounet.data.fingerprint import Fingerprint, Intensities
from dinounet.data.formats import READERS
from dinounet.data.normalisation import ChannelPlan, Normalisation
from dinounet.data.plan import DataPlan
from dinounet.errors import DataError, WeightsError
from dinounet.files import join_some, read_json, require_new
from dinounet.inference.bundle import BundledNetwork, BundleRecord, hash_file
from dinounet.inference.models import is_bundle
from dinounet.network.backbone import build_backbone
from dinounet.network.config import NetworkConfig
from dinounet.network.dinounet import DinoUNet
from dinounet.network.provenance import BackboneRecord
from dinounet.network.published import BACKBONE, backbone_state, load_published_state_dict
from dinounet.network.variants import VARIANTS, find_variant
from dinounet.network.weights import hash_backbone
from dinounet.run import now, versions
from dinounet.sharing.export import write_bundle

ADAPTER = "encoder.dinov3_adapter."
HEADS = 16
"""Of the deformable attention: the published code's, which no tensor tells."""

BACKBONES = ("dinov3_vits16", "dinov3_vitb16", "dinov3_vitl16", "dinov3_vit7b16")
"""That it was published with."""

NORMALISATIONS: dict[str, Normalisation] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
"""nnU-Net's names and ours."""

INTENSITIES = ("foreground_intensity_properties_per_channel", "foreground_intensities_per_channel")
"""nnU-Net's name for the statistics of the foreground's intensities, and the published code's."""

ONLY_MEDIAN = "of its data only the median shape is known, which stands for the smallest and the largest too."

_SCALAR: Any = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before and since NumPy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "bool")),
]
"""What a checkpoint's pickle may name beside tensors: nnU-Net keeps losses and scores as NumPy's numbers."""


def import_checkpoint(checkpoint: Path, plans: Path, dataset: Path, output: Path, licence: str | None = None) -> Path:
    """Make a bundle of a checkpoint of the published Dino U-Net. Its backbone is kept beside it, as a file of its own.

    Args:
        checkpoint: such as `checkpoint_final.pth`.
        plans: nnU-Net's `plans.json` that it was trained by.
        dataset: nnU-Net's `dataset.json` of its data.
        output: a new folder, or a bundle, which is replaced but for what was written into its model card.
        licence: that is given to the trained weights.

    Raises:
        UserError: the checkpoint holds more than numbers, is of another network or of volumes, or doesn't fit the plan.
    """
    if not is_bundle(output):
        require_new(output, what="the bundle")
    described = read_json(dataset, what="nnU-Net's description of the data")
    planned = read_json(plans, what="nnU-Net's plan")
    held = read_checkpoint(checkpoint)
    _require_published(held, checkpoint)
    arguments = arguments_of(held)
    data = read_nnunet_plan(planned, described, plans, dataset, str(arguments.get("configuration", "2d")))
    require_same(arguments, planned, described, checkpoint)
    network = _build(held, data, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        weights, backbone = Path(folder, "weights"), Path(folder, "backbone")
        save_file(whole_tensors(network.state_dict()), weights)
        save_file(whole_tensors(backbone_state(network.backbone.vit)), backbone)
        name = network.config.backbone
        known = BackboneRecord(name, "file", hash_backbone(network.backbone), find_variant(name).licence)
        record = BundleRecord(
            data=data,
            networks=(BundledNetwork(network.config, hash_file(weights), known, training=None),),
            postprocessing=None,
            made=now(),
            versions=versions(),
            licence=licence,
            origin=f"Imported from a checkpoint of the published Dino U-Net ({tell_checkpoint(held)}); {ONLY_MEDIAN}",
        )
        return write_bundle(output, record, [weights], backbone)


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


def _require_published(held: Mapping[str, Any], path: Path) -> None:
    """Raise a WeightsError if the checkpoint is of another network than the published Dino U-Net."""
    if not any(str(name).startswith(ADAPTER) for name in held["network_weights"]):
        raise WeightsError(
            f"{path} was made by the trainer {held.get('trainer_name')}, whose network is no Dino U-Net: it has no "
            f"{ADAPTER}*; import a checkpoint of the published Dino U-Net, or of a run by dinounet nnunet train"
        )


def read_nnunet_plan(planned: Any, described: Any, plans: Path, dataset: Path, configuration: str) -> DataPlan:
    """What nnU-Net's plan and description of a dataset say about the way from a file to a patch.

    Args:
        planned: content of `plans.json`.
        described: content of `dataset.json`.
        plans: where the first was read.
        dataset: where the second was read.
        configuration: name of the part of the plan.

    Raises:
        DataError: something is missing, or is not done here.
    """
    channels, labels, ending = read_description(described, dataset)
    try:
        part = planned["configurations"][configuration]
        patch, spacing = part["patch_size"], part["spacing"]
        rules, masked = part["normalization_schemes"], part["use_mask_for_norm"]
        order = planned["transpose_forward"]
        seen = planned[next((name for name in INTENSITIES if name in planned), INTENSITIES[0])]
        shape = planned["original_median_shape_after_transp"]
        resampling = part.get("resampling_fn_data", "resample_data_or_seg_to_shape")
        reader = planned["image_reader_writer"]
        name = planned["dataset_name"]
        intensities = [
            Intensities(
                *(float(seen[str(index)][key]) for key in ("mean", "std", "percentile_00_5", "percentile_99_5"))
            )
            for index in range(len(channels))
        ]
        sizes = [len(patch), len(spacing), len(order), len(shape), len(rules), len(masked)]
        patch, shape, spacing = (
            [int(side) for side in patch],
            [round(side) for side in shape],
            list(map(float, spacing)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else f"something odd ({error})"
        raise DataError(f"{plans} has {what} where nnU-Net's plan has it; give the plan that it trained by") from None
    problems = []
    if sizes[0] != 2:
        problems.append(f"{configuration} has patches of {sizes[0]} dimensions, and Dino U-Net segments slices")
    elif sizes != [2, 2, 3, 3, len(channels), len(channels)]:
        problems.append(f"its lists for {configuration} are not of 2 sides, 3 axes and {len(channels)} channels")
    elif not all(math.isfinite(number) and number > 0 for number in [*patch, *spacing, *shape]):
        problems.append("patch, spacing and median shape must be above 0")
    unknown = sorted({str(rule) for rule in rules} - set(NORMALISATIONS))
    if unknown:
        problems.append(f"the normalisation {', '.join(unknown)} is not done here")
    if any(masked):
        problems.append("its normalisation is within masks (use_mask_for_norm), which is not done here")
    if order not in ([0, 1, 2], [1, 0, 2], [2, 0, 1]):
        problems.append(f"transpose_forward is {order}, which turns slices as is not done here")
    if resampling != "resample_data_or_seg_to_shape":
        problems.append(f"its resampling is {resampling}, which is not done here")
    if problems:
        raise DataError(f"{plans} can't be followed: {join_some(problems)}; choose another checkpoint")
    depth, height, width = shape
    median = (depth, height, width)
    return DataPlan(
        dataset=str(name),
        channels=tuple(
            ChannelPlan(channel, NORMALISATIONS[rule], found)
            for channel, rule, found in zip(channels, rules, intensities, strict=True)
        ),
        labels=labels.labels,
        file_ending=ending,
        slice_axis=order[0],
        spacing=(spacing[0], spacing[1]),
        patch=(patch[0], patch[1]),
        fingerprint=Fingerprint(int(described.get("numTraining", 0)), median, median, median, None, {}),
        unknown_spacing=1.0 if reader == "NaturalImage2DIO" else None,  # which counts flat images so
        regions=labels.regions,
        ignore=labels.ignore,
        readers=READERS,
    )


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


def _build(held: Mapping[str, Any], data: DataPlan, path: Path) -> DinoUNet:
    """The network that the checkpoint holds, filled."""
    weights = held["network_weights"]
    try:
        config = _read_sizes(weights, len(data.channels))
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{path} lacks a part of a Dino U-Net ({error}); download it again") from None
    outputs = data.meaning.outputs
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
    return NetworkConfig(
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
