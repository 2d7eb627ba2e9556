"""The records of `comparison.json`: models side by side on the same cases."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from dinounet.schema.base import record
from dinounet.schema.labels import Labels
from dinounet.schema.metrics import Basis, By, EmptyCounts, Interval, MeanMetrics, Unit, VolumeUnit


@record
class Difference:
    """A model against the first one in one measure, over the same cases."""

    mean: float
    """The model's number minus the first model's, averaged over cases."""

    interval: Interval | None
    """Where this mean lies with a confidence of 95 %; null where there is one case only."""

    p: float
    """Of Wilcoxon's signed-rank test, two-sided, uncorrected; 1 where no case differs."""

    wins: int
    """Cases in which the model is better than the first one."""

    ties: int
    """Cases in which both are the same, up to 1e-9."""

    losses: int
    """Cases in which the first one is better."""


@record
class Origin:
    """What is known of how masks came about; null where nobody knows."""

    trained_parameters: int | None = None
    """Numbers that were trained."""

    training_seconds: float | None = None
    """Spent training."""

    seconds_per_image: float | None = None
    """Spent predicting."""


@record
class ComparedModel:
    """One folder of predictions."""

    name: str
    """The folder's, or as given."""

    folder: str
    """Of its masks."""

    origin: Origin
    """What its training and prediction cost."""

    mean_over_cases: dict[str, MeanMetrics]
    """Of each class."""

    mean_over_cases_and_classes: MeanMetrics
    """Of everything; each case and class weighs the same, but for the classes that are left out."""

    empties: dict[str, EmptyCounts]
    """Of each class."""

    basis: dict[str, Basis]
    """Of each class, what its mean rests on."""

    basis_over_classes: Basis
    """The same over classes."""

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
    """What `dinounet compare` writes."""

    truth: str
    """The folder of the truth."""

    cases: tuple[str, ...]
    """Which all models were evaluated on."""

    unit: Unit
    """Of distances and of the tolerance."""

    volume_unit: VolumeUnit
    """Unit of volume differences."""

    tolerance: float
    """Of NSD."""

    policy: str
    """What an empty mask counts."""

    bootstrap: str
    """How the intervals came about."""

    labels: Labels
    """Of masks and truth, as in `metrics.json`."""

    models: tuple[ComparedModel, ...]
    """In the order given; the others are compared with the first."""

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
