"""The data of against_nnunet.py: planned once, and cut down to shares of the training slices, for both sides alike."""

import argparse
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from dinounet.backbones.frozen import build_backbone
from dinounet.backbones.registry import network_config
from dinounet.backbones.weights import fill_backbone
from dinounet.data.dataset import read_dataset
from dinounet.data.images import read_image
from dinounet.data.layouts import Case
from dinounet.data.masks import read_truth
from dinounet.io import write_json
from dinounet.nnunet import TRAINERS
from dinounet.nnunet.network import architecture_of
from dinounet.planning.planner import plan_dataset

PLANS = ("nnUNetPlans", "DinoUNetPlans")
FIRST = 500
"""Number of the dataset, if its folder has none; those of shares follow."""


class Place:
    """Where things are.

    Args:
        work: the benchmark's folder.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.raw, self.preprocessed, self.plan = work / "raw", work / "preprocessed", work / "plan.json"

    @property
    def dataset(self) -> Path:
        """The dataset as it was given, by the name that nnU-Net knows it by."""
        return self.raw / json.loads((self.work / "asked.json").read_text())["name"]

    def tell_nnunet(self, results: Path) -> None:
        """Set its variables."""
        for name, folder in {"raw": self.raw, "preprocessed": self.preprocessed, "results": results}.items():
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[f"nnUNet_{name}"] = str(folder)
        os.environ |= {"nnUNet_extTrainer": str(TRAINERS)}
        for name, value in {"n_proc_DA": "1", "def_n_proc": "1", "compile": "0"}.items():
            os.environ.setdefault(f"nnUNet_{name}", value)

    def test(self, fold: int) -> tuple[Path, Path]:
        """Folders of the test cases' images and masks: the dataset's own, or those of the fold's validation cases."""
        own = self.dataset / "imagesTs", self.dataset / "labelsTs"
        if all(folder.is_dir() for folder in own):
            return own
        images, truth = (self.work / "test" / f"fold{fold}" / name for name in ("images", "truth"))
        if not truth.exists():
            dataset = read_dataset(self.dataset)
            for folder in (images, truth):
                folder.mkdir(parents=True, exist_ok=True)
            for case in dataset.cases:
                if case.name in dataset.splits[fold][1]:
                    for path in case.images:
                        link(path, images)
                    link(Path(case.mask), truth)
        return images, truth


def link(path: Path, folder: Path) -> None:
    target = folder / path.name
    if not target.exists():
        target.symlink_to(path.resolve())


def prepare(asked: argparse.Namespace) -> Place:
    """Plan the whole dataset for both, once; patch and batch are nnU-Net's, or what was asked for."""
    place = Place(asked.work)
    given = asked.dataset.resolve()
    name = given.name if re.fullmatch(r"Dataset\d{3}_.+", given.name) else f"Dataset{FIRST}_{given.name}"
    wanted = {
        "name": name, "dataset": str(given), "patch": asked.patch, "batch": asked.batch, "backbone": asked.backbone,
        "weights": asked.weights,
    }  # fmt: skip
    record = asked.work / "asked.json"
    if record.exists() and json.loads(record.read_text()) != wanted:
        raise SystemExit(f"{asked.work} was begun with other options ({record}); choose another folder")
    place.tell_nnunet(asked.work / "runs")
    write_json(record, wanted)
    if place.plan.exists():
        return place
    if not place.dataset.exists():
        place.dataset.symlink_to(given)
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
    )

    class Planner(ExperimentPlanner):
        """Plans as for images of the patch's size, so that the U-Net's depth is the patch's."""

        def get_plans_for_configuration(self, spacing: Any, median_shape: Any, *rest: Any) -> dict[str, Any]:
            if asked.patch and len(spacing) == 2:
                median_shape = np.array(asked.patch, float)
            planned = super().get_plans_for_configuration(spacing, median_shape, *rest)
            return planned | ({"batch_size": asked.batch} if asked.batch else {})

    number = int(name.removeprefix("Dataset").partition("_")[0])
    extract_fingerprint_dataset(number, num_processes=1, clean=False, verbose=False)
    plan_experiment_dataset(number, Planner, overwrite_plans_name=PLANS[0])
    home = place.preprocessed / name
    theirs = json.loads((home / f"{PLANS[0]}.json").read_text())
    theirs["configurations"] = {"2d": theirs["configurations"]["2d"]}
    part = theirs["configurations"]["2d"]
    patch = (int(part["patch_size"][0]), int(part["patch_size"][1]))
    network = network_config(asked.backbone)
    ours = plan_dataset(
        read_dataset(place.dataset), "default", network, patch, changes={"batch_size": int(part["batch_size"])}
    )
    backbone = fill_backbone(build_backbone(network), asked.backbone, asked.weights)
    architecture = architecture_of(network, backbone, 0, ours.data.channel_projection)
    write_json(home / f"{PLANS[0]}.json", theirs)
    own = {**theirs, "plans_name": PLANS[1], "configurations": {"2d": {**part, "architecture": architecture}}}
    write_json(home / f"{PLANS[1]}.json", own)
    write_json(place.plan, ours)
    return place


