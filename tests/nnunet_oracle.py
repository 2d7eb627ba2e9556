"""A small dataset that nnU-Net itself measured, planned and preprocessed, for the tests that compare ours with it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from datasets import describe, picture, volume

CHANNELS = ("CT", "MR", "noNorm")


@dataclass(frozen=True)
class Oracle:
    """What nnU-Net makes of a dataset."""

    root: Path
    """The dataset, as nnU-Net wants it."""

    planner: Any
    """Its `ExperimentPlanner`, done."""

    trainer: Any
    """Its `nnUNetTrainer` of the first fold, initialised, on the CPU."""

    preprocessed: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Of each case image (C, Z, Y, X) and mask (1, Z, Y, X)."""


def run_nnunet(folder: Path) -> Oracle:
    """Write a dataset of three channels and unequal sizes and spacings, and take it through nnU-Net's own stages."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "0"}
    import torch
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    root = _write_dataset(folder / "raw" / "Dataset901_Shapes")
    extractor = DatasetFingerprintExtractor(root.name, num_processes=1)
    extractor.num_foreground_voxels_for_intensitystats = 7e6  # of 1e8, which would take longer than all tests
    extractor.run()
    planner = ExperimentPlanner(root.name)
    plans = PlansManager(planner.plan_experiment())
    configuration = plans.get_configuration("2d")

    home = folder / "preprocessed" / root.name
    (home / configuration.data_identifier).mkdir()
    preprocessor = DefaultPreprocessor(verbose=False)
    preprocessed = {}
    for name, files in planner.dataset.items():
        arguments = (files["images"], files["label"], plans, configuration, planner.dataset_json)
        preprocessor.run_case_save(str(home / configuration.data_identifier / name), *arguments)
        preprocessed[name] = preprocessor.run_case(*arguments)[:2]

    plain = plans.plans | {"continue_training": False}
    trainer = nnUNetTrainer(plain, "2d", 0, planner.dataset_json, torch.device("cpu"))
    torch.manual_seed(2)
    trainer.initialize()
    return Oracle(root, planner, trainer, preprocessed)


def _write_dataset(root: Path) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(7):
        size, spacing = (96 + 7 * index, 88 + 3 * index), (0.7 + 0.02 * index, 0.8 - 0.03 * index, 3.0)
        pictures = [picture(size, 10 * index + z) for z in range(4)]
        image, mask = (np.stack(part) for part in zip(*pictures, strict=True))
        random = np.random.RandomState(index)
        for channel, scale in enumerate((10.0, 1.0, 0.01)):
            noise = random.normal(0, 3, image.shape)
            pixels = ((image + noise) * scale - 500 * (channel == 0)).astype(np.float32)
            path = root / "imagesTr" / f"case_{index}_{channel:04}.nii.gz"
            sitk.WriteImage(volume(pixels, spacing), str(path))
        sitk.WriteImage(volume(mask, spacing), str(root / "labelsTr" / f"case_{index}.nii.gz"))
    describe(root, ".nii.gz", CHANNELS)
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(description | {"numTraining": 7}))
    return root
