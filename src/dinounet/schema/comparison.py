"""The records of `comparison.json`: models side by side on the same cases."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from dinounet.schema.base import record
from dinounet.schema.labels import Labels
from dinounet.schema.metrics import Basis, By, EmptyCounts, Interval, MeanMetrics, Unit, VolumeUnit


@record
class Difference:
    """A model compared with the first one in one metric, over the same cases."""

    mean: float
    """The model's number minus the first model's, averaged over cases."""

    interval: Interval | None
    """95 % confidence interval of this mean; null if there is only one case."""

    p: float
    """p of Wilcoxon's signed-rank test, two-sided, uncorrected; 1 where no case differs."""

    wins: int
    """Cases in which the model is better than the first one."""

    ties: int
    """Cases in which both are the same, up to 1e-9."""

    losses: int
    """Cases in which the first one is better."""


@record
class Origin:
    """Cost of a model's training and prediction; null where unknown."""

    trained_parameters: int | None = None
    """Number of trained parameters."""

    training_seconds: float | None = None
    """Training time in seconds."""

    seconds_per_image: float | None = None
    """Prediction time in seconds per image."""


@record
class ComparedModel:
    """One folder of predictions."""

    name: str
    """Name of the folder, or as given."""

    folder: str
    """Path of the folder of masks."""

    origin: Origin
    """What its training and prediction cost."""

    mean_over_cases: dict[str, MeanMetrics]
    """Means by class."""

    mean_over_cases_and_classes: MeanMetrics
    """Means over cases and classes, with equal weights, except for the classes that are left out."""

    empties: dict[str, EmptyCounts]
    """Empty masks by class."""

    basis: dict[str, Basis]
    """Basis of each class's mean."""

    basis_over_classes: Basis
    """Basis of the means over classes."""

    warning: str
    """That the model, or in which classes, isn't clearly above an all-background prediction; empty if it is."""

    differences: dict[str, dict[str, Difference]] | None = None
    """To the first model, of each class and measure; null for the first itself."""

    differences_over_classes: dict[str, Difference] | None = None
    """The same of each measure's mean over the classes of a case."""

    differences_where_present: dict[str, dict[str, Difference] | None] | None = None
    """As `differences`, over the cases alone whose truth has the class; null of a class that none has."""


@record
class Comparison:
    """Contents of `compare.json`, as `dinounet compare` writes it."""

    truth: str
    """The folder of the ground truth."""

    cases: tuple[str, ...]
    """Names of the cases that all models were evaluated on."""

    unit: Unit
    """Unit of distances and of the tolerance."""

    volume_unit: VolumeUnit
    """Unit of volume differences."""

    tolerance: float
    """Tolerance of NSD."""

    policy: str
    """How empty masks are counted."""

    bootstrap: str
    """How the intervals were computed."""

    labels: Labels
    """Labels of masks and ground truth, as in `metrics.json`."""

    models: tuple[ComparedModel, ...]
    """Models in the order given; the others are compared with the first."""

    highest: tuple[str, ...]
    """Models whose mean Dice over everything is the highest, empty masks counted by the policy."""

    highest_where_present: tuple[str, ...]
    """Models whose mean Dice over the cases that have the classes is the highest; none where no case has one."""

    by: By = "case"
    """What was scored: each case, or each group with the pixels of its cases pooled."""

    groups: tuple[str, ...] = ()
    """The groups that were scored; none by case."""

    left_out: dict[str, str] = field(default_factory=dict)
    """Classes that are in no model's means over classes, since some model could not learn them, and why."""

    format: Literal[3] = 3
    """Version of this file's keys."""
