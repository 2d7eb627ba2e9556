"""Measures in words: what people call them, and numbers with the digits that matter.

Every table, page and sentence writes its numbers by this module, so that 0.0009 mm is nowhere printed as 0.00.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinounet.evaluation.comparison import Comparison
    from dinounet.evaluation.records import Interval, Metrics

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "nsd": "NSD",
    "precision": "precision",
    "recall": "recall",
    "hd95": "HD95",
    "assd": "ASSD",
    "volume_difference": "Δ volume",
    "absolute_volume_difference": "|Δ volume|",
}
"""What people call the measures."""

DISTANCES = ("hd95", "assd")
VOLUMES = ("volume_difference", "absolute_volume_difference")

DECIMALS, SIGNIFICANT = 2, 2
"""Of distances and volumes, and how many significant digits these have at least, however small they are."""

DECIMALS_OF_SHARES, SIGNIFICANT_OF_SHARES = 3, 1
"""The same of Dice and its like, which lie between 0 and 1."""

SMALLEST = 1e-6
"""Below this a number is written with an exponent."""

ROUNDING = 1e-13
"""Below this a number is what rounding has left of 0; a volume of one cubic micrometre is 1e-12 ml."""


def title_of(name: str, metrics: Metrics | Comparison) -> str:
    """What people call a measure, with its unit if it has one."""
    unit = metrics.unit if name in DISTANCES else metrics.volume_unit if name in VOLUMES else ""
    return TITLES[name] + (f" ({unit})" if unit else "")


def write_number(name: str, number: float, sign: str = "") -> str:
    """A measure with the digits that matter; with "+", one above 0 with its sign."""
    share = name not in DISTANCES + VOLUMES
    decimals, digits = (DECIMALS_OF_SHARES, SIGNIFICANT_OF_SHARES) if share else (DECIMALS, SIGNIFICANT)
    if abs(number) < ROUNDING:
        return f"{0.0:.{decimals}f}"
    if abs(number) < SMALLEST:
        return f"{number:{sign}.{digits - 1}e}"
    needed = digits - 1 - math.floor(math.log10(abs(number)))
    return f"{number:{sign}.{max(decimals, needed)}f}"


def write_interval(name: str, interval: Interval | None, by: str = "case") -> str:
    """An interval in words; of one case, or group, there is none."""
    return f"one {by} only" if interval is None else " to ".join(write_number(name, end) for end in interval)
