"""nnU-Net's trained folders as bundles, and bundles as folders that nnU-Net predicts from."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinounet.backbones.key_names import backbone_state
from dinounet.backbones.registry import find_variant
from dinounet.backbones.weights import hash_backbone
from dinounet.bundle.export import without_path, write_bundle
from dinounet.bundle.load import find_models, is_bundle
from dinounet.bundle.verify import hash_file
from dinounet.console import say
from dinounet.data.dataset import read_description
from dinounet.data.formats import READERS
from dinounet.errors import ConfigError, DataError
from dinounet.inference.models import TrainedModel, require_alike
from dinounet.io import atomic_dir, read_json, require_new, summarize, write_json
from dinounet.nnunet.checkpoints import (
    FINAL,
    INTENSITIES,
    arguments_of,
    build_published,
    find_checkpoints,
    read_checkpoint,
    require_published,
    require_same,
    require_shapes,
    tell_checkpoint,
    whole_tensors,
)
from dinounet.nnunet.network import CONFIGURATION, architecture_of, names_dinounet, read_arguments
from dinounet.schema.bundle import BundledNetwork, BundleRecord
from dinounet.schema.network import BackboneRecord, NetworkConfig
from dinounet.schema.plan import ChannelPlan, DataPlan, Fingerprint, Intensities, Normalisation
from dinounet.system import now, versions

PLANS = "DinoUNetPlans"

NORMALISATIONS: dict[str, Normalisation] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
"""nnU-Net's names and ours."""

ONLY_MEDIAN = "of its data only the median shape is known, which stands for the smallest and the largest too."

PICTURES = (".png", ".bmp", ".tif")
VOLUMES = (".nii.gz", ".nrrd", ".mha")
"""Endings that nnU-Net reads, of flat images and of volumes; the first is taken where a plan names none."""

RESAMPLING = {"order_z": 0, "force_separate_z": None}

BORDER = (
    "nnU-Net cuts off a border of zeros before it measures an image, and dinounet does not: where images have one, "
    "their masks differ"
)
"""Of networks that see each case by its own mean and deviation, or darkest and brightest pixel."""


def import_trained(
    trained: Path, output: Path, plans: Path | None = None, dataset: Path | None = None, licence: str | None = None
) -> Path:
    """Make a bundle of a checkpoint, or of all folds in a folder, that nnU-Net trained, or that was published.

    Args:
        trained: a checkpoint, the folder of a fold, or that of a trained model with its folds.
        output: a new folder, or a bundle, which is replaced but for what was written into its model card.
        plans: nnU-Net's `plans.json`, by default the one in the model's folder.
        dataset: nnU-Net's `dataset.json`, by default the one in the model's folder.
        licence: that is given to the trained weights.

    Raises:
        UserError: there is no checkpoint, a checkpoint holds more than numbers, is of another network or of volumes, or
            doesn't fit the plan.
    """
    checkpoints = find_checkpoints(trained)
    plans = plans or _beside(checkpoints[0], "plans.json", "--plans")
    dataset = dataset or _beside(checkpoints[0], "dataset.json", "--dataset")
    planned = read_json(plans, what="nnU-Net's plan")
    described = read_json(dataset, what="nnU-Net's description of the data")
    if not is_bundle(output):
        require_new(output, what="the bundle")
    held = [read_checkpoint(path) for path in checkpoints]
    names = {str(arguments_of(one).get("configuration", CONFIGURATION)) for one in held}
    if len(names) > 1:
        raise ConfigError(f"the checkpoints are of several configurations, {', '.join(sorted(names))}; import one")
    (configuration,) = names
    parts = planned.get("configurations") if isinstance(planned, Mapping) else None
    part = parts.get(configuration) if isinstance(parts, Mapping) else None
    is_published = not names_dinounet(part)
    if is_published and len(checkpoints) > 1:
        raise ConfigError(f"{trained} holds several folds of the published network; import one checkpoint at a time")
    if is_published:
        require_published(held[0], checkpoints[0])
    data = read_nnunet_plan(planned, described, plans, dataset, configuration)
    for path, one in zip(checkpoints, held, strict=True):
        require_same(arguments_of(one), planned, described, path)
    seed, frozen = 0, None
    weights: list[Mapping[str, Tensor]]
    backbone: BackboneRecord | None
    if is_published:
        network = build_published(held[0], data, checkpoints[0])
        config, weights, frozen = network.config, [network.state_dict()], backbone_state(network.backbone.vit)
        licence_of_backbone = find_variant(config.backbone).licence
        backbone = BackboneRecord(config.backbone, "file", hash_backbone(network.backbone), licence_of_backbone)
        origin = "Imported from a checkpoint of the published Dino U-Net"
    else:
        assert part is not None
        named = read_arguments(part["architecture"].get("arch_kwargs"))
        data = replace(data, channel_projection=named.channel_projection)
        config, seed = named.configure(len(data.channels), len(data.labels.outputs)), named.seed
        weights = [one["network_weights"] for one in held]
        for path, tensors in zip(checkpoints, weights, strict=True):
            require_shapes(tensors, config, path)
        is_random = named.weights == "random"
        licence_of_backbone = "none (random weights)" if is_random else find_variant(config.backbone).licence
        backbone = without_path(
            BackboneRecord(config.backbone, named.weights, named.sha256, licence_of_backbone, config.backbone_precision)
        )
        origin = "Trained in nnU-Net"
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(index)) for index in range(len(weights))]
        for file, tensors in zip(files, weights, strict=True):
            save_file(whole_tensors(tensors), file)
        if frozen is not None:
            save_file(whole_tensors(frozen), Path(folder, "backbone"))
        record = BundleRecord(
            data=data,
            networks=tuple(BundledNetwork(config, hash_file(file), backbone, None, seed=seed) for file in files),
            postprocessing=None,
            made=now(),
            versions=versions(),
            licence=licence,
            origin=f"{origin} ({'; '.join(map(tell_checkpoint, held))}); {ONLY_MEDIAN}",
        )
        _tell_border(data)
        return write_bundle(output, record, files, Path(folder, "backbone") if frozen is not None else None)


