"""Which cases belong together, such as a patient's, where no table says it: by folders, by names, by the patient.

A network that is validated on a patient whom it was trained on looks better than it is. Cases are grouped where the
files make it clear that they belong together; where they don't, a sentence says what to give if they do.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dinounet.data.formats.dicom_headers import patient_id
from dinounet.data.layouts import Case
from dinounet.errors import ConfigError
from dinounet.io import summarize
from dinounet.schema.plan import GroupBy

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
    """In the order in which they were given."""

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
    """Of names of groups the first that differs in capitals, spaces or accents alone, and the sentence that tells."""
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
    """By DICOM's PatientID, which is kept out of the groups' names since these are written down; else by BIDS."""
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
    """By the outermost folders of which there are enough, else by the outermost ones of several cases."""
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
    """Of each case by its name the folders that its first image lies in, below the one that holds all images."""
    parents = {case.name: case.images[0].absolute().parent for case in cases}
    around = Path(os.path.commonpath(parents.values()))
    return {name: parent.relative_to(around).parts for name, parent in parents.items()}


def _some(what: str, groups: Mapping[str, str], most: int = 3) -> str:
    """How many groups there are, with the names of some."""
    names = list(dict.fromkeys(groups.values()))
    named = ", ".join(names[:most]) + (" …" if len(names) > most else "")
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({named})"
