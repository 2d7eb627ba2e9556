"""What a run is worth: masks of cases that it did not learn from, compared with their truth, and all of it on a page.

Leaves in the run's folder `validation/` and, where cases were held out, `test/` (masks, `prediction.json`,
`metrics.json`), and `report.html` of the latter, else of the former. Masks of the validation cases are as the network
made them, and `postprocessing.json` is chosen on them; it is done to the masks of test cases, and to all later ones.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dinounet.choosing import choose
from dinounet.data.dataset import read_dataset, with_twins
from dinounet.data.images import stem_of
from dinounet.data.pairs import Case, known_files
from dinounet.errors import DataError
from dinounet.evaluation.calibration import find_probabilities
from dinounet.evaluation.digits import write_number
from dinounet.evaluation.evaluate import evaluate_cases
from dinounet.evaluation.labels import NOT_LEARNED
from dinounet.evaluation.means import describe_basis, is_above_floor
from dinounet.evaluation.pictures import picture_cases
from dinounet.evaluation.records import Metrics, read_metrics
from dinounet.evaluation.report import write_report
from dinounet.files import METRICS, PREDICTION, PROBABILITIES, read_record, remove_leftovers, whole_folder, write_json
from dinounet.inference.folder import predict_files
from dinounet.inference.loading import load
from dinounet.inference.postprocessing import POSTPROCESSING, describe, read_postprocessing
from dinounet.inference.predictor import Predictor
from dinounet.inference.record import PredictionRecord, at_the_detector, record_prediction
from dinounet.progress import progress, say
from dinounet.run import RECORD, REPORT, Result, read_log, read_run, tell

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


def review_run(data: Path, run: Path) -> Path:
    """Predict and evaluate the cases that a finished run has not learned from, and write its report.

    Returns:
        The report's path.

    Raises:
        UserError: the run is not finished, or its cases or weights are not there any more.
    """
    remove_leftovers(run)
    record = read_run(run)
    dataset = with_twins(read_dataset(data, group=record.plan.data.groups.by), record.plan.data.groups.twins)
    parts = {"validation": record.data.validation_cases, "test": record.data.test_cases}
    parts = {part: names for part, names in parts.items() if names}
    parts = parts or {"training": record.data.training_cases[:MOST_LEARNED]}
    notes = [NOTHING_KEPT] if "training" in parts else []
    for part, names in parts.items():
        cases = [case for case in dataset.cases if case.name in names]
        if len(cases) < len(names):
            raise DataError(
                f"{dataset.name} lacks {len(names) - len(cases)} of the {part} cases of {run}; put them back"
            )
        if not (run / part).exists():  # else a review that was interrupted goes on from there
            with whole_folder(run / part) as folder:
                _predict_and_evaluate(cases, run, folder, "auto" if part == "test" else "none")
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
    made, started = record_prediction(predictor), time.monotonic()
    calibrates = _bytes_of_probabilities(predictor, len(cases)) <= MOST_FOR_CALIBRATION
    with progress("predicting", len(cases)) as advance:
        predict_files(predictor, cases, folder, on_case=advance, probabilities=calibrates)
    seconds = time.monotonic() - started
    made = replace(made, images=len(cases), seconds=seconds, at_the_detector=at_the_detector(cases))
    write_json(folder / PREDICTION, made)
    with progress("evaluating", len(cases)) as advance:
        evaluate_cases(
            cases, _masks_in(folder), predictor.plan.data.meaning, folder / METRICS, lambda _: advance(),
            probabilities=find_probabilities(folder, [case.name for case in cases]),
            in_pixels=predictor.plan.data.fingerprint.mixes_units,
            left_out=dict.fromkeys(record.data.absent_classes, NOT_LEARNED),
        )  # fmt: skip
    shutil.rmtree(folder / PROBABILITIES, ignore_errors=True)


def _bytes_of_probabilities(predictor: Predictor, cases: int) -> int:
    data = predictor.plan.data
    return 2 * cases * len(data.meaning.outputs) * math.prod(data.fingerprint.median_shape)


def _choose_postprocessing(cases: Sequence[Case], run: Path) -> None:
    post = choose(cases, _masks_in(run / "validation"), read_run(run).plan.data.meaning)
    write_json(run / POSTPROCESSING, post)
    say("postprocessing", describe(post) or "no postprocessing helps", classes=asdict(post)["classes"])


def _tell_postprocessing(run: Path, part: str) -> list[str]:
    """What a reader must know of the steps that were chosen, if any, in a sentence."""
    used = read_record(PredictionRecord, run / part / PREDICTION, what="the record of a prediction").postprocessing
    if used and used.does_something:
        return [f"These masks are postprocessed as chosen on {len(used.cases)} validation cases ({describe(used)})."]
    chosen = read_postprocessing(run)
    if chosen and chosen.does_something:
        words = "These masks are as the network made them; on"
        return [f"{words} validation cases it was chosen how later masks are postprocessed ({describe(chosen)})."]
    return []


def _masks_in(folder: Path) -> dict[str, Path]:
    """The predicted masks by their cases' names."""
    return {stem_of(path): path for path in known_files(folder)}
