"""Bundles and runs as folders that nnU-Net predicts from: `nnUNetv2_predict_from_modelfolder`, which SlicerNNUnet uses.

    FOLDER/plans.json  dataset.json  fold_0/checkpoint_final.pth  fold_1/...

The trainer that they name is nnU-Net's own, so that prediction asks for nothing but an installed dinounet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dinounet.data.plan import DataPlan
from dinounet.errors import ConfigError
from dinounet.files import read_json, require_new, whole_folder, write_json
from dinounet.inference.ensemble import require_alike
from dinounet.inference.models import TrainedModel, find_models
from dinounet.integrations.nnunet.environment import CONFIGURATION, PLANS
from dinounet.integrations.nnunet.network import architecture_of
from dinounet.integrations.nnunet.runs import FINAL, tell_border
from dinounet.network.config import NetworkConfig
from dinounet.progress import say
from dinounet.sharing.published import INTENSITIES, NORMALISATIONS

PICTURES = (".png", ".bmp", ".tif")
VOLUMES = (".nii.gz", ".nrrd", ".mha")
"""Endings that nnU-Net reads, of flat images and of volumes; the first is taken where a plan names none."""

RESAMPLING = {"order_z": 0, "force_separate_z": None}


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
    planned, described = _plan(data, first), _describe(data)
    with whole_folder(output) as folder:
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
    numbers = list(data.labels.values())
    if numbers != list(range(len(numbers))):
        told = ", ".join(f"{name} {index} for {label}" for index, (name, label) in enumerate(data.labels.items()))
        say("labels", f"nnU-Net wants labels without gaps, so its masks hold {told}")
    steps = [step for model in models if model.postprocessing for step in model.postprocessing.classes.values()]
    if any(step.does_something for step in steps):
        say("postprocessing", "nnU-Net's prediction leaves out the postprocessing that was chosen for these networks")
    if len(models) > 1:
        say("folds", "nnU-Net averages the folds' logits, dinounet their probabilities: masks may differ a little")
    tell_border(data)


def _is_flat(data: DataPlan) -> bool:
    """Whether images are pictures, of which nnU-Net takes every pixel to be 1 x 1."""
    return data.spacing is None or data.unknown_spacing is not None


def _plan(data: DataPlan, model: TrainedModel) -> dict[str, Any]:
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
    place = {label: index for index, label in enumerate(data.labels.values())}
    labels: dict[str, Any] = {name: place[label] for name, label in data.labels.items()}
    order = {}
    if data.regions is not None:
        labels = {"background": 0} | {one.name: [place[label] for label in one.labels] for one in data.regions}
        order["regions_class_order"] = [place[region.written_as] for region in data.regions]
    if data.ignore is not None:
        labels["ignore"] = len(place)
    return {
        "channel_names": {str(index): channel.name for index, channel in enumerate(data.channels)},
        "labels": labels,
        **order,
        "numTraining": data.fingerprint.cases,
        "file_ending": data.file_ending or endings[0],
    }
