"""The demo's data and training: a real dataset made from what a package's wheel carries.

The ICBM 152 template (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033) as nilearn ships it: one average brain
in T1 weighting with maps of grey and white matter. Contiguous slabs of axial slices serve as cases.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dinounet.data.geometry import Geometry, Volume
from dinounet.data.images import write_image, write_mask
from dinounet.errors import UserError, WeightsError
from dinounet.files import whole_folder, write_json
from dinounet.network.weights import find_weights, source_of
from dinounet.plans import Recipe
from dinounet.progress import say
from dinounet.run import RECORD, read_run
from dinounet.training.agreement import require_as_started
from dinounet.training.session import resume_run, start_run

DATASET = "Dataset152_ICBM"
LABELS = {"background": 0, "grey matter": 1, "white matter": 2}
SLAB, GAP = 6, 2
"""Slices of a case, and slices dropped between neighbours, so that no case touches another."""
SLICES = range(56, 144)
"""Axial slices through the cerebrum, 1 mm apart."""
TEST_EVERY = 4
"""One slab in so many is kept from training, each between two that are not."""

BACKBONE = "dinov3_vits16"
PATCH = (192, 160)
RECIPE = Recipe(steps=300, batch=2, validate_every=75, augmentation="flip")
"""Sized for five minutes on two cores."""


def write_demo_dataset(folder: Path) -> None:
    """Write the dataset in nnU-Net's layout: imagesTr, labelsTr, imagesTs, and labelsTs for the evaluation.

    Raises:
        UserError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError:
        raise UserError("the demo needs nilearn, which carries its images; pip install 'dinounet[demo]'") from None
    image, grey, white = (
        np.asarray(load(resolution=1).get_fdata(dtype=np.float32))
        for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    labels = np.where(np.maximum(grey, white) < 0.5, 0, np.where(grey >= white, 1, 2))
    with whole_folder(folder) as root:
        for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (root / name).mkdir()
        starts = range(SLICES.start, SLICES.stop - SLAB + 1, SLAB + GAP)
        for index, start in enumerate(starts):
            part = "Ts" if index % TEST_EVERY == 1 else "Tr"
            # nilearn gives x, y, z; x is 1 mm to the right of its neighbour, as the geometry's direction says
            slab = np.s_[:, :, start : start + SLAB]
            geometry = Geometry((1.0, 1.0, 1.0), (98.0, 134.0, start - 72.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
            name = f"slab_{index:02d}"
            write_image(root / f"images{part}" / f"{name}_0000.nii.gz", image[slab].T * 1000, geometry)
            like = Volume(labels[slab].T, geometry, root)
            write_mask(root / f"labels{part}" / f"{name}.nii.gz", labels[slab].T, like)
        write_json(
            root / "dataset.json",
            {
                "channel_names": {"0": "T1"},
                "labels": LABELS,
                "numTraining": len(list((root / "labelsTr").iterdir())),
                "file_ending": ".nii.gz",
                "reference": "ICBM 152 template 2009, Fonov et al., doi:10.1016/j.neuroimage.2010.07.033",
            },
        )


def train_demo(data: Path, run: Path, weights: str | None, recipe: Recipe = RECIPE) -> None:
    """Start the demo's run, or go on with it. Only here may the Hub's weights be replaced by random ones.

    Args:
        data: the demo's dataset.
        run: folder of its run.
        weights: the backbone's; None: the Hub's, or those that the run was started with.
        recipe: how to train.

    Raises:
        UserError: weights other than the Hub's can't be had, or a run was started with others; or Ctrl-C, when the run
            can be resumed.
    """
    if (run / RECORD).exists():
        asked = {"weights": weights and source_of(weights)}
        require_as_started(data, run, read_run(run), None, asked)
        if read_run(run).status != "finished":
            resume_run(data, run)
        return
    notes: tuple[str, ...] = ()
    weights = weights or "hub"
    try:
        find_weights(BACKBONE, weights)
    except WeightsError:
        if weights != "hub":
            raise
        note = (
            "The Hugging Face Hub could not be reached, so the backbone has random weights instead of DINOv3's: "
            "these results show that everything works, not what pretrained features are worth."
        )
        say("weights", note, weights="random")
        weights, notes = "random", (note,)
    start_run(data, run, recipe=recipe, backbone=BACKBONE, weights=weights, patch=PATCH, notes=notes)
