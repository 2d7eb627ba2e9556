"""Whether probabilities are what they say, drawn: the reliability diagram (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinounet.evaluation.curves import INK, draw_svg
from dinounet.evaluation.records import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = "#0072b2"


def draw_reliability(calibration: Calibration) -> str:
    """Share that is right against confidence, over bars of how many decisions each bin holds; an SVG element."""
    points = [
        (one.confidence, one.accuracy)
        for one in calibration.bins
        if one.confidence is not None and one.accuracy is not None
    ]

    def draw(axes: Axes) -> None:
        for one in calibration.bins:
            share = one.count / calibration.count
            axes.bar(one.low, share, one.high - one.low, align="edge", color=INK, alpha=0.13, edgecolor="none")
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=":")
        axes.plot(*zip(*points, strict=True), color=LINE, linewidth=1.3, marker="o", markersize=3.5)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel("confidence", color=INK)
        axes.set_ylabel("share that is right", color=INK)

    words = ", ".join(f"{accuracy:.2f} at {confidence:.2f}" for confidence, accuracy in points)
    return draw_svg(draw, "Reliability", f"Share of decisions that is right, by confidence: {words}", (3.6, 3.4))
