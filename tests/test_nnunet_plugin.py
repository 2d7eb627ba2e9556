"""Dino U-Net in nnU-Net, by nnU-Net's own commands, on patches of a real micrograph; and conversions both ways.

`make test-nnunet` runs these; nnunetv2 needs an older timm than we allow, so it has an environment of its own.
"""

import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinounet.backbones.frozen import build_network
from dinounet.backbones.registry import network_config

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed; `make test-nnunet` has it")

import SimpleITK as sitk
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

import dinounet
from conftest import shared
from datasets import write_nifti_dataset
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError
from dinounet.io import write_json
from dinounet.nnunet import TRAINERS
from dinounet.nnunet.network import NETWORK_CLASSES, fit
from dinounet.nnunet.trainer import DinoUNetPaperTrainer, DinoUNetTrainer
from dinounet.planning.planner import plan_dataset
from networks import TINY, tiny_config

pytestmark = pytest.mark.slow

NAME = "Dataset903_Nerve"
SIDE = 64
QUICK = {
    "DINOUNET_EPOCHS": "2", "DINOUNET_STEPS_AN_EPOCH": "3", "DINOUNET_WEIGHTS": "random",
    "DINOUNET_NETWORK": json.dumps(TINY),
}  # fmt: skip

QUICK_UNET = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class QuickTrainer(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device="cuda"):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
"""


@dataclass(frozen=True)
class Home:
    """nnU-Net's folders, with a dataset that nnU-Net has planned."""

    folder: Path
    images: Path

    @property
    def plan(self) -> Path:
        return self.folder / "preprocessed" / NAME / "nnUNetPlans.json"

    def trained(self, trainer: str, plans: str = "nnUNetPlans") -> Path:
        return self.folder / "results" / NAME / f"{trainer}__{plans}__2d"


def stock(command: str, *words: str | Path) -> str:
    """Runs one of nnU-Net's commands in this process; returns what it prints."""
    (entry,) = entry_points(group="console_scripts", name=command)
    told = io.StringIO()
    with pooling_threads() as patch, contextlib.redirect_stdout(told):
        patch.setattr(sys, "argv", [command, *map(str, words)])
        entry.load()()
    return told.getvalue()


def ours(*words: str | Path) -> None:
    """Runs a command of ours, which must end well."""
    with pooling_threads():
        assert main(list(map(str, words))) == 0