def export_to_nnunet(models: Sequence[Path], output: Path) -> Path:
    """Write a folder for nnU-Net of runs or bundles that predict together, a fold each.

    Raises:
        UserError: they don't fit together, or see images as nnU-Net can't, or there is something at `output`.
    """
    found = find_models(models)
    for model in found:
        if model.is_onnx:
            raise ConfigError(f"{model.named} is of ONNX files; export the run or the bundle that they were made of")
        require_alike(model, found[0], in_one_order=True)
    first = found[0]
    config, backbone, data = first.plan.network, first.backbone, first.plan.data
    if not isinstance(config, NetworkConfig) or backbone is None:
        raise ConfigError(f"{first.named} is a U-Net, and nnU-Net has its own; export a Dino U-Net")
    for model in found:
        if model.plan.network != config or model.backbone is None or model.backbone.sha256 != backbone.sha256:
            raise ConfigError(f"{model.named} and {first.named} are of different networks; export each by itself")
    require_new(output, what="the folder")
    planned, described = _write_plan(data, first), _describe(data)
    with atomic_dir(output) as folder:
        write_json(folder / "plans.json", planned)
        write_json(folder / "dataset.json", described)
        arguments = {  # as nnU-Net keeps them, with lists
            "plans": read_json(folder / "plans.json", what="what was just written"),
            "dataset_json": described,
            "configuration": CONFIGURATION,
        }
        for index, model in enumerate(found):
            (folder / f"fold_{index}").mkdir()
            torch.save(
                {
                    "network_weights": load_file(model.file),
                    "trainer_name": "nnUNetTrainer",
                    "init_args": {**arguments, "fold": index},
                    "inference_allowed_mirroring_axes": (0, 1),
                },
                folder / f"fold_{index}" / FINAL,
            )
    _tell_differences(data, found)
    say("exported", f"{output}: nnUNetv2_predict_from_modelfolder -m {output}", output=str(output), folds=len(found))
    return output


def _tell_differences(data: DataPlan, models: Sequence[TrainedModel]) -> None:
    """Say what nnU-Net will do otherwise."""
    numbers = list(data.labels.classes.values())
    if numbers != list(range(len(numbers))):
        told = ", ".join(
            f"{name} {index} for {label}" for index, (name, label) in enumerate(data.labels.classes.items())
        )
        say("labels", f"nnU-Net requires labels without gaps, so its masks hold {told}")
    steps = [step for model in models if model.postprocessing for step in model.postprocessing.classes.values()]
    if any(step.does_something for step in steps):
        say("postprocessing", "nnU-Net's prediction leaves out the postprocessing that was chosen for these networks")
    if len(models) > 1:
        say("folds", "nnU-Net averages the folds' logits, dinounet their probabilities: masks may differ a little")
    _tell_border(data)


def _is_flat(data: DataPlan) -> bool:
    """Whether images are pictures, of which nnU-Net takes every pixel to be 1 x 1."""
    return data.spacing is None or data.unknown_spacing is not None


