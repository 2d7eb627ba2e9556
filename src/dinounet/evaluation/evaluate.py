"""A folder of predictions against a folder of truths: `metrics.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

import numpy as np

from dinounet.console import say
from dinounet.data.geometry import Volume, require_same_grid, require_straight
from dinounet.data.images import VOLUME_ENDINGS, ending_of, on_one_grid
from dinounet.data.label_inference import OddValues, describe_problems
from dinounet.data.layouts import Case, ClassFiles, class_files, mask_files, name_of
from dinounet.data.legends import palettes_differ
from dinounet.data.masks import count_values, read_mask, read_truth, where
from dinounet.data.splits import by_group
from dinounet.errors import ConfigError, DataError, collect_errors
from dinounet.evaluation.groups import (
    CountedCase,
    find_absent,
    find_at_the_detector,
    measure_case,
    measure_group,
    with_groups,
)
from dinounet.evaluation.means import summarise
from dinounet.evaluation.metrics import NUMBERS, count_decisions, find_probabilities, summarise_decisions, tally
from dinounet.io import PREDICTION, summarize
from dinounet.schema.labels import Labels, write_labels
from dinounet.schema.metrics import By, Metrics, Unit, VolumeUnit, group_of, write_metrics
from dinounet.schema.plan import AT_THE_DETECTOR

TOLERANCE = 1.0
"""Default tolerance of NSD, in mm or px."""


def find_masks(folder: Path, cases: Iterable[str] = ()) -> dict[str, Path | ClassFiles]:
    """A folder's masks by case (`pairs.name_of`), sorted; files in other formats are passed over.

    Args:
        folder: of masks, and of folders of them; where `prediction.json` lies, only what lies beside it counts, since
            probabilities and pictures may be in folders below.
        cases: names of cases that it may have a mask per class of.

    Raises:
        DataError: the folder is missing or holds no mask, or a case's mask twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give one that holds a mask for each case")
    masks = mask_files(folder)
    if (folder / PREDICTION).exists():
        masks = [path for path in masks if path.parent == folder]
    classes = class_files(masks, folder, cases)
    if classes:
        return {case: classes[case] for case in sorted(classes)}
    found: dict[str, list[Path]] = {}
    for path in masks:
        found.setdefault(name_of(path, folder), []).append(path)
    twice = [f"{paths[0].name} and {paths[1].name}" for paths in found.values() if len(paths) > 1]
    if twice:
        raise DataError(f"{folder} holds more than one mask of a case: {summarize(twice)}; keep one of each")
    if not found:
        raise DataError(f"{folder} holds no masks; give the folder with <case>.nii.gz, .png or their like")
    return {case: paths[0] for case, paths in found.items()}


def evaluate_folders(
    predictions: Path,
    truth: Path,
    labels: Labels | Mapping[str, int],
    output: Path | None = None,
    on_case: Callable[[str], None] | None = None,
    *,
    tolerance: float = TOLERANCE,
    by: By = "case",
    groups: Path | Mapping[str, str] | None = None,
) -> Metrics:
    """Compare masks with the truth, case by case; files are paired by name without ending, formats may differ.

    Args:
        predictions: folder with a mask for each case of the truth, and no other.
        truth: folder of masks; their spacing is what distances are measured by.
        labels: names and numbers of the classes, of which 0 is background and not evaluated; or all that is known of
            them, with regions, which are evaluated instead, and the number of pixels that are left out.
        output: the file to write the metrics to as JSON; a table of them goes beside it as CSV.
        on_case: is called with the name of each case that is done.
        tolerance: of NSD, in mm, or in px where the truth knows of no spacing.
        by: what is scored: each case, or each group with the pixels of its cases pooled.
        groups: of each case its group, such as the patient, or a CSV file with the columns case and group; intervals
            are then resampled over groups. By group it may be left out where `metrics.json` among the predictions knows
            them, as a run's review does, or the truth has a folder for each.

    Raises:
        ConfigError: the tolerance is not above 0, or nothing says which cases are of one group.
        DataError: all that is wrong with the masks, together: a mask is missing, superfluous or unreadable, the grids
            of a pair differ, a value is no label, or some cases are measured in other units than others.
    """
    known = labels if isinstance(labels, Labels) else Labels(dict(labels))
    cases, predicted, problems = pair_folders(predictions, truth)
    with collect_errors(problems):
        cases, told = with_groups(cases, predictions, truth, by, groups)
        if told:
            say("note", told)
    probabilities: dict[str, Path] = {}
    with collect_errors(problems):
        probabilities = find_probabilities(predictions, [case.name for case in cases])
    return evaluate_cases(
        cases, predicted, known, output, on_case,
        problems=problems, tolerance=tolerance, probabilities=probabilities, by=by,
        left_out=find_absent(predictions, known), at_the_detector=find_at_the_detector(predictions),
    )  # fmt: skip


