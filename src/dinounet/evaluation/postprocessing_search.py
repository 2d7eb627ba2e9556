"""Choosing what is done to predicted masks, on cases that the network has not learned from, only where it helps.

nnU-Net (arXiv 1809.10486, "postprocessing") keeps the largest component where the mean Dice of the class rises. Here a
step has to do more, see `improves`, since it will be done to cases that nobody compares with a truth.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from dinounet.console import progress
from dinounet.data.geometry import require_same_grid
from dinounet.data.images import on_one_grid
from dinounet.data.layouts import Case
from dinounet.data.masks import read_mask, read_truth, where
from dinounet.errors import DataError
from dinounet.evaluation.metrics import dice
from dinounet.inference.postprocessing import apply, component_sizes
from dinounet.schema.labels import Labels
from dinounet.schema.prediction import Postprocessing, Steps

FEWEST_CASES = 3
"""Minimum number of cases; with fewer, nothing is selected."""

FEWEST_GAINS = 2
"""Cases in which a step must raise the class's Dice."""

GAIN = 0.001
"""By which a step must raise the class's mean Dice."""

LOSS = 0.001
"""Dice that a step may cost one case at most."""

SINGLE = 0.95
"""Of a class's pixels: what its largest true component must hold in each case, for the largest alone to be kept. Else
it may help only because the network finds no others in these few cases."""

SMALL = 0.05
"""Which quantile of the true components' sizes a small one has; the smallest itself may be a crumb."""

SHARES = (0.1, 0.25, 0.5)
"""Of a small true component's size: below which predicted components may be removed."""

STAGES = ("largest component", "small components", "holes")
"""What is tried, in this order."""

Dices = dict[str, list[float]]
"""Of classes, their Dice in each case; 1 where neither truth nor prediction has the class."""

Presence = Mapping[str, Sequence[bool]]
"""For each class, whether each case has it in the ground truth."""


@dataclass(frozen=True)
class Pair:
    """Truth and prediction of a case, both (Z, Y, X)."""

    truth: np.ndarray
    """Labels, the ignore label too."""

    prediction: np.ndarray
    """Labels."""

    spacing: tuple[float, float, float] | None
    """Distance of neighbours along z, y and x in mm; None where it isn't known."""


@dataclass(frozen=True)
class PackedPair:
    """A pair, compressed: masks become a hundredth, so that those of all cases are held at once and read but once."""

    arrays: bytes
    """The part that holds anything, in NumPy's compressed format."""

    spacing: tuple[float, float, float] | None


def choose(cases: Sequence[Case], predicted: Mapping[str, Path], known: Labels) -> Postprocessing:
    """Choose steps for each class or region.

    One kind of step after the other is tried for each class, together with what is chosen already: keep the largest
    component, if the truth has but one; remove components below a part of a small true one's size (of equally good
    parts the smallest); fill holes. In the end all are tried together, and dropped for the classes that they don't help
    then.

    Args:
        cases: with their truth, which the network that predicted them has not learned from. Those of several folds may
            be given together.
        predicted: the file of each case's mask, without postprocessing, by its name.
        known: what the numbers in masks stand for.

    Raises:
        DataError: there is no case, a mask can't be read, or the grids of a pair differ.
    """
    if not cases:
        raise DataError("there is no case to select postprocessing on; give cases that were not used in training")
    pairs = _read(cases, predicted, known)
    post, present, single, small = _measure(pairs, tuple(case.name for case in cases), known)
    for stage in STAGES if len(cases) >= FEWEST_CASES else ():
        options = {
            name: [steps, *_options(stage, steps, single[name], small[name])] for name, steps in post.classes.items()
        }
        tried = _try(pairs, known, post, options, stage)
        post = replace(post, classes={name: _best(name, options[name], tried[name], present) for name in options})
    return _verify(pairs, known, post, present)


