"""Dino U-Net for nnU-Net, where nnU-Net is not installed: plans, the network, and conversions both ways."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dinounet
from datasets import picture, write_png_dataset
from dinounet.backbones.frozen import build_backbone, build_network
from dinounet.backbones.registry import network_config
from dinounet.backbones.weights import fill_backbone
from dinounet.bundle.load import find_models
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, UserError, WeightsError
from dinounet.io import write_json
from dinounet.nnunet.conversions import read_nnunet_plan
from dinounet.nnunet.network import NETWORK_CLASSES, PlannedDinoUNet, architecture_of, plan_network
from dinounet.planning.planner import plan_dataset
from networks import TINY, tiny_config


def test_nnunet_finds_our_trainers_where_info_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nnunet"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert [path.name for path in folder.glob("*.py")] == ["dinounet_trainers.py"]


def a_plan(**changes: Any) -> dict[str, Any]:
    """What matters here of nnU-Net's plan of 12 volumes of 10 slices."""
    part = {"median_image_size_in_voxels": [90.0, 500.0], "patch_size": [96, 512], "batch_size": 12} | changes
    volumes = {"median_image_size_in_voxels": [10.0, 90.0, 500.0]}
    return {"plans_name": "nnUNetPlans", "configurations": {"2d": part, "3d_fullres": volumes}}


DATASET = {"channel_names": {"0": "CT"}, "numTraining": 12}


def test_the_network_goes_into_nnunets_plan_and_stays_that_of_the_first_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOUNET_WEIGHTS", "random")
    monkeypatch.setenv("DINOUNET_NETWORK", json.dumps(TINY))
    planned = plan_network(a_plan(spacing=[1.0, 1.0]), DATASET, "2d", tmp_path)
    part = planned["configurations"]["2d"]
    most = round(12 * 10 * 90 * 500 * 0.05 / (96 * 512))  # 5 % of all voxels
    assert (part["patch_size"], part["batch_size"], part["spacing"]) == ([96, 512], most, [1.0, 1.0])
    assert part["architecture"] == make_architecture()
    assert plan_network(planned, DATASET, "2d", tmp_path / "other") == planned

    write_json(tmp_path / "plans.json", planned)
    monkeypatch.delenv("DINOUNET_NETWORK")
    monkeypatch.setenv("DINOUNET_MEMORY", "2")
    assert plan_network(a_plan(spacing=[1.0, 1.0]), DATASET, "2d", tmp_path) == planned
    monkeypatch.setenv("DINOUNET_NETWORK", '{"backbone": "dinov3_vitb16"}')
    with pytest.raises(ConfigError, match="is of another network than DINOUNET_NETWORK names; unset that, or move the"):
        plan_network(a_plan(), DATASET, "2d", tmp_path)


@pytest.mark.parametrize(
    ("variables", "configuration", "message"),
    [
        ({}, "3d_fullres", "3d_fullres is of volumes, and Dino U-Net segments slices; use 2d"),
        ({}, "two", "the plan nnUNetPlans has no configuration two but 2d, 3d_fullres; use 2d"),
        ({"NETWORK": "vitb"}, "2d", """DINOUNET_NETWORK is 'vitb'; write it as {"backbone": "dinov3_vitb16"}"""),
        ({"NETWORK": '{"backbon": "a"}'}, "2d", "DINOUNET_NETWORK has the unknown key 'backbon'; did you mean 'backb"),
        ({"MEMORY": "nan"}, "2d", "DINOUNET_MEMORY is 'nan'; it must be a number of at least 1"),
        ({"WEIGHTS": "gone.safetensors"}, "2d", "gone.safetensors does not exist"),
    ],
)
def test_volumes_and_variables_that_mean_nothing_are_refused_before_training(
    variables: dict[str, str], configuration: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"WEIGHTS": "random", "NETWORK": json.dumps(TINY)} | variables).items():
        monkeypatch.setenv(f"DINOUNET_{name}", value)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        plan_network(a_plan(), DATASET, configuration, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "the plan's arch_kwargs has the format 3, of a newer dinounet than this one, which reads 2"),
        ({"weight": "hub"}, "the plan's arch_kwargs has the unknown key 'weight'; did you mean 'weights'?"),
    ],
)
def test_a_plan_of_another_version_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = make_architecture()["arch_kwargs"] | change
    with pytest.raises(ConfigError, match=re.escape(message)):
        PlannedDinoUNet(1, 2, **arguments)


def make_architecture(seed: int = 0, projection: Any = None, **changes: Any) -> dict[str, Any]:
    """As a plan has it that was read from its file."""
    config = tiny_config(**changes)
    backbone = fill_backbone(build_backbone(config), config.backbone, "random", seed)
    return json.loads(json.dumps(architecture_of(config, backbone, seed, projection)))


