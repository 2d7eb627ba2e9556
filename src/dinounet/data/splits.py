"""Which cases belong together, and which are learned from, watched, or kept out of both for a test at the end.

A network that is validated on a patient whom it was trained on looks better than it is. Cases are grouped by a table,
or by folders, names or the patient where the files make it clear that they belong together; where they don't, a
sentence says what to give if they do. Folds are nnU-Net's (arXiv 1809.10486): five, shuffled with its seed. Cases of
one group always stay together, and so do all slices of a volume, because a volume is one case.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.data.formats.dicom_headers import patient_id
from dinounet.data.layouts import Case
from dinounet.errors import ConfigError, DataError
from dinounet.io import read_json, read_text, summarize
from dinounet.schema.plan import GroupBy, Split

CLEARLY_GROUPS = 5
"""Folders, or names, of several cases each from which on each one is a group; fewer may be classes or hospitals."""

NUMBERED = re.compile(r"^(.+?)[ _.-](?:slice|z|frame)[ _.-]?\d+$", re.IGNORECASE)
"""A name that ends with the number of a slice or a frame, and what it is a slice or a frame of."""

SUBJECT = re.compile(r"(?:^|_)(sub-[0-9A-Za-z]+)(?=[_.]|$)")
"""A subject's label in the name of a folder or file, as BIDS defines it (specification 1.10, "Entities")."""

NO_PATIENT = re.compile(r"(anon(ym(i[sz]ed?|ous)?)?|de-?identified|removed|unknown|none|patient|n/?a|[x*]+|0+)?")
"""What stands in PatientID where a patient's identifier was taken out."""

NUMBERED_PATIENT = re.compile(r"patient \d+")
"""The name of a group by DICOM's PatientID, whose number goes by the order of the cases."""


@dataclass(frozen=True)
class Grouping:
    """Cases with their groups, and what decided on them."""

    cases: tuple[Case, ...]
    """The cases, in the order in which they were given."""

    by: GroupBy
    """What put the cases into groups; never auto."""

    remarks: tuple[str, ...] = ()
    """Sentences about the groups, and about cases that may belong together and what to give if they do."""


@dataclass(frozen=True)
class _Kind:
    """Groups of one kind that the files show."""

    by: GroupBy
    groups: Mapping[str, str]
    """The group of each case that has one, by the case's name."""

    found: str
    """What was found, as the beginning of a sentence."""

    unit: str
    """What a group is."""

    certain: bool
    """Whether one group can't be anything but one patient's, video's or volume's."""

    @property
    def several(self) -> list[str]:
        """The groups of more than one case, sorted."""
        return sorted(group for group, count in Counter(self.groups.values()).items() if count > 1)

    @property
    def is_clear(self) -> bool:
        """Whether these are groups without being asked for."""
        return len(set(self.groups.values())) > 1 if self.certain else len(self.several) >= CLEARLY_GROUPS

    def adds_to(self, other: _Kind | None) -> bool:
        """Whether it puts cases together that another kind, or none, leaves apart."""
        known = {} if other is None else other.groups
        members: dict[str, set[str]] = {}
        for case, group in self.groups.items():
            members.setdefault(group, set()).add(known.get(case, f"alone: {case}"))
        return any(len(apart) > 1 for apart in members.values())


