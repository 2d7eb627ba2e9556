"""What masks hold: told by the user, the prediction's record, the truth's dataset, or the masks' own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dinounet.data.labels import Labels, name_labels, parse_labels, read_nnunet_labels
from dinounet.data.legends import labels_of_legends
from dinounet.data.pairs import mask_files
from dinounet.errors import ConfigError
from dinounet.files import PREDICTION, join_some, read_json, to_record

NOT_LEARNED = "no training case has a pixel of it"
"""Why a class is in no mean over classes."""


def find_absent(predictions: Path, known: Labels) -> dict[str, str]:
    """Classes, or regions, that the network could not learn, as `prediction.json` tells, and why; not all there are."""
    told = _names_told(predictions, "absent_classes")
    absent = [name for name in known.foreground if name in told]
    return dict.fromkeys(absent, NOT_LEARNED) if len(absent) < len(known.foreground) else {}


def find_absent_in_any(folders: Mapping[str, Path], known: Labels) -> dict[str, str]:
    """Classes, or regions, that the network of any of several models could not learn, and whose; not all there are.

    Args:
        folders: of each model's masks, by its name.
        known: what the numbers in the masks stand for.
    """
    absent = {model: _names_told(folder, "absent_classes") for model, folder in folders.items()}
    found = {}
    for name in known.foreground:
        if models := [model for model, names in absent.items() if name in names]:
            found[name] = f"no training case of {join_some(models)} has a pixel of it"
    return found if len(found) < len(known.foreground) else {}


def find_at_the_detector(predictions: Path) -> list[str]:
    """Cases whose images, as `prediction.json` tells, have their lengths in mm at the detector."""
    return _names_told(predictions, "at_the_detector")


def _names_told(predictions: Path, key: str) -> list[str]:
    """A list of names in `prediction.json`; none where it, or its list, isn't there."""
    path = predictions / PREDICTION
    content = read_json(path, what="the record of a prediction") if path.is_file() else {}
    told = content.get(key) if isinstance(content, Mapping) else None
    return [str(name) for name in told] if isinstance(told, list) else []


def find_labels(predictions: Path, truth: Path, given: str | None = None) -> Labels:
    """Names and numbers of the classes, the regions that they make up, and the ignore label.

    Args:
        predictions: folder whose `prediction.json` may tell them.
        truth: folder beside which, in an nnU-Net dataset, `dataset.json` may tell them; at last names of segments do.
        given: "background=0,lesion=1", before both.

    Raises:
        UserError: nothing tells them, or what tells them can't be understood.
    """
    if given is not None:
        return name_labels(parse_labels(given))
    for path in (predictions / PREDICTION, truth / "dataset.json", truth.parent / "dataset.json"):
        if path.is_file():
            content = read_json(path, what="an object with labels")
            if not isinstance(content, Mapping) or not isinstance(content.get("labels"), Mapping):
                raise ConfigError(f"{path} has no labels; pass --labels background=0,lesion=1")
            if path.name == PREDICTION:
                known = {key: content[key] for key in ("labels", "regions", "ignore", "colours") if key in content}
                return to_record(Labels, known, where=str(path))
            return read_nnunet_labels(content, path)
    masks = [path for folder in (predictions, truth) if folder.is_dir() for path in mask_files(folder)]
    if found := labels_of_legends(masks, None):
        return found
    raise ConfigError(
        f"neither {predictions} nor {truth} says which classes the masks hold; pass --labels background=0,lesion=1"
    )
