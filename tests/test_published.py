"""Checkpoints of the published Dino U-Net, made of the parity weights as nnU-Net's trainer saves them, as bundles."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dinounet
from conftest import shared
from datasets import picture
from dinounet.bundle.verify import read_bundle
from dinounet.cli.main import main
from dinounet.errors import UserError, WeightsError
from test_parity import assert_parity
from test_weights import Trap

PLANS: dict[str, Any] = {
    "dataset_name": "Dataset007_Cells",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "NaturalImage2DIO",
    "transpose_forward": [0, 1, 2],
    "original_median_shape_after_transp": [1, 60.0, 70.0],
    "foreground_intensities_per_channel": {
        str(i): {"mean": 100.0 + i, "std": 9.0, "percentile_00_5": 3.0, "percentile_99_5": 250.0, "median": 1.0}
        for i in range(3)
    },
    "configurations": {
        "2d": {
            "patch_size": [64, 96],
            "spacing": [1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization", "CTNormalization", "RGBTo01Normalization"],
            "use_mask_for_norm": [False, False, False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
        },
        "3d_fullres": {
            "patch_size": [16, 64, 64],
            "spacing": [1.0, 1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"] * 3,
            "use_mask_for_norm": [False] * 3,
        },
    },
}

DATASET: dict[str, Any] = {
    "channel_names": {"0": "R", "1": "CT", "2": "B"},
    "labels": {"background": 0, "disc": 1, "square": 2},
    "numTraining": 12,
    "file_ending": ".png",
}


def write(folder: Path, plans: Any = PLANS, dataset: Any = DATASET, **changes: Any) -> list[str]:
    """A folder as nnU-Net leaves it; returns the words that import it."""
    manifest = json.loads(shared("parity/manifest.json").read_text())
    stored = load_file(shared("parity/tiny_state_dict.safetensors"))
    weights = stored | {alias: stored[name] for alias, name in manifest["aliases"]["alias_to_stored"].items()}
    weights |= {f"decoder.{name}": tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    held = {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-3, "momentum": 0.99}]},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.1)], "lrs": [1e-3]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 200,
        "init_args": {
            "plans": PLANS, "configuration": "2d", "fold": 0, "dataset_json": DATASET, "device": torch.device("cpu"),
        },
        "trainer_name": "DinoUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
        **changes,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    torch.save(held, folder / "checkpoint_final.pth")
    for name, content in (("plans.json", plans), ("dataset.json", dataset)):
        (folder / name).write_text(json.dumps(content))
    files = {name: str(folder / name) for name in ("checkpoint_final.pth", "plans.json", "dataset.json")}
    words = [
        "import",
        files["checkpoint_final.pth"],
        "--plans",
        files["plans.json"],
        "--dataset",
        files["dataset.json"],
    ]
    return [*words, "-o", str(folder / "bundle")]


def test_an_imported_checkpoint_computes_what_the_published_network_does(tmp_path: Path) -> None:
    assert main(write(tmp_path / "run")) == 0
    bundle = tmp_path / "run" / "bundle"
    vectors = load_file(shared("parity/tiny_case_2x3x64x96.safetensors"))
    with torch.no_grad():
        logits = dinounet.load(bundle, device="cpu").networks[0](vectors["input"])
    assert_parity("imported.logits", logits, vectors["logits"])
    assert not [name for name in load_file(bundle / "model.safetensors") if "backbone" in name]


def test_it_sees_images_as_nnunet_planned(tmp_path: Path) -> None:
    assert main(write(tmp_path / "run")) == 0
    record = read_bundle(tmp_path / "run" / "bundle")
    data = record.data
    assert [channel.normalisation for channel in data.channels] == ["zscore", "ct", "rgb_to_0_1"]
    assert data.channels[1].intensities.mean == 101.0
    assert (data.dataset, data.patch, data.slice_axis, data.file_ending) == ("Dataset007_Cells", (64, 96), 0, ".png")
    assert (data.spacing, data.unknown_spacing) == ((1.0, 1.0), 1.0)
    assert data.labels.classes == DATASET["labels"]
    assert data.fingerprint.cases == 12
    assert record.networks[0].training is None
    assert "trainer DinoUNetTrainer, epoch 200, fold 0" in record.origin
    card = (tmp_path / "run" / "bundle" / "README.md").read_text()
    assert "Imported from a checkpoint of the published Dino U-Net" in card
    assert "It was not evaluated." in card


@pytest.mark.slow
def test_it_predicts_from_the_command_line_and_only_on_its_own_backbone(tmp_path: Path) -> None:
    assert main(write(tmp_path / "run")) == 0
    bundle = tmp_path / "run" / "bundle"
    image, _ = picture((70, 90), 0)
    Image.fromarray(np.stack([image] * 3, -1)).save(tmp_path / "a.png")
    assert main(["predict", str(bundle), str(tmp_path / "a.png"), "-o", str(tmp_path / "masks")]) == 0
    assert np.asarray(Image.open(tmp_path / "masks" / "a.png")).shape == (70, 90)
    backbone = tmp_path / "moved.safetensors"
    (bundle / "backbone.safetensors").rename(backbone)
    dinounet.load(bundle, weights=str(backbone))
    with pytest.raises(WeightsError, match=r"are not those that .*bundle was trained on"):
        dinounet.load(bundle, weights="random")


def test_slices_of_volumes_lie_along_the_axis_that_nnunet_brings_to_the_front(tmp_path: Path) -> None:
    plans = {**PLANS, "transpose_forward": [2, 0, 1], "image_reader_writer": "SimpleITKIO"}
    plans["configurations"] = {"2d": {**PLANS["configurations"]["2d"], "spacing": [2.0, 0.5]}}
    words = write(tmp_path / "run", plans, {**DATASET, "file_ending": ".nii.gz"}, init_args={})
    assert main(words) == 0
    data = read_bundle(tmp_path / "run" / "bundle").data
    assert (data.slice_axis, data.spacing, data.unknown_spacing) == (2, (2.0, 0.5), None)


def test_regions_come_along(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}
    words = write(
        tmp_path / "run", dataset={**DATASET, "labels": labels, "regions_class_order": [1, 2, 3]}, init_args={}
    )
    assert main(words) == 0
    assert list(dinounet.load(tmp_path / "run" / "bundle").plan.data.labels.outputs) == ["whole", "core", "tip"]


def planned(**changes: Any) -> dict[str, Any]:
    return {**PLANS, "configurations": {"2d": {**PLANS["configurations"]["2d"], **changes}}}


FREE = {"init_args": {}}
"""A checkpoint that doesn't tell its plan."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plans", "dataset", "changes", "message"),
    [
        (PLANS, DATASET, {"network_weights": {"encoder.stages.0": torch.zeros(1)}, "trainer_name": "nnUNetTrainer"},
         r"was made by the trainer nnUNetTrainer, whose network is no Dino U-Net: it has no encoder\.dinov3_adapter"),
        (PLANS, DATASET, {"network_weights": None}, "holds no network_weights, as checkpoints of nnU-Net do"),
        (PLANS, DATASET, {"network_weights": {"encoder.dinov3_adapter.level_embed": torch.zeros(3, 64)}},
         "lacks a part of a Dino U-Net"),
        (PLANS, DATASET, {"init_args": {"configuration": "3d_fullres"}},
         "3d_fullres has patches of 3 dimensions, and Dino U-Net segments slices"),
        (planned(patch_size=[16, 64, 64]), DATASET, FREE, "2d has patches of 3 dimensions, and Dino U-Net segments"),
        (planned(patch_size=[64]), DATASET, FREE, "2d has patches of 1 dimensions"),
        (planned(patch_size=64), DATASET, FREE, "has something odd"),
        (planned(patch_size=[0, 64]), DATASET, FREE, "patch, spacing and median shape must be above 0"),
        (planned(spacing=[float("nan"), 1.0]), DATASET, FREE, "patch, spacing and median shape must be above 0"),
        (planned(normalization_schemes=["MyNorm"] * 3), DATASET, FREE, "the normalisation MyNorm is not done here"),
        (planned(use_mask_for_norm=[True, False, False]), DATASET, FREE, "within masks .use_mask_for_norm., which"),
        (planned(normalization_schemes=["CTNormalization"]), DATASET, FREE, "not of 2 sides, 3 axes and 3 channels"),
        ({**PLANS, "transpose_forward": [0, 2, 1]}, DATASET, FREE, "which turns slices as is not done here"),
        ({"configurations": {}}, DATASET, FREE, "has no 2d where nnU-Net's plan has it"),
        ([1], DATASET, FREE, "has something odd"),
        (planned(spacing=[2.0, 2.0]), DATASET, {}, r"by another plans\.json than the one given: configurations"),
        (PLANS, {**DATASET, "labels": {"background": 0, "square": 1, "disc": 2}}, {},
         r"was trained by another dataset\.json than the one given: labels differ; give the one in its folder"),
        (PLANS, {**DATASET, "labels": {"background": 0, "disc": 1}}, FREE,
         r"predicts 3 classes but the dataset\.json given has 2 \(background, disc\)"),
        (PLANS, {"labels": {}}, FREE, r"has no channel_names; no file_ending; see nnU-Net's dataset format"),
    ],
)  # fmt: skip
def test_what_is_no_such_checkpoint_is_one_sentence_and_leaves_nothing(
    plans: Any, dataset: Any, changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write(tmp_path / "run", plans, dataset, **changes)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    with pytest.raises(UserError, match=message):
        dinounet.import_(words[1], plans=words[3], dataset=words[5], output=words[7])
    assert not (tmp_path / "run" / "bundle").exists()


def spring(path: Path) -> None:
    write(path.parent, trap=Trap(path.parent / "sprung"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spring, r"names \S+, which could run code and is not read; save it again with tensors and plain values only"),
        (cut, r"is damaged or incomplete \(.*\); download it again"),
        (lambda path: path.write_bytes(b""), "is damaged or incomplete|holds more than numbers"),
        (
            lambda path: path.write_text("<!DOCTYPE html>"),
            "is no such file, or holds more than numbers, which could run",
        ),
        (lambda path: path.unlink(), r"does not exist; name a checkpoint of nnU-Net's, such as checkpoint_final\.pth"),
        (lambda path: torch.save([1], path), "holds no network_weights"),
    ],
)
def test_a_file_that_could_run_code_or_is_broken_is_refused(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    words = write(tmp_path / "run")
    change(Path(words[1]))
    with pytest.raises(WeightsError, match=message) as error:
        dinounet.import_(words[1], plans=words[3], dataset=words[5], output=words[7])
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.suffix != ".pth") == [
        "dataset.json", "plans.json",
    ]  # fmt: skip
