"""What an older version wrote is read: runs, finished or not, bundles, ONNX folders, plans and predictions."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import dinounet
from dinounet.cli.main import main
from old_files.make import compute, noise, rounding

MODELS = {"run": 1, "unet": 1, "bundle": 1, "ensemble": 3, "onnx": 0, "onnx_int8": 0}
"""How many networks of each PyTorch computes."""


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the files that 1f84803 wrote, where the program is started."""
    with tarfile.open(Path(__file__).parent / "old_files" / "1f84803.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return " ".join(capsys.readouterr().out.replace("│", "").split())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_models_compute_what_they_did(old: Path) -> None:
    """Dino U-Nets in float32 to the bit, where PyTorch itself rounds as it did for them."""
    expected = load_file(old / "outputs.safetensors")
    rounds_alike = np.array_equal(rounding(), expected["rounding"])
    found = compute(tuple(MODELS))
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        if "probabilities" in name:  # float16
            np.testing.assert_allclose(found[name].astype(float), numbers.astype(float), atol=5e-4, err_msg=name)
        elif rounds_alike and name not in ("unet logits 0", "ensemble logits 0"):  # the latter's backbone is int8
            np.testing.assert_array_equal(found[name], numbers, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], numbers, rtol=0, atol=1e-5 * np.ptp(numbers), err_msg=name)


def test_info_tells_of_all_of_them(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, facts in {
        "run": ("dinov3_vits16, taps 0, 1, 2, 3, scale 1", "disc = 1, square = 2"),
        "unet": ("unet", "32 x 32"),
        "half": ("49", "--checkpoint-minutes 0"),
        "timm": ("timm:vit_tiny_patch16_224, taps 2, 5, 8, 11",),
        "paper": ("whole, square",),
        "bundle": ("whole, square", "mit"),
        "ensemble": ("held in int8", "dinov3_convnext_tiny, taps 0, 1, 2, 3"),
        "onnx": ("multiples of 32 and 32", "int8: none"),
        "onnx_int8": ("int8: static",),
    }.items():
        told = told_by(["info", name], capsys)
        assert all(fact in told for fact in facts), (name, told)


def test_a_backbone_without_decisions_of_its_own_has_the_usual_ones(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 7B bf16, and the published four blocks: an older plan left both open."""
    content = (old / "timm" / "run.json").read_text()
    (old / "timm" / "run.json").write_text(content.replace("timm:vit_tiny_patch16_224", "dinov3_vit7b16"))
    told = told_by(["info", "timm"], capsys)
    assert "dinov3_vit7b16, taps 9, 19, 29, 39, scale 1, held in bf16" in told


def test_predictions_are_measured_compared_and_reported(old: Path) -> None:
    for masks, truth in (
        ("predicted", "data/labelsTs"),
        ("paper_masks", "regions/labelsTs"),
        ("coloured_masks", "coloured/masks"),
    ):
        known = json.loads((old / masks / "metrics.json").read_text())["mean_over_cases_and_classes"]
        found = dinounet.evaluate(old / masks, old / truth, old / "again.json").mean_over_cases_and_classes
        assert (found.dice, found.hd95) == (pytest.approx(known["dice"]), pytest.approx(known["hd95"])), masks
    assert main(["predict", "unet", "data/imagesTs", "-o", "now", "--device", "cpu", "--precision", "fp32"]) == 0
    compared = dinounet.compare(["predicted", "now"], old / "data" / "labelsTs")
    dice, again = (model.mean_over_cases_and_classes.dice for model in compared.models)
    assert dice == pytest.approx(again, abs=0.01)
    assert compared.models[0].origin.trained_parameters == 4296
    page = dinounet.report(
        old / "predicted",
        old / "data" / "labelsTs",
        old / "page.html",
        images=old / "data" / "imagesTs",
        run=old / "run",
    )
    assert "dinov3_vits16" in page.read_text()


def test_masks_of_an_older_version_are_no_start_for_more(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files are read otherwise than they were, so masks of both in one folder would not go together."""
    assert main(["predict", "unet", "data/imagesTs", "-o", "predicted", "--device", "cpu", "--precision", "fp32"]) == 2
    assert "give another folder" in capsys.readouterr().err
    assert main(["predict", "unet", "data/imagesTs", "-o", "predicted", "--overwrite", "--device", "cpu"]) == 0


def test_runs_become_bundles_that_compute_the_same(old: Path) -> None:
    for name in ("run", "unet"):
        bundle = dinounet.export([old / name], old / f"{name}_bundle")
        both = [dinounet.load(model, device="cpu", precision="fp32").networks[0] for model in (old / name, bundle)]
        with torch.inference_mode():
            assert torch.equal(both[0](noise()), both[1](noise()))
        metrics = json.loads((bundle / "model.json").read_text())["networks"][0]["metrics"]
        assert metrics[0]["part"] == "validation"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_to_the_same_end(old: Path) -> None:
    shutil.move(old / "data", old / "moved")
    assert main(["train", "moved", "-o", "half", "--resume", "--no-report", "--device", "cpu"]) == 0
    logs = [
        [json.loads(line) for line in (old / run / "log.jsonl").read_text().splitlines()] for run in ("half", "ended")
    ]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert len(losses[0]) == 60
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert dinounet.load("half", device="cpu").predict(Path("moved/imagesTs/case_4_0000.png")).shape == (40, 48)


@pytest.mark.slow
def test_an_older_plan_is_trained_by(old: Path) -> None:
    plan = json.loads((old / "unet" / "plan.json").read_text())
    plan["recipe"]["steps"] = 2
    (old / "plan.json").write_text(json.dumps(plan))
    run = dinounet.train(old / "data", old / "new", plan=old / "plan.json", device="cpu", report=False)
    assert json.loads((run / "run.json").read_text())["steps_done"] == 2
