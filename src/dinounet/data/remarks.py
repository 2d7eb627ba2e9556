"""What a reader of the results must know of a dataset's cases: sentences, and the facts behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from dinounet.data.dataset import Dataset, with_twins
from dinounet.data.geometry import BodyAxis
from dinounet.data.groups import PlannedGroups
from dinounet.data.labels import Labels
from dinounet.data.naming import COLOUR, to_mark
from dinounet.data.splits import by_group
from dinounet.data.twins import ImageHash, find_near_twins, find_twins
from dinounet.files import join_some


def look_for_twins(
    dataset: Dataset, hashes: Mapping[str, ImageHash], held_out: Mapping[str, ImageHash]
) -> PlannedGroups:
    """The groups of a dataset, with what the pixels add to them.

    Args:
        dataset: as it was read.
        hashes: of its cases' images, by the cases' names.
        held_out: of the images of those that are held out.
    """
    everything = find_twins({**hashes, **held_out})
    leaks = [names for names in everything if 0 < len(set(names) & set(held_out)) < len(names)]
    twins = tuple(kept for names in everything if len(kept := tuple(n for n in names if n in hashes)) > 1)
    groups = {name: group for group, names in by_group(with_twins(dataset, twins).cases).items() for name in names}
    near, count = find_near_twins({**hashes, **held_out}, {**groups, **dict.fromkeys(held_out, "")})
    remarks = [
        *_on_twins(dataset, twins),
        *([_on_leaks(leaks)] if leaks else []),
        *([_on_near_twins(near, count, dataset)] if near else []),
    ]
    return PlannedGroups(dataset.group, twins, near, dataset.remarks, tuple(remarks))


def on_classes(dataset: Dataset, pixels: Mapping[str, Mapping[int, int]], known: Labels) -> tuple[str, ...]:
    """Sentences about classes, or regions, that some fold can't learn.

    Args:
        dataset: with its final folds.
        pixels: of each case, by its name, how many hold what its mask is stored with, or its label.
        known: what masks hold.
    """
    marks = {to_mark(colour): known.given[name] for name, colour in (known.colours or {}).items()}
    held = {
        case: {marks.get(value, value % 256 if value >= COLOUR else value) for value in counts}
        for case, counts in pixels.items()
    }
    remarks = []
    for name, labels in known.foreground.items():
        having = {case for case, values in held.items() if values & set(labels)}
        without = [str(fold) for fold, (training, _) in enumerate(dataset.splits) if not having & set(training)]
        if not having:
            remarks.append(f"No case has a pixel of {name}: it can't be learned, and is in no mean over classes.")
        elif without:
            cases, folds = "case has" if len(having) == 1 else "cases have", "fold" if len(without) == 1 else "folds"
            remarks.append(
                f"{len(having)} {cases} pixels of {name}, none of them a training case of the {folds} "
                f"{', '.join(without)}: there it can't be learned, and is in no mean over classes."
            )
    return tuple(remarks)


def on_axes(axes: Mapping[str, Sequence[BodyAxis] | None], slice_axis: int) -> tuple[str, ...]:
    """A sentence about volumes that are cut along another axis of the body than most.

    Args:
        axes: of each case by its name, what z, y and x run along; None where its file doesn't tell.
        slice_axis: of z, y and x, along which volumes are cut.
    """
    along = {name: found[slice_axis] for name, found in axes.items() if found is not None}
    if len(set(along.values())) < 2:
        return ()
    ((usual, _),) = Counter(along.values()).most_common(1)
    others = [f"{name} ({axis})" for name, axis in along.items() if axis != usual]
    return (
        f"{len(others)} of {len(along)} volumes are cut along another axis of the body than the others, whose slices "
        f"lie along {usual}: {join_some(others)}; store all volumes in one orientation.",
    )


def _on_twins(dataset: Dataset, twins: Sequence[Sequence[str]]) -> list[str]:
    if not twins:
        return []
    group_of = {case.name: case.group for case in dataset.cases}
    named = join_some([" and ".join(names) for names in twins])
    split = [
        number
        for number, (training, watched) in enumerate(dataset.splits)
        if any(set(names) & set(training) and set(names) & set(watched) for names in twins)
    ]
    if not dataset.has_own_splits:
        remarks = [f"Identical pixels under several names: {named}; they are kept on one side of a fold."]
    elif split:
        folds = ", ".join(map(str, split))
        remarks = [
            f"Identical pixels under several names: {named}; splits_final.json has some of them on both sides of the "
            f"folds {folds}, whose validation they flatter."
        ]
    else:
        remarks = [f"Identical pixels under several names: {named}."]
    torn = [
        " and ".join(f"{name} (of {group_of[name]})" for name in names)
        for names in twins
        if dataset.group != "none" and len({group_of[name] for name in names}) > 1
    ]
    if torn:
        remarks.append(f"Groups that share pixels are taken for one: {join_some(torn)}; correct the groups.")
    return remarks


def _on_leaks(leaks: Sequence[Sequence[str]]) -> str:
    named = join_some([" and ".join(names) for names in leaks])
    return (
        f"THE TEST LEAKS: cases that are held out hold the pixels of others that are not: {named}; hold out both or "
        "neither."
    )


def _on_near_twins(pairs: Sequence[tuple[str, str]], count: int, dataset: Dataset) -> str:
    named = join_some([" and ".join(pair) for pair in pairs], 5)
    held_out = set(dataset.test_cases)
    mixed = sum(len(held_out & set(pair)) == 1 for pair in pairs)
    leak = f" In {mixed} of them one is held out for the test and the other is not." if mixed else ""
    pair = "pair looks" if count == 1 else "pairs look"
    return (
        f"{count} {pair} nearly the same and may lie on both sides of a fold: {named}; if they are of one patient, put "
        f"them into one group.{leak}"
    )