def group_cases(cases: Sequence[Case], by: GroupBy = "auto", *, offer_only: bool = False) -> Grouping:
    """Give cases their groups.

    Args:
        cases: of a dataset; those of a table have the groups of its column `group`, if there is one.
        by: what decides.
        offer_only: whether `auto` leaves it at sentences.

    Raises:
        ConfigError: by what was asked for no cases belong together, or a table says which do.
    """
    cases = tuple(cases)
    named = {case.group for case in cases if case.group is not None}
    if named and by in ("folder", "name", "patient"):
        raise ConfigError(f"the table's column group says what belongs together; leave --group {by} out, or the column")
    if named:
        known = _alike_as_one(Grouping(cases, "column"))
        return replace(known, remarks=(*known.remarks, *_torn_patients(known.cases)))
    if by in ("none", "column"):
        return Grouping(cases, "none")
    kinds = [kind for kind in (_by_patient(cases), _by_folder(cases), _by_name(cases)) if kind.several]
    chosen = next((k for k in kinds if (k.by == by if by != "auto" else k.is_clear and not offer_only)), None)
    if by != "auto" and chosen is None:
        raise ConfigError(f"--group {by} puts no cases together: {_MISSING[by]}; leave it out, or choose another")
    offers = tuple(
        _offer(kind, len(cases)) for kind in kinds if by == "auto" and kind is not chosen and kind.adds_to(chosen)
    )
    if chosen is None:
        return Grouping(cases, "none", offers)
    grouped = tuple(replace(case, group=chosen.groups.get(case.name)) for case in cases)
    otherwise = " If its cases don't belong together, give --group none." if by == "auto" else ""
    why = f"{chosen.found}: {chosen.unit} is a group, and no group is on both sides of a fold.{otherwise}"
    return _alike_as_one(Grouping(grouped, chosen.by, (why, *offers)))


def _alike_as_one(grouping: Grouping) -> Grouping:
    """Groups that differ in capitals, spaces or the composition of accents alone as one, which is told."""
    spelled, remark = spell_as_one([case.group for case in grouping.cases if case.group is not None])
    if not remark:
        return grouping
    cases = tuple(replace(case, group=spelled.get(case.group or "")) for case in grouping.cases)
    return replace(grouping, cases=cases, remarks=(*grouping.remarks, remark))


def _torn_patients(cases: Sequence[Case]) -> tuple[str, ...]:
    """A sentence about patients whose cases a table puts into several groups; none if there are none."""
    patients = _by_patient(cases)
    members: dict[str, dict[str, str]] = {}
    for case in cases:
        if case.name in patients.groups:
            members.setdefault(patients.groups[case.name], {}).setdefault(case.group or case.name, case.name)
    torn = [" and ".join([*groups.values()][:2]) for groups in members.values() if len(groups) > 1]
    if not torn:
        return ()
    return (
        f"{patients.found}, and the table's column group puts cases of one patient into several groups: "
        f"{summarize(torn)}; a patient may be on both sides of a fold, so correct the column.",
    )


def spell_as_one(groups: Iterable[str]) -> tuple[dict[str, str], str]:
    """For each group's name the first that differs in capitals, spaces or accents alone, and a sentence about them."""
    first: dict[str, str] = {}
    spelled = {name: first.setdefault(_in_one_spelling(name), name) for name in groups}
    alike = [f"{one!r} and {name!r}" for name, one in spelled.items() if name != one]
    if not alike:
        return spelled, ""
    remark = f"Groups that differ in capitals or spaces alone are one group: {summarize(alike)}; rename them if not."
    return spelled, remark