@contextlib.contextmanager
def pooling_threads() -> Iterator[pytest.MonkeyPatch]:
    """Within the block nnU-Net's pools are of threads, as each of its processes would import for seconds; and networks
    compute on one thread, as they are too small for more."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
        patch.setattr(multiprocessing, "cpu_count", lambda: 1)
        yield patch
    torch.set_num_threads(threads)


def in_a_shell(command: str, *words: str | Path) -> str:
    """Runs one of nnU-Net's commands in a process of its own, where nothing but dinounet's installation is prepared."""
    program = Path(sys.executable).with_name(command)
    patient = os.environ | {"OMP_WAIT_POLICY": "passive"}  # threads that wait leave the cores to others
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False, env=patient)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("nnunet")
    root = folder / "raw" / NAME
    write_nerve(root)
    for name in ("preprocessed", "results", "trainers"):
        (folder / name).mkdir()
    (folder / "trainers" / "quick_trainer.py").write_text(QUICK_UNET)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(folder / name))
        patch.setenv("nnUNet_extTrainer", f"{folder / 'trainers'}{os.pathsep}{TRAINERS}")
        for name, value in {"n_proc_DA": "1", "def_n_proc": "1", "compile": "0"}.items():
            patch.setenv(f"nnUNet_{name}", value)
        for name, value in QUICK.items():
            patch.setenv(name, value)
        plan(folder)
        patch.setenv("nnUNet_n_proc_DA", "0")  # no processes; planning a U-Net fails so
        yield Home(folder, root / "imagesTs")


def write_nerve(root: Path) -> None:
    """Five cases of 96 x 96 pixels, a patch of ours, to learn from, and two to segment."""
    image, mask = (np.asarray(Image.open(shared(f"data/axon_sem/{name}.png"))) for name in ("image", "mask"))
    classes = np.searchsorted((0, 128, 255), mask if mask.ndim == 2 else mask[..., 0]).astype(np.uint8)
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for index in range(7):
        side, column = 96, 200 * index
        window = np.s_[300 : 300 + side, column : column + side]
        part = "Tr" if index < 5 else "Ts"
        Image.fromarray(np.ascontiguousarray(image[window])).save(root / f"images{part}" / f"nerve_{index}_0000.png")
        if index < 5:
            Image.fromarray(np.ascontiguousarray(classes[window])).save(root / "labelsTr" / f"nerve_{index}.png")
    description = {
        "channel_names": {"0": "SEM"},
        "labels": {"background": 0, "myelin": 1, "axon": 2},
        "numTraining": 5,
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(description))


def plan(folder: Path) -> None:
    """By nnU-Net's own command; its patches are then made small, for its U-Net's sake."""
    measure = DatasetFingerprintExtractor.run

    def measure_less(extractor: Any, *words: Any, **named: Any) -> Any:
        extractor.num_foreground_voxels_for_intensitystats = 1e5  # of 1e8, which take seconds and 2 GB
        return measure(extractor, *words, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetFingerprintExtractor, "run", measure_less)
        stock("nnUNetv2_plan_and_preprocess", "-d", "903", "-c", "2d", "-npfp", "1", "-np", "1")
    path = folder / "preprocessed" / NAME / "nnUNetPlans.json"
    content = json.loads(path.read_text())
    content["configurations"]["2d"] |= {"patch_size": [SIDE, SIDE], "batch_size": 2}
    path.write_text(json.dumps(content))


def train(trainer: str, *words: str) -> None:
    stock("nnUNetv2_train", "903", "2d", "0", "-tr", trainer, "-device", "cpu", "--npz", *words)


@pytest.fixture(scope="module")
def trained(home: Home) -> Path:
    """By nnU-Net's command, in a shell."""
    in_a_shell("nnUNetv2_train", "903", "2d", "0", "-tr", "DinoUNetTrainer", "-device", "cpu", "--npz")
    return home.trained("DinoUNetTrainer")


def read(folder: Path) -> dict[str, Any]:
    """The final checkpoint of a fold that was trained here."""
    return torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_a_trained_model_keeps_nnunets_plan_but_for_the_network_patch_and_batch(home: Home, trained: Path) -> None:
    theirs, kept = (json.loads(path.read_text()) for path in (home.plan, trained / "plans.json"))
    part = kept["configurations"]["2d"]
    own = ("architecture", "batch_size", "patch_size")
    assert {**part, **dict.fromkeys(own)} == {**theirs["configurations"]["2d"], **dict.fromkeys(own)}
    assert {**kept, "configurations": None} == {**theirs, "configurations": None}
    assert (part["patch_size"], part["batch_size"]) == ([96, 96], 2)
    arguments = part["architecture"]["arch_kwargs"]
    assert (arguments["weights"], len(arguments["sha256"])) == ("random", 64)
    assert arguments["network"]["backbone"] == "dinov3_vits16"


def test_patch_and_batch_are_what_fits_into_the_memory() -> None:
    a_patch = (2.0, 1.0)  # GB: 1 for the weights, and 1 for each patch of 512 x 512
    assert fit((600, 500), a_patch, 9.5) == ((512, 512), 8)
    assert fit((90, 500), a_patch, 2.0) == ((96, 512), 5)
    # two patches may have 3/4 of 512 x 512 each: cut are columns to 416, a row's step, columns again, as shares say
    assert fit((600, 500), a_patch, 2.5) == ((480, 384), 2)
    assert fit((600, 500), a_patch, 0.1) == ((64, 64), 2)  # less is not planned; nnU-Net's least batch


