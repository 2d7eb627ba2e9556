"""The records of `metrics.json`, and the `metrics.csv` beside it; `docs/evaluation.md` documents both."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal

from dinounet.errors import ConfigError
from dinounet.io import atomic_write, write_json
from dinounet.schema.base import Migrations, record
from dinounet.schema.labels import Labels
from dinounet.schema.migrations import embed_labels

NAMES = ("dice", "iou", "nsd", "precision", "recall", "hd95", "assd", "volume_difference")
"""Of all measures, in the order of tables."""


@record
class Measures:
    """Metrics of one class."""

    dice: float
    """Twice the overlap over the sum of both masks, from 0 to 1."""

    iou: float
    """The overlap over the union of both masks, from 0 to 1."""

    nsd: float
    """Fraction of both surfaces that is within the tolerance of the other, from 0 to 1."""

    precision: float
    """Fraction of the prediction that is correct, from 0 to 1."""

    recall: float
    """Fraction of the ground truth that was found, from 0 to 1."""

    hd95: float
    """95th percentile of the distances between the surfaces, in `unit`."""

    assd: float
    """Mean distance between the surfaces, in `unit`."""

    volume_difference: float
    """Prediction minus truth, in `volume_unit`."""


Empty = Literal["both", "truth", "prediction"]
Unit = Literal["mm", "mm at the detector", "px"]
VolumeUnit = Literal["ml", "mm2", "mm2 at the detector", "px"]
Interval = tuple[float, float]
By = Literal["case", "group"]

EMPTY: dict[tuple[bool, bool], Empty | None] = {
    (True, True): None,
    (True, False): "prediction",
    (False, True): "truth",
    (False, False): "both",
}
"""Where a class is empty, by whether truth and prediction hold it."""
WORDS = {"both": "empty in both", "truth": "not in the truth", "prediction": "missed"}
"""What it means that a class is empty there."""


@record
class ClassMetrics(Measures):
    """Metrics of one class in one case."""

    empty: Empty | None = None
    """Where the class has no pixel, if anywhere; the numbers are then the policy's."""


@record
class CaseMetrics:
    """Metrics of one case, or of a group's cases with their pixels pooled."""

    case: str
    """The file's name without extension; or the group's name."""

    unit: Unit
    """Unit of distances: mm; mm at the detector for uncalibrated X-rays; px where the ground truth has no spacing."""

    volume_unit: VolumeUnit
    """Unit of volume differences: ml; mm2 (at the detector) for 2D images; px (pixels) without a spacing."""

    classes: dict[str, ClassMetrics]
    """Metrics by class name, without the background; or by region."""

    ignored_pixels: int = 0
    """Number of ignored pixels of the ground truth, which were left out of both masks."""

    group: str | None = None
    """Group of the case, such as a patient; null where it is unknown."""

    pooled: tuple[str, ...] = ()
    """Names of a group's cases; empty for a case."""

    @property
    def dice(self) -> float:
        """Mean over the classes."""
        return self.mean("dice")

    @property
    def hd95(self) -> float:
        """Mean over the classes, in `unit`."""
        return self.mean("hd95")

    def mean(self, name: str) -> float:
        """A measure's mean over the classes."""
        numbers = [getattr(found, name) for found in self.classes.values()]
        return float(sum(numbers) / len(numbers))


@record
class MeanMetrics(Measures):
    """Means, empty masks counted as the policy says."""

    intervals: dict[str, Interval | None]
    """95 % confidence interval of each mean, by its name; null if there is only one case."""


@record
class Basis:
    """What the mean Dice of a class rests on, or over classes that of pairs of case and class.

    Where groups were scored, they are meant by cases.
    """

    present: int
    """Cases whose truth has the class."""

    mean_where_present: MeanMetrics | None
    """Means over these alone; null where there is none. Over classes, the mean over those that some case has."""

    absent: int
    """Cases whose truth lacks the class."""

    false_alarms: int
    """Number of these in which the class was predicted."""

    false_alarm_volume: float | None
    """Mean volume predicted in the false alarms, in `volume_unit`; null where there is none."""

    floor: float
    """What an all-background prediction would score on the same cases under the same policy, in Dice as in IoU,
    NSD, precision and recall: the share of the cases that lack the class."""

    above_floor: float
    """The mean Dice minus the floor."""

    above_floor_interval: Interval | None
    """Where this difference, paired by case, lies with a confidence of 95 %, if any case has the class; null where
    there is one case only."""

    drawn: int
    """Number of cases that have the class, or of groups if the bootstrap draws groups."""


@record
class EmptyCounts:
    """Number of cases in which one class is empty, by where it is."""

    both: int
    """Absent and not predicted."""

    truth: int
    """Predicted, but absent."""

    prediction: int
    """Present, but missed."""


@record
class Bin:
    """Decisions of similar confidence."""

    low: float
    """Lower bound of the confidence."""

    high: float
    """Upper bound of the confidence."""

    count: int
    """Number of decisions."""

    confidence: float | None
    """Their mean confidence; null without any."""

    accuracy: float | None
    """Accuracy; null without any."""