def improves(name: str, before: Dices, after: Dices, present: Presence | None = None) -> bool:
    """Whether a class's steps are worth it.

    The class's mean Dice rises by GAIN, and in FEWEST_GAINS cases at least; no case loses more than LOSS, of any class;
    and no class's mean falls. A class that is correctly absent scores 1, so a step could win by removing all that is
    found; therefore over the cases that have a class its mean doesn't fall either, and it is still found in one.

    Args:
        name: of the class.
        before: without the steps, of all classes that they can change.
        after: with them.
        present: which cases have these classes; by default all.
    """
    gains = {other: np.subtract(after[other], before[other]) for other in before}
    own = gains[name]
    there = {other: np.array(present[other] if present else [True] * len(own), bool) for other in before}
    return bool(
        own.mean() >= GAIN
        and np.count_nonzero(own > 0) >= FEWEST_GAINS
        and all(gain.min() >= -LOSS and gain.mean() >= 0 for gain in gains.values())
        and all(gain[there[other]].sum() >= 0 for other, gain in gains.items())
        and (not there[name].any() or np.array(after[name])[there[name]].max() > 0)
    )


def _measure(
    pairs: Sequence[PackedPair], names: tuple[str, ...], known: Labels
) -> tuple[Postprocessing, dict[str, list[bool]], dict[str, bool], dict[str, list[float]]]:
    """A record without steps, and of each class which truths have it, whether it has but one component in each, and
    the sizes (in the record's unit) below which components may be removed."""
    spacings = []
    pixels: dict[str, list[np.ndarray]] = {name: [] for name in known.foreground}
    for pair in _unpack(pairs, "true components"):
        spacings.append(pair.spacing)
        for name, numbers in known.foreground.items():
            pixels[name].append(component_sizes(pair.truth, numbers))
    steps = {name: Steps() for name in pixels}
    told = [spacing for spacing in spacings if spacing is not None]
    post = Postprocessing(steps, cases=names)
    if len(told) == len(pairs):
        z, y, x = np.median(told, axis=0).tolist()
        post = replace(post, unit="mm3", spacing=(z, y, x))
    volumes = np.prod(told, axis=1) if post.unit == "mm3" else np.ones(len(pairs))
    small = {}
    for name, found in pixels.items():
        sizes = np.concatenate([counts * volume for counts, volume in zip(found, volumes, strict=True)])
        limit = np.quantile(sizes, SMALL, method="lower") if sizes.size else None
        small[name] = [] if limit is None else [float(f"{share * limit:.3g}") for share in SHARES]
    single = {
        name: all(counts.max(initial=0) >= SINGLE * counts.sum() for counts in found) for name, found in pixels.items()
    }
    present = {name: [bool(counts.sum()) for counts in found] for name, found in pixels.items()}
    return post, present, single, small


def _options(stage: str, steps: Steps, single: bool, sizes: Sequence[float]) -> list[Steps]:
    """What may be done beside these steps."""
    if stage == "largest component":
        return [replace(steps, keep_largest=True)] if single else []
    if stage == "small components":
        return [replace(steps, smallest=size) for size in sizes]
    return [replace(steps, fill_holes=True)]


def _try(
    pairs: Sequence[PackedPair],
    known: Labels,
    post: Postprocessing,
    options: Mapping[str, Sequence[Steps]],
    stage: str,
) -> dict[str, list[Dices]]:
    """Of each class and each of its options the Dice of all classes that it can change."""
    meeting = {name: _meeting(name, known) for name in options}
    tried: dict[str, list[Dices]] = {
        name: [{other: [] for other in meeting[name]} for _ in options[name]] for name in options
    }
    for pair in _unpack(pairs, stage):
        for name, meets in meeting.items():
            part = _around(pair, sorted({number for other in meets for number in known.foreground[other]}))
            for steps, dices in zip(options[name], tried[name], strict=True):
                classes = {other: post.classes[other] for other in meets} | {name: steps}
                for other, value in _dices(part, replace(post, classes=classes), known, meets).items():
                    dices[other].append(value)
    return tried