def pair_folders(predictions: Path, truth: Path) -> tuple[list[Case], dict[str, Path | ClassFiles], list[str]]:
    """The cases that both folders hold, the file of each one's predicted mask, and what is wrong with their names.

    Raises:
        DataError: a folder is missing or holds no mask, or a case's mask twice.
    """
    predicted = find_masks(predictions)
    truths = find_masks(truth, predicted)
    problems = _name_problems(predictions, truth, predicted.keys(), truths.keys())
    return [Case(name, (), truths[name]) for name in sorted(truths.keys() & predicted.keys())], predicted, problems


def evaluate_cases(
    cases: Sequence[Case],
    predicted: Mapping[str, Path | ClassFiles],
    known: Labels,
    output: Path | None = None,
    on_case: Callable[[str], None] | None = None,
    *,
    problems: Sequence[str] = (),
    tolerance: float = TOLERANCE,
    probabilities: Mapping[str, Path] | None = None,
    by: By = "case",
    left_out: Mapping[str, str] | None = None,
    at_the_detector: Collection[str] = (),
    in_pixels: bool = False,
) -> Metrics:
    """Compare the masks of cases, wherever they are, with their truth; see `evaluate_folders`.

    Args:
        cases: whose truth is known; where their groups are, intervals are resampled over groups.
        predicted: the file of each case's predicted mask, by its name.
        known: what the numbers in the masks stand for.
        output: the file to write the metrics to as JSON; a table of them goes beside it as CSV.
        on_case: is called with the name of each case that is done.
        problems: what is known to be wrong already; told together with all else.
        tolerance: of NSD.
        probabilities: the file of each case's, to find out how well they are calibrated; none to leave that out.
        by: what is scored; by group, a case without one is its own.
        left_out: classes that are not to be in the means over classes, and why.
        at_the_detector: names of cases whose lengths are at the detector also where the truth's files can't say so.
        in_pixels: whether lengths count in pixels also where a spacing is known, since other cases have another unit.
    """
    if not known.foreground:
        raise DataError(f"the labels {known.classes} name no class but background; name at least one, such as lesion=1")
    if not 0 < tolerance < math.inf:
        raise ConfigError(f"the tolerance is {tolerance}; it must be above 0, in mm, or in px without a spacing")
    wrong: list[str] = []
    odd: list[OddValues] = []
    units: dict[tuple[Unit, VolumeUnit], list[str]] = {}
    evaluated = []
    smaller: list[str] = []
    palettes: list[tuple[Path, Mapping[int, str], Mapping[int, int]]] = []
    members = by_group(cases) if by == "group" else {}
    counted: dict[str, list[CountedCase]] = {}
    groups = []
    decisions = np.zeros((2, NUMBERS), np.int64)
    for case in cases:
        try:
            prediction = read_mask(predicted[case.name], known)
            pair = on_one_grid(read_truth(case, known), prediction)
            require_same_grid(pair[1], pair[0])
            require_straight(pair[0])
            pair = _in_one_unit(case, *pair, in_pixels, case.name in at_the_detector)
        except OddValues as error:
            odd.append(error)
            continue
        except DataError as error:
            wrong.append(str(error))
            continue
        if known.colours is None:
            palettes += [
                (mask.source, mask.palette, count_values(mask.array)) for mask in pair if mask.palette is not None
            ]
        may_hold = known.with_ignore, known.classes
        wrong += [text for mask, may in zip(pair, may_hold, strict=True) if (text := _unknown(mask, may))]
        units.setdefault(_units(pair[0]), []).append(case.name)
        # measuring takes long; once something is wrong, only look for more of it
        if not problems and not wrong and not odd:
            smaller += [case.name] if _diagonal(pair[0]) <= tolerance else []
            one = _count_case(case, *pair, known)
            evaluated.append(measure_case(one, tolerance))
            group = group_of(evaluated[-1])
            if group in members:
                counted.setdefault(group, []).append(one)
                if len(counted[group]) == len(members[group]):  # to keep no more distances than it takes
                    groups.append(measure_group(counted.pop(group), tolerance))
            if probabilities:
                with collect_errors(wrong):
                    decisions += count_decisions(probabilities[case.name], pair[0].array, known)
        if on_case is not None:
            on_case(case.name)
    wrong += describe_problems(odd)
    found = [*problems, *([summarize(wrong)] if wrong else [])]
    if len(units) > 1:
        found.append(_mixture(units))
    if found:
        raise DataError("; ".join(found))
    if told := palettes_differ(palettes):
        say("note", f"{told}: palettes differ, and the numbers count ({write_labels(known.with_ignore)})")
    if smaller:
        say(
            "tolerance",
            f"the tolerance of {tolerance:g} {evaluated[0].unit} is larger than whole images ({summarize(smaller)}), "
            "so that their NSD is 1 wherever anything was found; give a smaller one with --tolerance",
            tolerance=tolerance,
            cases=smaller,
        )
    calibration = summarise_decisions(decisions, known) if probabilities else None
    groups = sorted(groups, key=lambda group: group.case)
    metrics = summarise(evaluated, known, tolerance, calibration, groups=groups, left_out=left_out)
    if output is not None:
        write_metrics(output, metrics)
    return metrics