def test_stock_commands_train_choose_predict_and_ensemble(home: Home, trained: Path, tmp_path: Path) -> None:
    assert (trained / "fold_0" / "validation" / "summary.json").is_file()
    train("QuickTrainer")
    told = stock(
        "nnUNetv2_find_best_configuration", "903", "-f", "0", "-c", "2d", "-np", "1",
        "-tr", "QuickTrainer", "DinoUNetTrainer",
    )  # fmt: skip
    assert "ensemble___QuickTrainer__nnUNetPlans__2d___DinoUNetTrainer__nnUNetPlans__2d___0: " in told

    words = ["-d", "903", "-c", "2d", "-f", "0", "-i", home.images, "-device", "cpu", "--save_probabilities"]
    words += ["-npp", "0", "-nps", "0"]
    in_a_shell("nnUNetv2_predict", *words, "-tr", "DinoUNetTrainer", "-o", tmp_path / "dino")
    stock("nnUNetv2_predict", *words, "-tr", "QuickTrainer", "-o", tmp_path / "unet")
    stock("nnUNetv2_ensemble", "-i", tmp_path / "dino", tmp_path / "unet", "-o", tmp_path / "both", "-np", "1")
    joined = masks(tmp_path / "both")
    assert list(joined) == ["nerve_5.png", "nerve_6.png"]
    for name, mask in joined.items():
        both = [np.load((tmp_path / model / name).with_suffix(".npz"))["probabilities"] for model in ("dino", "unet")]
        assert not np.array_equal(*both)
        assert np.array_equal(mask, np.mean(both, 0, dtype=np.float32).argmax(0)[0])


