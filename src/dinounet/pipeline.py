"""From a dataset to a report in one call: train, predict the held-out cases, evaluate them, and write the page."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from dinounet.backbones.weights import find_weights
from dinounet.bundle.load import load
from dinounet.console import progress, say
from dinounet.data.dataset import Dataset, with_twins
from dinounet.data.geometry import Geometry, Volume
from dinounet.data.images import stem_of, write_image, write_mask
from dinounet.data.layouts import Case, known_files
from dinounet.errors import DataError, WeightsError, naming_the_extra
from dinounet.evaluation.evaluate import evaluate_cases
from dinounet.evaluation.groups import NOT_LEARNED
from dinounet.evaluation.means import describe_basis, is_above_floor, read_metrics
from dinounet.evaluation.metrics import find_probabilities, write_number
from dinounet.evaluation.postprocessing_search import choose
from dinounet.inference.folder import differences, predict_folder, record_prediction
from dinounet.inference.outputs import Outputs, choose_endings
from dinounet.inference.postprocessing import describe
from dinounet.inference.predictor import Predictor
from dinounet.io import METRICS, PREDICTION, PROBABILITIES, atomic_dir, remove_leftovers, write_json
from dinounet.reporting.case_images import picture_cases
from dinounet.reporting.report import write_report
from dinounet.schema.base import read_record
from dinounet.schema.metrics import Metrics
from dinounet.schema.prediction import POSTPROCESSING, PredictionRecord, read_postprocessing
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import RECORD, REPORT, Result, read_log, read_run, tell
from dinounet.training.options import TrainOptions, dataset_reader, require_as_started
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
RECIPE = Recipe(steps=300, batch_size=2, eval_interval=75, augmentation="flip")
"""Sized for five minutes on two cores."""


def write_demo_dataset(folder: Path) -> None:
    """Write the dataset in nnU-Net's layout: imagesTr, labelsTr, imagesTs, and labelsTs for the evaluation.

    Raises:
        MissingPackage: nilearn is not installed.
    """
    with naming_the_extra("the demo"):
        from nilearn import datasets  # which carries its images
    image, grey, white = (
        np.asarray(load(resolution=1).get_fdata(dtype=np.float32))
        for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    labels = np.where(np.maximum(grey, white) < 0.5, 0, np.where(grey >= white, 1, 2))
    with atomic_dir(folder) as root:
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
        record = read_run(run)
        require_as_started(dataset_reader(data, record), run, record, TrainOptions(weights=weights))
        if record.status != "finished":
            resume_run(data, run, TrainOptions())
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
    start_run(data, run, TrainOptions(recipe=recipe, backbone=BACKBONE, weights=weights, patch=PATCH, notes=notes))


MOST_LEARNED = 10
"""Cases that are looked at where all were learned from: enough to see that training worked."""

MOST_FOR_CALIBRATION = 2 << 30
"""Bytes of probabilities that are written for a while, to tell their calibration; if they were more, it is left out."""

NOTHING_KEPT = (
    "No case was kept from training: these masks are of cases that the network learned from. They show that it "
    "learned, and say nothing about how well it segments others."
)


def lacks_review(run: Path) -> bool:
    """Whether a run is finished but has no report."""
    return (run / RECORD).is_file() and read_run(run).status == "finished" and not (run / REPORT).exists()


def review_run(dataset: Dataset, run: Path) -> Path:
    """Predict and evaluate the cases that a finished run has not learned from, and write its report.

    What an interrupted review has left, masks included, is not made again.

    Args:
        dataset: that the run learned from, as it was read.
        run: its folder.

    Returns:
        The report's path.

    Raises:
        UserError: the run is not finished, or its cases or weights are not there any more.
    """
    remove_leftovers(run)
    record = read_run(run)
    known = (*with_twins(dataset, record.plan.data.groups.twins).cases, *dataset.held_out)
    parts = {"validation": record.data.validation_cases, "test": record.data.test_cases}
    parts = {part: names for part, names in parts.items() if names}
    parts = parts or {"training": record.data.training_cases[:MOST_LEARNED]}
    notes = [NOTHING_KEPT] if "training" in parts else []
    for part, names in parts.items():
        cases = [case for case in known if case.name in names]
        if len(cases) < len(names):
            raise DataError(
                f"{dataset.name} lacks {len(names) - len(cases)} of the {part} cases of {run}; put them back"
            )
        if not (run / part / METRICS).exists():
            _predict_and_evaluate(cases, run, run / part, "auto" if part == "test" else "none")
        metrics = read_metrics(run / part / METRICS)
        mean = metrics.mean_over_cases_and_classes
        record = replace(record, results={**record.results, part: _result(metrics)})
        write_json(run / RECORD, record)
        say(
            "reviewed",
            f"{len(cases)} {part} cases: mean foreground Dice {write_number('dice', mean.dice)}, "
            f"HD95 {write_number('hd95', mean.hd95)} {metrics.unit}. {describe_basis(metrics)}",
            cases=part,
            dice=mean.dice,
            hd95=mean.hd95,
            unit=metrics.unit,
            dice_where_present=record.results[part].dice_where_present,
            floor=record.results[part].floor,
        )
        if part == "validation" and not (run / POSTPROCESSING).exists():
            _choose_postprocessing(cases, run)
    if part != "training":
        notes += _tell_postprocessing(run, part)
    write_report(
        run / REPORT,
        title=f"{record.data.name}, {part} cases",
        metrics=metrics,
        pictures=picture_cases(metrics, cases, _masks_in(run / part)),
        run=tell(record),
        log=read_log(run),
        notes=notes,
    )
    say("report", f"open {run / REPORT}", report=str(run / REPORT))
    return run / REPORT


def _result(metrics: Metrics) -> Result:
    basis = metrics.basis_over_classes
    above = is_above_floor(basis)
    return Result(
        cases=len(metrics.cases),
        dice=metrics.mean_over_cases_and_classes.dice,
        dice_where_present=basis.mean_where_present.dice if basis.mean_where_present else None,
        false_alarms=basis.false_alarms,
        floor=basis.floor,
        clearly_above_floor=None if above == "too few cases" else above == "clearly",
    )


def _predict_and_evaluate(cases: Sequence[Case], run: Path, folder: Path, postprocessing: str) -> None:
    record = read_run(run)
    predictor = load(
        run, device=record.device, precision=record.precision, offload=record.offload, postprocessing=postprocessing
    )
    made = record_prediction(predictor)
    endings = choose_endings(cases, None, predictor.plan.data.labels.largest)
    outputs = Outputs(folder, endings, _bytes_of_probabilities(predictor, len(cases)) <= MOST_FOR_CALIBRATION)
    if (folder / PREDICTION).is_file() and differences(read_prediction(folder), made):  # such as by another version
        shutil.rmtree(folder)
    with progress("predicting", len(cases)) as advance:
        predict_folder(predictor, cases, outputs, made, on_case=advance)
    with progress("evaluating", len(cases)) as advance:
        evaluate_cases(
            cases, _masks_in(folder), predictor.plan.data.labels, folder / METRICS, lambda _: advance(),
            probabilities=find_probabilities(folder, [case.name for case in cases]),
            in_pixels=predictor.plan.data.fingerprint.mixes_units,
            left_out=dict.fromkeys(record.data.absent_classes, NOT_LEARNED),
        )  # fmt: skip
    shutil.rmtree(folder / PROBABILITIES, ignore_errors=True)


def _bytes_of_probabilities(predictor: Predictor, cases: int) -> int:
    data = predictor.plan.data
    return 2 * cases * len(data.labels.outputs) * math.prod(data.fingerprint.median_shape)


def _choose_postprocessing(cases: Sequence[Case], run: Path) -> None:
    post = choose(cases, _masks_in(run / "validation"), read_run(run).plan.data.labels)
    write_json(run / POSTPROCESSING, post)
    say("postprocessing", describe(post) or "no postprocessing improves the masks", classes=asdict(post)["classes"])


def _tell_postprocessing(run: Path, part: str) -> list[str]:
    """What a reader must know of the steps that were chosen, if any, in a sentence."""
    used = read_prediction(run / part).postprocessing
    if used and used.does_something:
        return [f"These masks are postprocessed as chosen on {len(used.cases)} validation cases ({describe(used)})."]
    chosen = read_postprocessing(run)
    if chosen and chosen.does_something:
        words = "These masks are as the network made them; on"
        return [f"{words} validation cases it was chosen how later masks are postprocessed ({describe(chosen)})."]
    return []


def read_prediction(folder: Path) -> PredictionRecord:
    """The record of a prediction, beside its masks."""
    return read_record(PredictionRecord, folder / PREDICTION, what="the record of a prediction")


def _masks_in(folder: Path) -> dict[str, Path]:
    """The predicted masks by their cases' names."""
    return {stem_of(path): path for path in known_files(folder)}