def _name_problems(predictions: Path, truth: Path, predicted: AbstractSet[str], truths: AbstractSet[str]) -> list[str]:
    missing, surplus = sorted(truths - predicted), sorted(predicted - truths)
    problems = []
    if missing:
        problems.append(f"{predictions} lacks masks of cases in {truth}: {summarize(missing)}; predict them too")
    if surplus:
        problems.append(f"{predictions} holds masks of cases that {truth} lacks: {summarize(surplus)}; remove them")
    return problems


def _unknown(mask: Volume, labels: Mapping[str, int]) -> str:
    known = where(mask.array, list(labels.values()))
    if known.all():
        return ""
    unknown = np.unique(mask.array[~known])
    values = summarize([str(value) for value in unknown]).replace(";", ",")
    named = ", ".join(f"{name}={label}" for name, label in labels.items())
    return f"{mask.source} holds the values {values} but the labels are {named}; name them or correct the mask"


def _in_one_unit(
    case: Case, truth: Volume, prediction: Volume, in_pixels: bool, at_the_detector: bool
) -> tuple[Volume, Volume]:
    """Both masks of a case, in pixels if that is asked for, and by the image's spacing if the truth tells none."""
    if in_pixels:
        return replace(truth, geometry=None), replace(prediction, geometry=None)
    if truth.geometry is None and case.images and ending_of(case.images[0]) in VOLUME_ENDINGS:
        return replace(truth, geometry=prediction.geometry), prediction  # which lies on its image's grid
    if truth.geometry is not None and at_the_detector:
        return replace(truth, geometry=replace(truth.geometry, unit=AT_THE_DETECTOR)), prediction
    return truth, prediction


def _units(truth: Volume) -> tuple[Unit, VolumeUnit]:
    if truth.geometry is None:
        return "px", "px"
    if truth.geometry.unit == AT_THE_DETECTOR:
        return truth.geometry.unit, "mm2 at the detector"
    return "mm", "mm2" if truth.is_flat else "ml"


def _diagonal(truth: Volume) -> float:
    """How far two pixels of an image can be apart."""
    steps = zip(truth.shape, truth.spacing or (1.0, 1.0, 1.0), strict=True)
    return math.hypot(*((length - 1) * step for length, step in steps))


def _mixture(units: Mapping[tuple[Unit, VolumeUnit], Sequence[str]]) -> str:
    kinds = {
        "px": "masks without a spacing",
        "mm2": "flat masks in mm",
        "mm2 at the detector": "flat masks in mm at the detector",
        "ml": "volumes in mm",
    }
    parts = [f"{kinds[volume]} ({summarize(names)})" for (_, volume), names in units.items()]
    return f"the truth mixes {' and '.join(parts)}, which have no common mean; evaluate them apart"


def _count_case(case: Case, truth: Volume, prediction: Volume, known: Labels) -> CountedCase:
    ignored = None if known.ignore is None else truth.array == known.ignore
    unit, volume_unit = _units(truth)
    spacing = truth.spacing or (1.0, 1.0, 1.0)
    voxel = math.prod(spacing) / (1000 if volume_unit == "ml" else 1)  # of a flat image the slice is 1 thick
    tallies = {}
    for name, numbers in known.foreground.items():
        a, b = (where(mask.array, numbers) for mask in (truth, prediction))
        if ignored is not None:
            a[ignored] = b[ignored] = False
        tallies[name] = tally(a, b, spacing, voxel)
    ignored_pixels = 0 if ignored is None else int(np.count_nonzero(ignored))
    return CountedCase(case.name, case.group, unit, volume_unit, ignored_pixels, tallies)