def _best(name: str, options: Sequence[Steps], tried: Sequence[Dices], present: Presence) -> Steps:
    """The best of the options that help, the first of equally good ones; the first of all is to do no more."""
    helping = [index for index in range(1, len(options)) if improves(name, tried[0], tried[index], present)]
    return options[max(helping, key=lambda index: np.mean(tried[index][name]), default=0)]


def _verify(pairs: Sequence[PackedPair], known: Labels, post: Postprocessing, present: Presence) -> Postprocessing:
    """The steps that help when all are done, with what they gain."""
    none = replace(post, classes={name: Steps() for name in post.classes})
    while True:
        before: Dices = {name: [] for name in post.classes}
        after: Dices = {name: [] for name in post.classes}
        for pair in _unpack(pairs, "all together"):
            for dices, steps in ((before, none), (after, post)):
                for name, value in _dices(pair, steps, known, list(dices)).items():
                    dices[name].append(value)
        useless = [
            name
            for name, steps in post.classes.items()
            if steps.does_something
            and not improves(
                name,
                {other: before[other] for other in _meeting(name, known)},
                {other: after[other] for other in _meeting(name, known)},
                present,
            )
        ]
        if not useless:
            break
        post = replace(post, classes=post.classes | {name: Steps() for name in useless})
    measured = {
        name: replace(steps, dice_before=float(np.mean(before[name])), dice_after=float(np.mean(after[name])))
        for name, steps in post.classes.items()
    }
    return replace(post, classes=measured)


def _meeting(name: str, known: Labels) -> list[str]:
    """The class or region and those that have a number in common with it, in order."""
    numbers = set(known.foreground[name])
    return [other for other, others in known.foreground.items() if numbers & set(others)]


def _dices(pair: Pair, post: Postprocessing, known: Labels, names: Sequence[str]) -> dict[str, float]:
    """Dice of these classes after the steps, where the truth is known."""
    mask = apply(post, pair.prediction.copy(), pair.spacing, known) if post.does_something else pair.prediction
    counts = True if known.ignore is None else pair.truth != known.ignore
    return {
        name: dice(*(where(labels, known.foreground[name]) & counts for labels in (pair.truth, mask))) for name in names
    }


def _around(pair: Pair, numbers: Sequence[int]) -> Pair:
    """The part of it that holds all of these numbers, and one more pixel around: a volume must not become a slice."""
    found = ndimage.find_objects((where(pair.truth, numbers) | where(pair.prediction, numbers)).view(np.uint8))
    box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in found[0]) if found else (slice(0, 2),) * 3
    return Pair(pair.truth[box], pair.prediction[box], pair.spacing)


def _read(cases: Sequence[Case], predicted: Mapping[str, Path], known: Labels) -> list[PackedPair]:
    """The cases' masks, each cut to what holds any class."""
    numbers = sorted({number for labels in known.foreground.values() for number in labels})
    pairs = []
    with progress("postprocessing: masks", len(cases)) as advance:
        for case in cases:
            prediction = read_mask(predicted[case.name], known)
            truth, prediction = on_one_grid(read_truth(case, known), prediction)
            require_same_grid(prediction, truth)
            is_series = case.images and case.images[0].is_dir()  # whose masks in NIfTI can't say that nothing is known
            spacing = truth.spacing if is_series else prediction.spacing
            pair = _around(Pair(truth.array, prediction.array, spacing), numbers)
            file = io.BytesIO()
            np.savez_compressed(file, truth=pair.truth, prediction=pair.prediction)
            pairs.append(PackedPair(file.getvalue(), spacing))
            advance()
    return pairs


def _unpack(pairs: Sequence[PackedPair], what: str) -> Iterator[Pair]:
    with progress(f"postprocessing: {what}", len(pairs)) as advance:
        for pair in pairs:
            with np.load(io.BytesIO(pair.arrays)) as arrays:
                yield Pair(arrays["truth"], arrays["prediction"], pair.spacing)
            advance()