def _in_one_spelling(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


_MISSING = {
    "folder": "the images don't lie in several folders, or each in one of its own",
    "name": "no names end with _slice, _z or _frame and a number and share what stands before it",
    "patient": "no two images have one PatientID (DICOM) or one sub- label in their names (BIDS)",
}


def _offer(kind: _Kind, cases: int) -> str:
    if len(kind.groups) == cases and len(set(kind.groups.values())) == 1:
        return f"{kind.found}: validation cases are not independent of training cases, and flatter the network."
    return (
        f"{kind.found}: if {kind.unit} is one patient's, give --group {kind.by}, so that no patient is on both sides "
        "of a fold."
    )


def _by_patient(cases: Sequence[Case]) -> _Kind:
    """Group by DICOM's PatientID, which is kept out of the groups' names since these are written down; else by BIDS."""
    ids = {case.name: _in_one_spelling(patient_id(case.images[0])) for case in cases if case.images[0].is_dir()}
    ids = {case: patient for case, patient in ids.items() if not NO_PATIENT.fullmatch(patient)}
    if ids:
        numbers = {patient: f"patient {index}" for index, patient in enumerate(dict.fromkeys(ids.values()), start=1)}
        groups = {case: numbers[patient] for case, patient in ids.items()}
        found_ids = f"The cases are of {len(numbers)} patient{'s' * (len(numbers) > 1)} by DICOM's PatientID"
        return _Kind("patient", groups, found_ids, "a patient", certain=True)
    parts = _folders(cases)
    groups = {
        case.name: found[1]
        for case in cases
        if (found := next(filter(None, map(SUBJECT.search, (*parts[case.name], case.images[0].name))), None))
    }
    return _Kind(
        "patient", groups, f"The cases are of {_some('patient', groups)} by BIDS's labels", "a patient", certain=True
    )


def _by_folder(cases: Sequence[Case]) -> _Kind:
    """Group by the outermost folders of which there are enough, else by the outermost ones of several cases."""
    parts = _folders(cases)
    levels = []
    for depth in range(1, max(map(len, parts.values()), default=0) + 1):
        groups = {name: "/".join(folders[:depth]) for name, folders in parts.items() if folders}
        found = f"The images lie in {_some('folder', groups)}"
        levels.append(_Kind("folder", groups, found, "a folder", certain=False))
    best = next((kind for kind in levels if kind.is_clear), None) or next(
        (kind for kind in levels if kind.several), None
    )
    return best or _Kind("folder", {}, "", "a folder", certain=False)


def _by_name(cases: Sequence[Case]) -> _Kind:
    groups = {case.name: found[1] for case in cases if (found := NUMBERED.match(case.name))}
    names = f"The cases have {_some('name', groups)} before _slice, _z or _frame and a number"
    return _Kind("name", groups, names, "such a name", certain=False)


def _folders(cases: Sequence[Case]) -> dict[str, tuple[str, ...]]:
    """Folders, by the case's name, that its first image lies in, below the one that holds all images."""
    parents = {case.name: case.images[0].absolute().parent for case in cases}
    around = Path(os.path.commonpath(parents.values()))
    return {name: parent.relative_to(around).parts for name, parent in parents.items()}


def _some(what: str, groups: Mapping[str, str], most: int = 3) -> str:
    """Number of groups, with the names of some."""
    names = list(dict.fromkeys(groups.values()))
    named = ", ".join(names[:most]) + (" …" if len(names) > most else "")
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({named})"


FOLDS = 5
SPLIT_SEED = 12345
"""nnU-Net's, so that its folds are ours."""


def make_splits(names: Sequence[str]) -> tuple[Split, ...]:
    """nnU-Net's folds: sorted names, five folds (fewer for fewer cases), shuffled with its seed.

    Equals scikit-learn's `KFold(shuffle=True)`, which shuffles by NumPy's legacy generator. One case can't be split.
    """
    names = sorted(names)
    order = np.arange(len(names))
    np.random.RandomState(SPLIT_SEED).shuffle(order)
    folds = [set(fold.tolist()) for fold in np.array_split(order, min(FOLDS, len(names)))]
    return tuple(
        (
            tuple(name for i, name in enumerate(names) if i not in fold),
            tuple(name for i, name in enumerate(names) if i in fold),
        )
        for fold in folds
        if len(names) > 1
    )


def split_cases(cases: Sequence[Case]) -> tuple[Split, ...]:
    """nnU-Net's folds of groups where cases have them, else of cases; a group is never on both sides."""
    members = by_group(cases)
    return tuple(
        (
            tuple(sorted(name for group in training for name in members[group])),
            tuple(sorted(name for group in validation for name in members[group])),
        )
        for training, validation in make_splits(list(members))
    )


def by_group(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Names of the cases of each group; a case that belongs to none is its own."""
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(case.name if case.group is None else case.group, []).append(case.name)
    return members


def read_splits(path: Path, cases: Sequence[Case], held_out: Sequence[str]) -> tuple[Split, ...]:
    """The folds that a file in nnU-Net's format names, without what is held out of all of them.

    Args:
        path: `splits_final.json`.
        cases: of the dataset, without those held out.
        held_out: names of these.

    Raises:
        DataError: it is no list of folds, names unknown cases, or some twice; all of that together.
    """
    names = {case.name for case in cases}
    content_of_file = read_json(path, what="a list of folds, each with train and val")
    if not isinstance(content_of_file, list) or not content_of_file:
        raise DataError(f"{path} is no list of folds; write a list of objects with train and val")
    splits, problems = [], []
    for fold, content in enumerate(content_of_file):
        parts: list[Any] = [content.get(p) for p in ("train", "val")] if isinstance(content, Mapping) else [None]
        if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in parts):
            problems.append(f"it has a fold {fold} without train and val (write both as lists of cases)")
            continue
        training, validation = (tuple(name for name in part if name not in held_out) for part in parts)
        if not training:
            problems.append(f"it has a fold {fold} with no case to train on (name some)")
        counts = Counter((*training, *validation))
        unknown = sorted(counts.keys() - names)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if unknown:
            problems.append(f"it names in fold {fold} cases that imagesTr does not hold: {', '.join(unknown)}")
        if twice:
            problems.append(f"it has cases twice in fold {fold} (keep them in one of its parts): {', '.join(twice)}")
        splits.append((training, validation))
    if problems:
        raise DataError(f"{path} is wrong: {summarize(problems)}; correct it, or remove it for folds of our own")
    return tuple(splits)


def read_test_list(path: Path) -> tuple[str, ...]:
    """The names of cases or groups that a text file holds: one per line, what follows a # left out.

    Raises:
        DataError: it can't be read, or names nothing.
    """
    remedy = "give --test a text file, a case a line"
    text = read_text(path, unreadable=remedy, no_text=remedy)
    lines = re.split(r"\r\n|\r|\n", text)  # and at nothing else that names may hold
    names = [line.split("#")[0].strip() for line in lines]
    if not any(names):
        raise DataError(f"{path} names no case; write the name of a case or group on each line, or leave --test out")
    return tuple(name for name in names if name)


def hold_out(
    cases: Sequence[Case], names: Sequence[str], by: GroupBy = "column"
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Set the cases of a test list apart.

    Args:
        cases: of the dataset.
        names: of cases, or of groups, which hold out all of theirs.
        by: what put the cases into groups; those by PatientID have numbers for names, which don't last.

    Returns:
        the other cases, and those held out, each in the order in which they were given.

    Raises:
        ConfigError: a name is unknown, a group would be torn apart, or no case is left.
    """
    members, known = by_group(cases), {case.name for case in cases}
    numbered = {group for group in members if by == "patient" and NUMBERED_PATIENT.fullmatch(group)}
    problems, held_out = [], set()
    for name in dict.fromkeys(names):
        if name in known:
            held_out.add(name)
        elif name in numbered:
            problems.append(
                f"it names {name}, a number that may be another patient's once there are other images (name the cases: "
                f"{', '.join(members[name])})"
            )
        elif name in members:
            held_out.update(members[name])
        else:
            near = difflib.get_close_matches(name, sorted({*known, *members} - numbered), n=1, cutoff=0.0)
            problems.append(f"it names {name}, which is no case and no group (did you mean {near[0]}?)")
    for group, parts in members.items():
        left = [name for name in parts if name not in held_out]
        if 0 < len(left) < len(parts):
            remedy = "name these too" if group in numbered else "name the group"
            problems.append(f"it tears the group {group} apart, of which it leaves {', '.join(left)} ({remedy})")
    if problems:
        raise ConfigError(f"the test list is wrong: {summarize(problems)}; correct it")
    if len(held_out) == len(known):
        raise ConfigError(f"the test list holds out all {len(known)} cases; leave some to train on")
    left_in = tuple(case for case in cases if case.name not in held_out)
    return left_in, tuple(case for case in cases if case.name in held_out)