def share_of(place: Place, fold: int, share: int) -> Path:
    """A dataset of a share of a fold's training slices, and its validation cases whole; made and preprocessed once."""
    name = place.dataset.name
    number = FIRST + 1 + fold * 101 + share
    root = place.raw / f"Dataset{number}_{name.partition('_')[2]}"
    done = root / "share.json"
    if done.exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    dataset = read_dataset(place.dataset)
    training, validation = dataset.splits[fold]
    cases = {case.name: case for case in dataset.cases}
    axis = json.loads(place.plan.read_text())["data"]["slice_axis"]
    volumes = {one: read_image(cases[one].images) for one in training}
    depth = {one: 1 if volume.is_flat else volume.shape[axis] for one, volume in volumes.items()}
    slices = [(one, index) for one in training for index in range(depth[one])]
    wanted = max(1, round(len(slices) * share / 100))
    chosen = [slices[int((place + 0.5) * len(slices) / wanted)] for place in range(wanted)]
    kept = sorted({one for one, _ in chosen})
    empty = True
    for one in kept:
        indices = [index for owner, index in chosen if owner == one]
        whole = len(indices) == depth[one]
        empty &= not np.take(read_truth(cases[one]).array, indices, axis=0 if volumes[one].is_flat else axis).any()
        for source, folder in files_of(cases[one]):
            if whole:
                link(source, root / folder)
            else:
                cut(source, root / folder / source.name, axis, indices)
    if empty:
        raise SystemExit(f"{share} % of fold {fold} are slices without foreground; choose a larger share")
    for one in validation:
        for source, folder in files_of(cases[one]):
            link(source, root / folder)
    description = json.loads((place.dataset / "dataset.json").read_text())
    write_json(root / "dataset.json", {**description, "numTraining": len(kept) + len(validation)})
    split = [{"train": kept, "val": list(validation)}]
    write_json(root / "splits_final.json", split)

    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    place.tell_nnunet(place.work / "runs")
    home = place.preprocessed / root.name
    home.mkdir(parents=True, exist_ok=True)
    for plans in PLANS:
        content = json.loads((place.preprocessed / name / f"{plans}.json").read_text())
        write_json(home / f"{plans}.json", {**content, "dataset_name": root.name})
    shutil.copy(place.preprocessed / name / "dataset_fingerprint.json", home)
    shutil.copy(root / "dataset.json", home)
    write_json(home / "splits_final.json", split)
    preprocess_dataset(number, PLANS[0], ("2d",), [1])
    write_json(done, {"fold": fold, "share": share, "cases": len(kept), "slices": len(chosen)})
    return root


def files_of(case: Case) -> list[tuple[Path, str]]:
    """A case's files, and the folder that each goes to."""
    return [*((path, "imagesTr") for path in case.images), (Path(case.mask), "labelsTr")]


def cut(source: Path, target: Path, axis: int, indices: list[int]) -> None:
    """Some slices of a volume as a volume."""
    image = sitk.ReadImage(str(source))
    part = sitk.GetImageFromArray(np.take(sitk.GetArrayViewFromImage(image), indices, axis=axis))
    part.SetSpacing(image.GetSpacing())
    part.SetDirection(image.GetDirection())
    part.SetOrigin(image.GetOrigin())
    sitk.WriteImage(part, str(target))