def test_the_network_is_built_from_json_as_nnunet_builds_it() -> None:
    planned = make_architecture(seed=3, projection=((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)))
    network = PlannedDinoUNet(input_channels=2, num_classes=4, deep_supervision=True, **planned["arch_kwargs"])
    expected = build_network(tiny_config(in_channels=2, num_classes=4, deep_supervision=True))
    fill_backbone(expected.backbone, "dinov3_vits16", "random", 3)
    assert network.channel_projection.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    image = torch.randn(1, 2, 70, 64)
    for mode in (True, False):  # nnU-Net asks for the lower outputs in its validation too
        network.train(mode)
        assert [tuple(scale.shape) for scale in network(image)] == [(1, 4, 70, 64), (1, 4, 35, 32), (1, 4, 18, 16)]
    network.decoder.deep_supervision = False
    expected.load_state_dict(network.state_dict())
    assert torch.equal(network(image), expected.eval()(image))
    assert not any("backbone" in name for name in network.state_dict())


def test_a_network_on_other_weights_than_the_plans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = make_architecture(seed=1)["arch_kwargs"]
    with pytest.raises(
        WeightsError, match=r"weights from random are not those of the plan \(sha256 .* DINOUNET_WEIGHT"
    ):
        PlannedDinoUNet(1, 2, **{**arguments, "seed": 2})
    moved = {**arguments, "weights": "/gone/backbone.safetensors"}
    with pytest.raises(WeightsError, match=r"/gone/backbone\.safetensors does not exist"):
        PlannedDinoUNet(1, 2, **moved)
    monkeypatch.setenv("DINOUNET_WEIGHTS", "random")
    PlannedDinoUNet(1, 2, **moved)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by dinounet for two steps, on masks of 0, 1, 2."""
    folder = tmp_path_factory.mktemp("run")
    data = write_png_dataset(folder / "data", cases=4, size=(64, 64))
    planned = plan_dataset(read_dataset(data), "default", network_config(), (64, 64), changes={"steps": 2})
    network = tiny_config(num_classes=3, deep_supervision=True)
    write_json(folder / "plan.json", type(planned)(planned.data, network, planned.recipe))
    words = ["--weights", "random", "--precision", "fp32", "--device", "cpu", "--no-report"]
    assert main(["train", str(data), "-o", str(folder / "run"), "--plan", str(folder / "plan.json"), *words]) == 0
    return folder / "run"


def export(run: Path, folder: Path) -> Path:
    return dinounet.export(run, folder, format="nnunet")


@pytest.mark.slow
def test_a_run_goes_to_nnunet_and_comes_back_as_it_was(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "folder")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "dataset.json", "fold_0/checkpoint_final.pth", "plans.json",
    ]  # fmt: skip
    bundle = dinounet.import_(folder, tmp_path / "bundle")
    before, after = dinounet.load(run), dinounet.load(bundle)
    for name in ("channels", "labels", "patch", "slice_axis", "file_ending"):
        assert getattr(after.plan.data, name) == getattr(before.plan.data, name), name
    image = Image.fromarray(picture((64, 64), 5)[0])
    assert (before.predict_proba(image) == after.predict_proba(image)).all()
    assert before.backbone.sha256 == after.backbone.sha256


@pytest.mark.slow
def test_a_plan_with_an_older_name_of_the_network_is_understood(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "folder")
    plans, checkpoint = folder / "plans.json", folder / "fold_0" / "checkpoint_final.pth"
    plans.write_text(plans.read_text().replace(*NETWORK_CLASSES))
    torch.save({**torch.load(checkpoint, weights_only=True), "init_args": {}}, checkpoint)
    assert len(dinounet.load(dinounet.import_(folder, tmp_path / "bundle")).networks) == 1


@pytest.mark.slow
def test_folds_go_and_come_together_and_networks_that_differ_do_not(run: Path, tmp_path: Path) -> None:
    bundle = dinounet.export([run], tmp_path / "one")
    folder = export([bundle, run], tmp_path / "folder")
    assert sorted(path.name for path in folder.glob("fold_*")) == ["fold_0", "fold_1"]
    both = dinounet.import_(folder, tmp_path / "both")
    assert len(dinounet.load(both).networks) == 2


@pytest.mark.slow
def test_what_nnunet_reads_of_a_plan_is_what_is_read_back(run: Path, tmp_path: Path) -> None:
    data = dinounet.load(run).plan.data
    folder = export(run, tmp_path / "folder")
    paths = folder / "plans.json", folder / "dataset.json"
    found = read_nnunet_plan(*(json.loads(path.read_text()) for path in paths), *paths, "2d")
    assert [(one.name, one.normalisation) for one in found.channels] == [
        (one.name, one.normalisation) for one in data.channels
    ]
    assert found.channels[0].intensities == data.channels[0].intensities
    assert (found.spacing, found.unknown_spacing) == ((1.0, 1.0), 1.0)  # as nnU-Net counts pictures


def change(run: Path, copy: Path, **data: Any) -> Path:
    """A run with another plan of the data."""
    copy.mkdir()
    record = json.loads((run / "run.json").read_text())
    record["plan"]["data"] |= data
    for name in ("run.json", "model.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    (copy / "run.json").write_text(json.dumps(record))
    return copy


@pytest.mark.slow
def test_what_nnunet_cannot_do_is_refused_and_what_it_does_otherwise_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = change(run, tmp_path / "jpeg", file_ending=".jpg")
    with pytest.raises(ConfigError, match=r"the images end with \.jpg, and nnU-Net reads \.png, \.bmp, \.tif of their"):
        export(changed, tmp_path / "folder")
    channel = json.loads((run / "run.json").read_text())["plan"]["data"]["channels"][0]
    rgb = {**channel, "normalisation": "rgb", "imagenet": [0.449, 0.226]}
    with pytest.raises(ConfigError, match="normalises by rgb, which nnU-Net has not; predict with dinounet"):
        export(change(run, tmp_path / "rgb", channels=[rgb]), tmp_path / "folder")
    with pytest.raises(ConfigError, match="a folder for nnU-Net has no place for --licence; leave it out, or export a"):
        dinounet.export(run, tmp_path / "folder", format="nnunet", licence="cc-by-4.0")
    with monkeypatch.context() as patch:
        found = [replace(model, file=Path("model.onnx")) for model in find_models([run])]
        patch.setattr("dinounet.nnunet.conversions.find_models", lambda _: found)
        with pytest.raises(ConfigError, match="is of ONNX files; export the run or the bundle that they were made of"):
            export(run, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    capsys.readouterr()
    folder = export(
        change(
            run, tmp_path / "odd", labels={"classes": {"background": 0, "disc": 128, "square": 255}}, file_ending=None
        ),
        tmp_path / "folder",
    )
    assert "nnU-Net requires labels without gaps, so its masks hold background 0 for 0, disc 1 for 128" in (
        capsys.readouterr().out
    )
    description = json.loads((folder / "dataset.json").read_text())
    assert (description["labels"], description["file_ending"]) == ({"background": 0, "disc": 1, "square": 2}, ".png")
    with pytest.raises(UserError, match="exists already"):
        export(run, folder)


@pytest.mark.slow
def test_regions_and_the_ignore_label_go_along(run: Path, tmp_path: Path) -> None:
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    regions = [
        {"name": "whole", "labels": [1, 2, 3], "written_as": 1},
        {"name": "core", "labels": [2, 3], "written_as": 2},
        {"name": "tip", "labels": [3], "written_as": 3},
    ]
    folder = export(
        change(run, tmp_path / "regions", labels={"classes": labels, "regions": regions, "ignore": 9}),
        tmp_path / "folder",
    )
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": [3], "ignore": 4}
    assert description["regions_class_order"] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "plans.json").unlink(), r"there is no plans\.json beside .*; name it by --plans"),
        (
            lambda folder: edit(folder / "plans.json", "rank"),
            r"is not of the network that its plan names .* of another shape, as fapm.*; give the plan in its folder",
        ),
        (lambda folder: edit(folder / "dataset.json", "labels"), r"was trained by another dataset\.json than the one"),
        (
            lambda folder: (folder / "fold_0" / "checkpoint_final.pth").unlink(),
            r"holds no checkpoint_final\.pth, and no",
        ),
    ],
)
def test_a_run_of_nnunets_that_is_not_whole_is_one_sentence(
    spoil: Any, message: str, run: Path, tmp_path: Path
) -> None:
    folder = export(run, tmp_path / "folder")
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        dinounet.import_(folder, tmp_path / "bundle")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "bundle").exists()


def edit(path: Path, what: str) -> None:
    """Another rank of the network, in plan and checkpoint; or another label."""
    content = json.loads(path.read_text())
    if what == "labels":
        content["labels"] = {"background": 0, "square": 1, "disc": 2}
    else:
        content["configurations"]["2d"]["architecture"]["arch_kwargs"]["network"]["rank"] = 8
        checkpoint = path.parent / "fold_0" / "checkpoint_final.pth"
        held = torch.load(checkpoint, weights_only=True)
        torch.save({**held, "init_args": {}}, checkpoint)
    path.write_text(json.dumps(content))