def test_a_checkpoint_holds_what_was_trained_and_what_is_needed_to_go_on(trained: Path) -> None:
    held = read(trained)
    network = build_network(tiny_config(num_classes=3))
    sizes = {name: tensor.shape for name, tensor in held["network_weights"].items()}
    assert sizes == {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert not any("backbone" in name for name in sizes)
    needing = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert len(held["optimizer_state"]["param_groups"][0]["params"]) == len(needing)
    steps = {int(state["step"]) for state in held["optimizer_state"]["state"].values()}
    assert steps == {int(QUICK["DINOUNET_EPOCHS"]) * int(QUICK["DINOUNET_STEPS_AN_EPOCH"])}
    assert (held["trainer_name"], held["init_args"]["configuration"]) == ("DinoUNetTrainer", "2d")
    rates = held["logging"]["lrs"]
    assert rates == pytest.approx([1e-3 / 15, 4e-3 / 15])  # of each epoch's first step, on the way up


def test_a_training_that_was_stopped_goes_on(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(trainer: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        super(DinoUNetPaperTrainer, trainer).on_epoch_start()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DinoUNetPaperTrainer, "on_epoch_start", stop)
        train("DinoUNetPaperTrainer")
    folder = home.trained("DinoUNetPaperTrainer")
    assert not (folder / "fold_0" / "checkpoint_final.pth").exists()
    monkeypatch.delenv("DINOUNET_NETWORK")  # the folder's plan names it
    train("DinoUNetPaperTrainer", "--c")
    held = read(folder)
    assert (held["current_epoch"], len(held["logging"]["train_losses"])) == (2, 2)
    assert held["logging"]["lrs"] == pytest.approx([1e-3, 1e-3 * 0.5**0.9])  # nnU-Net's poly, of two epochs
    group = held["optimizer_state"]["param_groups"][0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)


def test_a_run_of_nnunets_becomes_a_bundle_that_predicts_the_same(home: Home, trained: Path, tmp_path: Path) -> None:
    ours("import", trained, "-o", tmp_path / "bundle")
    predictor = dinounet.load(tmp_path / "bundle", device="cpu", precision="fp32")
    assert_same_logits(predictor.networks[0], trained, classes=3)
    plans = trained / "plans.json"  # which older versions wrote with another name of the network
    plans.write_text(plans.read_text().replace(*NETWORK_CLASSES))
    theirs, found = tmp_path / "theirs", tmp_path / "ours"
    words = ["-d", "903", "-c", "2d", "-f", "0", "-tr", "DinoUNetTrainer", "--disable_tta", "-device", "cpu"]
    with without_processes():
        stock("nnUNetv2_predict", *words, "-i", home.images, "-o", theirs)
    words = ["--precision", "fp32", "--device", "cpu", "--probabilities"]
    ours("predict", tmp_path / "bundle", home.images, "-o", found, *words)
    assert_same_masks(masks(theirs), masks(found), found / "probabilities")


def test_a_bundle_becomes_a_folder_that_nnunet_predicts_the_same_from(tmp_path: Path) -> None:
    data = write_nifti_dataset(tmp_path / "data", cases=4, slices=2, size=(SIDE, SIDE))
    planned = plan_dataset(read_dataset(data), "default", network_config(), (SIDE, SIDE), changes={"steps": 3})
    write_json(tmp_path / "plan.json", replace(planned, network=tiny_config(num_classes=3, deep_supervision=True)))
    run = tmp_path / "run"
    words = ["--weights", "random", "--precision", "fp32", "--device", "cpu", "--no-report"]
    ours("train", data, "-o", run, "--plan", tmp_path / "plan.json", *words)
    ours("export", run, "-o", tmp_path / "bundle")
    ours("export", tmp_path / "bundle", "--format", "nnunet", "-o", tmp_path / "folder")
    predictor = dinounet.load(tmp_path / "bundle", device="cpu", precision="fp32")
    assert_same_logits(predictor.networks[0], tmp_path / "folder", classes=3)
    with without_processes():
        stock(
            "nnUNetv2_predict_from_modelfolder", "-m", tmp_path / "folder", "-i", data / "imagesTr", "-f", "0",
            "-o", tmp_path / "theirs", "--disable_tta", "-device", "cpu",
        )  # fmt: skip
    words = ["--precision", "fp32", "--device", "cpu", "--probabilities"]
    ours("predict", run, data / "imagesTr", "-o", tmp_path / "ours", *words)
    volumes = [
        {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}
        for folder in (tmp_path / "theirs", tmp_path / "ours")
    ]
    assert_same_masks(*volumes, tmp_path / "ours" / "probabilities")


@contextlib.contextmanager
def without_processes() -> Iterator[None]:
    """Within the block nnU-Net predicts one image after another, as it does when asked for no processes."""
    with pytest.MonkeyPatch.context() as patch:

        def one_by_one(
            self: Any, images: Any, output: Any, save_probabilities: bool = False, *_: Any, **__: Any
        ) -> Any:
            return self.predict_from_files_sequential(images, output, save_probabilities)

        patch.setattr(nnUNetPredictor, "predict_from_files", one_by_one)
        yield


def assert_same_logits(network: torch.nn.Module, folder: Path, classes: int) -> None:
    """Of ours, and of the network that nnU-Net builds by the folder's plan."""
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    image = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = predictor.network.eval()(image)
        found = network.eval()(image)
    assert expected.shape == (2, classes, SIDE, SIDE)
    assert torch.equal(found, expected)


def assert_same_masks(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray], probabilities: Path) -> None:
    """Except where two classes are equally likely to two digits: nnU-Net adds up logits in half precision."""
    assert theirs.keys() == ours.keys() and theirs
    assert len(np.unique(np.concatenate([mask.ravel() for mask in theirs.values()]))) > 1
    for name, mask in theirs.items():
        found = np.load(probabilities / f"{name.split('.')[0]}.npz")["probabilities"].astype(np.float32)
        found = found.reshape(-1, *mask.shape)
        assert (found.argmax(0) == ours[name]).mean() > 0.99, name  # the rest was even before it was rounded to 16 bits
        of_their_class = np.take_along_axis(found, mask[None].astype(np.int64), axis=0)[0]
        assert (of_their_class > 0.99 * found.max(0)).all(), name
        assert (mask == ours[name]).mean() > 0.99, name


def test_a_length_that_is_none_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = json.loads(home.plan.read_text()) | {"continue_training": False}
    description = json.loads((home.folder / "raw" / NAME / "dataset.json").read_text())
    monkeypatch.setenv("DINOUNET_EPOCHS", "many")
    with pytest.raises(ConfigError, match="DINOUNET_EPOCHS is 'many'; it must be a number of at least 1"):
        DinoUNetTrainer(planned, "2d", 0, description, torch.device("cpu"))
