"""Groups of cases, such as the slices of a patient, and the classes that predictions and truth have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dinounet.console import say
from dinounet.data.layouts import Case, ClassFiles, mask_files, mask_paths, read_rows
from dinounet.data.legends import labels_of_legends
from dinounet.data.splits import spell_as_one
from dinounet.errors import ConfigError, DataError
from dinounet.evaluation.means import read_metrics
from dinounet.evaluation.metrics import Tally, measure_tally, pool
from dinounet.io import METRICS, PREDICTION, read_json, read_text, summarize
from dinounet.schema.base import to_record
from dinounet.schema.labels import Labels, name_labels, parse_labels, read_nnunet_labels
from dinounet.schema.metrics import EMPTY, By, CaseMetrics, ClassMetrics, Unit, VolumeUnit
from dinounet.schema.migrations import embed_labels

COLUMNS = ("case", "group")


@dataclass(frozen=True)
class CountedCase:
    """What the measures of one case are computed from."""

    name: str
    """The case's name."""

    group: str | None
    """Its group, such as a patient; None where that isn't known."""

    unit: Unit
    """Unit of distances."""

    volume_unit: VolumeUnit
    """Unit of volume differences."""

    ignored_pixels: int
    """Pixels left out of both masks."""

    classes: dict[str, Tally]
    """Tallies of the classes by their names."""


def measure_case(counted: CountedCase, tolerance: float) -> CaseMetrics:
    """The measures of one case."""
    return _measure(counted.name, [counted], tolerance, counted.group)


def measure_group(counted: Sequence[CountedCase], tolerance: float) -> CaseMetrics:
    """The measures of all pixels of the cases of a group."""
    first = counted[0]
    measured = _measure(first.name if first.group is None else first.group, counted, tolerance, None)
    return replace(measured, pooled=tuple(one.name for one in counted))


def _measure(name: str, counted: Sequence[CountedCase], tolerance: float, group: str | None) -> CaseMetrics:
    first = counted[0]
    found = {}
    for each in first.classes:
        tallies = [one.classes[each] for one in counted]
        together = pool(tallies) if len(tallies) > 1 else tallies[0]
        empty = EMPTY[together.there > 0, together.found > 0]
        found[each] = ClassMetrics(**asdict(measure_tally(together, tolerance)), empty=empty)
    return CaseMetrics(name, first.unit, first.volume_unit, found, sum(one.ignored_pixels for one in counted), group)


def with_groups(
    cases: Sequence[Case], predictions: Path, truth: Path, by: By, groups: Path | Mapping[str, str] | None
) -> tuple[list[Case], str]:
    """The cases with their groups, and in a sentence who told these; "" where they were given, or aren't asked for.

    Args:
        cases: with the files of their truth.
        predictions: the folder of masks, whose `metrics.json` may tell groups, as that of a run's review does.
        truth: the folder of the truth, whose folders are the groups if nothing else tells them.
        by: what is to be scored; by case, groups matter only if they are given.
        groups: of each case its group, or a CSV file that tells them.

    Raises:
        ConfigError: nothing says which cases belong together, or `by` is neither case nor group.
        DataError: the file can't be read, or lacks some cases, or names one twice.
    """
    if by not in ("case", "group"):
        raise ConfigError(f"by is {by!r}; give case or group")
    if groups is None and by == "case":
        return list(cases), ""
    told = ""
    if groups is None:
        known: Mapping[str, str] = _groups_of_before(cases, predictions)
        told = f"groups are those that {predictions / METRICS} knows of an earlier evaluation"
        if not known:
            known, told = _folders(cases, truth), f"groups are the folders in {truth}"
        told += "; give --groups a CSV file for others"
    else:
        known = groups if isinstance(groups, Mapping) else read_groups(groups)
    lacking = [case.name for case in cases if case.name not in known]
    if lacking:
        where = str(groups) if isinstance(groups, Path) else "groups"
        raise DataError(f"{where} has no group for {summarize(lacking)}; add a row for each case")
    spelled, remark = spell_as_one(known[case.name] for case in cases)
    if remark:
        say("note", remark)
    return [replace(case, group=spelled[known[case.name]]) for case in cases], told


def read_groups(path: Path) -> dict[str, str]:
    """Groups by case, from a CSV file (separated by commas, semicolons or tabs) with the columns case and group.

    Other columns are passed over, and so may be rows of cases that nobody asks for: a table of a whole dataset will do.

    Raises:
        DataError: it can't be read, lacks a column, or its rows are wrong; all of that together.
    """
    text = read_text(path, unreadable="it should be a table of cases and groups", no_text="save it as CSV UTF-8")
    rows = read_rows(path, text)
    columns = [name.strip().lower() for name in next(rows, (0, []))[1]]
    if any(columns.count(name) != 1 for name in COLUMNS):
        raise DataError(
            f"{path} has the columns {', '.join(columns) or 'none'}; its first line must name case and group, "
            "separated by commas, semicolons or tabs"
        )
    places = [columns.index(name) for name in COLUMNS]
    found: dict[str, str] = {}
    problems = []
    for line, row in rows:
        case, group = (row[place].strip() if place < len(row) else "" for place in places)
        if not case or not group:
            problems.append(f"line {line} says no {'case' if not case else 'group'}")
        elif found.setdefault(case, group) != group:
            problems.append(f"line {line} puts {case} into {group}, another one into {found[case]}")
    if problems:
        raise DataError(f"{path} is wrong: {summarize(problems)}; correct the table")
    return found