def _write_plan(data: DataPlan, model: TrainedModel) -> dict[str, Any]:
    """nnU-Net's `plans.json`: what its prediction reads, and no more than names of the rest.

    Raises:
        ConfigError: the plan sees images as nnU-Net can't.
    """
    config, backbone = model.plan.network, model.backbone
    assert isinstance(config, NetworkConfig) and backbone is not None
    names = {ours: theirs for theirs, ours in NORMALISATIONS.items()}
    unknown = sorted({channel.normalisation for channel in data.channels} - names.keys())
    if unknown:
        raise ConfigError(
            f"{model.named} normalises by {', '.join(unknown)}, which nnU-Net has not; predict with dinounet, or train "
            "with another name of the channel"
        )
    axes = [data.slice_axis, *(axis for axis in range(3) if axis != data.slice_axis)]
    median = [data.fingerprint.median_shape[axis] for axis in axes]
    spacing = list(data.spacing or (1.0, 1.0))
    between = data.fingerprint.median_spacing
    resampling = "resample_data_or_seg_to_shape"
    return {
        "dataset_name": data.dataset,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [between[axes[0]] if between else 999.0, *spacing],
        "original_median_shape_after_transp": median,
        "image_reader_writer": "NaturalImage2DIO" if _is_flat(data) else "SimpleITKIO",
        "transpose_forward": axes,
        "transpose_backward": [axes.index(axis) for axis in range(3)],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"{PLANS}_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(data.patch),
                "median_image_size_in_voxels": median[1:],
                "spacing": spacing,
                "normalization_schemes": [names[channel.normalisation] for channel in data.channels],
                "use_mask_for_norm": [False] * len(data.channels),
                "resampling_fn_data": resampling,
                "resampling_fn_seg": resampling,
                "resampling_fn_probabilities": resampling,
                "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **RESAMPLING},
                "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **RESAMPLING},
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **RESAMPLING},
                "architecture": architecture_of(config, backbone, model.seed, data.channel_projection),
                "batch_dice": True,
            }
        },
        "experiment_planner_used": "DinoUNetPlanner",
        "label_manager": "LabelManager",
        INTENSITIES[0]: {str(index): asdict(channel.intensities) for index, channel in enumerate(data.channels)},
    }


def _describe(data: DataPlan) -> dict[str, Any]:
    """nnU-Net's `dataset.json`.

    Raises:
        ConfigError: the images are of a format that nnU-Net doesn't read.
    """
    endings = PICTURES if _is_flat(data) else VOLUMES
    if data.file_ending not in (None, *endings):
        raise ConfigError(
            f"the images end with {data.file_ending}, and nnU-Net reads {', '.join(endings)} of their kind; predict "
            "with dinounet"
        )
    place = {label: index for index, label in enumerate(data.labels.classes.values())}
    labels: dict[str, Any] = {name: place[label] for name, label in data.labels.classes.items()}
    order = {}
    if data.labels.regions is not None:
        labels = {"background": 0} | {one.name: [place[label] for label in one.labels] for one in data.labels.regions}
        order["regions_class_order"] = [place[region.written_as] for region in data.labels.regions]
    if data.labels.ignore is not None:
        labels["ignore"] = len(place)
    return {
        "channel_names": {str(index): channel.name for index, channel in enumerate(data.channels)},
        "labels": labels,
        **order,
        "numTraining": data.fingerprint.cases,
        "file_ending": data.file_ending or endings[0],
    }


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
        raise DataError(f"{plans} is not supported: {summarize(problems)}; choose another checkpoint")
    depth, height, width = shape
    median = (depth, height, width)
    return DataPlan(
        dataset=str(name),
        channels=tuple(
            ChannelPlan(channel, NORMALISATIONS[rule], found)
            for channel, rule, found in zip(channels, rules, intensities, strict=True)
        ),
        labels=labels,
        file_ending=ending,
        slice_axis=order[0],
        spacing=(spacing[0], spacing[1]),
        patch=(patch[0], patch[1]),
        fingerprint=Fingerprint(int(described.get("numTraining", 0)), median, median, median, None, {}),
        unknown_spacing=1.0 if reader == "NaturalImage2DIO" else None,  # which counts flat images so
        readers=READERS,
    )


def _beside(checkpoint: Path, name: str, flag: str) -> Path:
    """A file in the folder of a trained model, which a checkpoint lies in, or in a folder of."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"there is no {name} beside {checkpoint} or its folder; name it by {flag}")


def _tell_border(data: DataPlan) -> None:
    """Say where nnU-Net and dinounet differ, if these images can show it."""
    if any(channel.normalisation in ("zscore", "rescale_to_0_1") for channel in data.channels):
        say("border", BORDER)
