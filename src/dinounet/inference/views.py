"""Test-time augmentation: a tile as seen in mirrors, and turned.

nnU-Net mirrors along both axes ("inference", arXiv 1809.10486) and so does `flip`; `full` adds the transposed ones,
which makes all eight symmetries of a square.
"""

from __future__ import annotations

from typing import Literal

from dinounet.data.views import FLIPS, IDENTITY, SYMMETRIES, View

TestTimeAugmentation = Literal["none", "flip", "full"]

VIEWS: dict[TestTimeAugmentation, tuple[View, ...]] = {"none": (IDENTITY,), "flip": FLIPS, "full": SYMMETRIES}