def _groups_of_before(cases: Sequence[Case], predictions: Path) -> dict[str, str]:
    """The groups by which a run's review, or an older evaluation, knew these cases; none where it knew of some none."""
    path = predictions / METRICS
    known = {case.case: case.group for case in read_metrics(path).cases} if path.is_file() else {}
    found = {case.name: known.get(case.name) for case in cases}
    return {name: group for name, group in found.items() if group is not None} if all(found.values()) else {}


def _folders(cases: Sequence[Case], truth: Path) -> dict[str, str]:
    """The folder, within the truth's, that each case's mask is in."""
    folders = {case.name: mask_paths(case.mask)[0].relative_to(truth).parent for case in cases}
    loose = [name for name, folder in folders.items() if not folder.parts]
    by_class = any(isinstance(case.mask, ClassFiles) for case in cases)
    if loose or by_class:
        why = "has one mask per class" if by_class else f"has {summarize(loose)} in no folder of their own"
        raise ConfigError(
            f"nothing says which cases belong together: {truth} {why}; give --groups a CSV file with the columns case "
            "and group"
        )
    return {name: folder.as_posix() for name, folder in folders.items()}


NOT_LEARNED = "no training case has a pixel of it"
"""Why a class is in no mean over classes."""


def find_absent(predictions: Path, known: Labels) -> dict[str, str]:
    """Classes, or regions, that the network could not learn, as `prediction.json` tells, and why; not all there are."""
    told = _names_told(predictions, "absent_classes")
    absent = [name for name in known.foreground if name in told]
    return dict.fromkeys(absent, NOT_LEARNED) if len(absent) < len(known.foreground) else {}


def find_absent_in_any(folders: Mapping[str, Path], known: Labels) -> dict[str, str]:
    """Classes, or regions, that the network of any of several models could not learn, and whose; not all there are.

    Args:
        folders: of each model's masks, by its name.
        known: what the numbers in the masks stand for.
    """
    absent = {model: _names_told(folder, "absent_classes") for model, folder in folders.items()}
    found = {}
    for name in known.foreground:
        if models := [model for model, names in absent.items() if name in names]:
            found[name] = f"no training case of {summarize(models)} has a pixel of it"
    return found if len(found) < len(known.foreground) else {}


def find_at_the_detector(predictions: Path) -> list[str]:
    """Cases whose images, as `prediction.json` tells, have their lengths in mm at the detector."""
    return _names_told(predictions, "at_the_detector")


def _names_told(predictions: Path, key: str) -> list[str]:
    """A list of names in `prediction.json`; none where it, or its list, isn't there."""
    path = predictions / PREDICTION
    content = read_json(path, what="the record of a prediction") if path.is_file() else {}
    told = content.get(key) if isinstance(content, Mapping) else None
    return [str(name) for name in told] if isinstance(told, list) else []


def find_labels(predictions: Path, truth: Path, given: str | None = None) -> Labels:
    """Names and numbers of the classes, the regions that they make up, and the ignore label.

    Args:
        predictions: folder whose `prediction.json` may tell them.
        truth: folder beside which, in an nnU-Net dataset, `dataset.json` may tell them; at last names of segments do.
        given: "background=0,lesion=1", before both.

    Raises:
        UserError: nothing tells them, or what tells them can't be understood.
    """
    if given is not None:
        return name_labels(parse_labels(given))
    for path in (predictions / PREDICTION, truth / "dataset.json", truth.parent / "dataset.json"):
        if path.is_file():
            content = read_json(path, what="an object with labels")
            if not isinstance(content, Mapping) or not isinstance(content.get("labels"), Mapping):
                raise ConfigError(f"{path} has no labels; pass --labels background=0,lesion=1")
            if path.name == PREDICTION:
                of_today = isinstance(content["labels"].get("classes"), Mapping)
                known = content["labels"] if of_today else embed_labels(dict(content))["labels"]
                return to_record(Labels, known, where=str(path))
            return read_nnunet_labels(content, path)
    masks = [path for folder in (predictions, truth) if folder.is_dir() for path in mask_files(folder)]
    if found := labels_of_legends(masks, None):
        return found
    raise ConfigError(
        f"neither {predictions} nor {truth} says which classes the masks hold; pass --labels background=0,lesion=1"
    )
