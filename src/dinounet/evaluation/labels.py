"""Which classes masks hold: told by the user, by the prediction's record, or by the truth's dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dinounet.data.dataset import parse_labels
from dinounet.errors import ConfigError
from dinounet.files import PREDICTION, read_json


def find_labels(predictions: Path, truth: Path, given: str | None = None) -> dict[str, int]:
    """Names and numbers of the classes.

    Args:
        predictions: folder whose `prediction.json` may tell them.
        truth: folder beside which, in an nnU-Net dataset, `dataset.json` may tell them.
        given: "background=0,lesion=1", before both.

    Raises:
        ConfigError: nothing tells them, or what tells them is no list of names and numbers.
    """
    if given is not None:
        return parse_labels(given)
    for path in (predictions / PREDICTION, truth / "dataset.json", truth.parent / "dataset.json"):
        if path.is_file():
            content = read_json(path, what="an object with labels")
            labels = content.get("labels") if isinstance(content, Mapping) else None
            if not isinstance(labels, Mapping) or not all(type(label) is int for label in labels.values()):
                raise ConfigError(f"{path} has no labels that are one number each; pass --labels background=0,lesion=1")
            return dict(labels)
    raise ConfigError(
        f"neither {predictions} nor {truth} says which classes the masks hold; pass --labels background=0,lesion=1"
    )
