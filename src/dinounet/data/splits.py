"""Which cases are learned from, which are only watched, and which are kept out of both for a test at the end.

Folds are nnU-Net's (arXiv 1809.10486): five, shuffled with its seed. Cases of one group, such as a patient's, always
stay together, and so do all slices of a volume, because a volume is one case.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.data.groups import NUMBERED_PATIENT
from dinounet.data.layouts import Case
from dinounet.errors import ConfigError, DataError
from dinounet.io import read_json, read_text, summarize
from dinounet.schema.plan import GroupBy, Split

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
    """The names of cases or groups that a text file holds: one a line, what follows a # left out.

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
