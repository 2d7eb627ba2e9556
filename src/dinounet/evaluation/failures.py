"""Where a model fails: what a reader should look at before believing a mean."""

from __future__ import annotations

from dataclasses import dataclass

from dinounet.evaluation.records import Metrics, worst_first

LOW_DICE = 0.5
"""Dice under which a class counts as badly found."""


@dataclass(frozen=True)
class Failure:
    """One class of one case."""

    case: str
    """Its name, or the group's."""

    name: str
    """Of the class."""

    dice: float
    """0 where only one of the masks is empty."""


def find_failures(metrics: Metrics) -> dict[str, list[Failure]]:
    """Failures by kind, each in one kind only, worst case first; a kind that there is none of has an empty list."""
    found: dict[str, list[Failure]] = {
        "Missed entirely": [],
        "Found where there is nothing": [],
        f"Found, with a Dice under {LOW_DICE}": [],
    }
    missed, invented, low = found.values()
    for case in worst_first(metrics.scored):
        for name, one in case.classes.items():
            failure = Failure(case.case, name, one.dice)
            if one.empty == "prediction":
                missed.append(failure)
            elif one.empty == "truth":
                invented.append(failure)
            elif one.dice < LOW_DICE:
                low.append(failure)
    return found