@record
class Calibration:
    """Calibration of the probabilities: of pixels that are 80 % certain, 80 % should be right."""

    bins: tuple[Bin, ...]
    """Equally wide, from 0 to 1, by the probability of the class that is most probable at a pixel; with regions by that
    of each yes or no, all regions pooled."""

    ece: float
    """Expected calibration error: the distance of confidence and accuracy, averaged over pixels."""

    count: int
    """Number of decisions: pixels that are not ignored, with regions times the number of regions."""


@record
class Metrics:
    """Contents of `metrics.json`."""

    labels: Labels
    """Classes and their numbers, of which the background is not evaluated; regions, which are evaluated instead; the
    number of the truth's pixels that were left out; colours of a truth in colours, whose numbers are ours."""

    policy: str
    """How empty masks are counted."""

    bootstrap: str
    """How the intervals were computed."""

    tolerance: float
    """Tolerance of NSD, in the unit of the distances."""

    cases: tuple[CaseMetrics, ...]
    """Cases, sorted by name."""

    mean_over_cases: dict[str, MeanMetrics]
    """Means by class."""

    mean_over_cases_and_classes: MeanMetrics
    """Means over cases and classes, with equal weights, except for the classes that are left out."""

    empties: dict[str, EmptyCounts]
    """Empty masks by class."""

    basis: dict[str, Basis]
    """Basis of each class's mean: cases that have it, false alarms, an all-background prediction's score."""

    basis_over_classes: Basis
    """Basis of the means over classes."""

    by: By = "case"
    """What was scored: each case, or each group with the pixels of its cases pooled. All means, counts and intervals
    are over these."""

    groups: tuple[CaseMetrics, ...] = ()
    """The groups that were scored, sorted by name; none by case."""

    left_out: dict[str, str] = field(default_factory=dict)
    """Classes that are excluded from the means over classes, and why."""

    calibration: Calibration | None = None
    """Calibration of the probabilities, if they were kept beside the predicted masks."""

    format: Literal[4] = 4
    """Version of this file's keys."""

    MIGRATIONS: ClassVar[Migrations] = {3: embed_labels}

    def __post_init__(self) -> None:
        if not self.cases or len({(case.unit, case.volume_unit) for case in self.cases}) > 1:
            raise ConfigError(
                "cases must be at least one, and their units the same, of distances and of volumes; evaluate again"
            )

    @property
    def scored(self) -> tuple[CaseMetrics, ...]:
        """What means are over: the cases, or the groups."""
        return self.groups if self.by == "group" else self.cases

    @property
    def unit(self) -> Unit:
        """Of every distance and of the tolerance."""
        return self.cases[0].unit

    @property
    def volume_unit(self) -> VolumeUnit:
        """Of every volume difference."""
        return self.cases[0].volume_unit

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """What was evaluated, classes or regions, and the numbers that stand for it in masks."""
        return self.labels.foreground

    @property
    def ignored_pixels(self) -> int:
        """Of all cases."""
        return sum(case.ignored_pixels for case in self.cases)

    @property
    def remark_on_ignored(self) -> str:
        """What an ignore label left out, as the beginning of a sentence; empty without one."""
        if self.labels.ignore is None:
            return ""
        return (
            f"{self.ignored_pixels:,} pixels that the truth ignores ({self.labels.ignore}) are left out of both masks; "
        )

    @property
    def worst_first(self) -> tuple[CaseMetrics, ...]:
        """The cases by rising mean Dice; of equals, the farther one first."""
        return worst_first(self.cases)


def worst_first(cases: Sequence[CaseMetrics]) -> tuple[CaseMetrics, ...]:
    """Cases or groups by rising mean Dice; of equals, the farther one first."""
    return tuple(sorted(cases, key=lambda case: (case.dice, -case.hd95, case.case)))


def group_of(case: CaseMetrics) -> str:
    """The group of a case; where that isn't known, it is its own."""
    return case.case if case.group is None else case.group


def count_empties(empties: Mapping[str, EmptyCounts]) -> EmptyCounts:
    """How many pairs of case and class are empty where."""
    return EmptyCounts(*(sum(getattr(count, where) for count in empties.values()) for where in WORDS))


def describe_empties(metrics: Metrics) -> str:
    """The empty masks in a sentence."""
    counts = count_empties(metrics.empties)
    pairs = len(metrics.scored) * len(metrics.empties)
    return (
        f"Of {pairs} pairs of {metrics.by} and class, missed entirely (only the prediction is empty): "
        f"{counts.prediction}; found where there is nothing (only the truth is empty): {counts.truth}; empty in both: "
        f"{counts.both}."
    )


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Write all of it as JSON, and as CSV beside that every measure of every case, and group, and class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["case", "class", *NAMES, "empty", "unit", "volume_unit", "group", "by"])
        for by, scored in (("case", metrics.cases), ("group", metrics.groups)):
            for case in scored:
                whose = (case.case, case.group or "") if by == "case" else ("", case.case)
                for name, found in case.classes.items():
                    numbers = [getattr(found, measure) for measure in NAMES]
                    units = case.unit, case.volume_unit
                    table.writerow([whose[0], name, *numbers, found.empty or "", *units, whose[1], by])
    write_json(path, metrics)
