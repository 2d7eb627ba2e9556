"""The dataset as an index of cases, read from an nnU-Net folder without touching a pixel.

Layout (nnU-Net's "dataset format", version 2): `dataset.json`, `imagesTr/<case>_0000<ending>` with one file a channel
or one file for all channels, `labelsTr/<case><ending>`, and optionally `imagesTs`, `labelsTs`, `splits_final.json`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinounet.data.images import ENDINGS
from dinounet.errors import DataError
from dinounet.files import read_json

FOLDS = 5
SPLIT_SEED = 12345
"""nnU-Net's, so that its folds are ours."""


@dataclass(frozen=True)
class Case:
    """One subject or image: its files, not its pixels."""

    name: str
    """Identifier, which is the file name without channel and ending."""

    images: tuple[Path, ...]
    """One file a channel, or one file with all channels."""

    mask: Path | None = None
    """The truth, where it is known."""


@dataclass(frozen=True)
class Dataset:
    """What a dataset folder holds."""

    name: str
    """The folder's name."""

    channels: tuple[str, ...]
    """Names of the channels; as in nnU-Net they decide the normalisation ("CT", "noNorm", "rgb_to_0_1", others)."""

    labels: dict[str, int]
    """Names and numbers of the classes, background (0) first."""

    file_ending: str
    """Ending of all images and masks."""

    cases: tuple[Case, ...]
    """The cases to train on, sorted by name."""

    splits: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Names of the training and validation cases of each fold."""

    sha256: str
    """Of the names and contents of all files that training reads."""


def read_dataset(root: Path) -> Dataset:
    """Index an nnU-Net dataset folder.

    Raises:
        DataError: all that is wrong with the layout, together.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds dataset.json, imagesTr and labelsTr")
    description = read_json(root / "dataset.json", what="the description of an nnU-Net dataset")
    channels, labels, ending = _read_description(description, root / "dataset.json")
    for folder in ("imagesTr", "labelsTr"):
        if not (root / folder).is_dir():
            raise DataError(f"{root} has no folder {folder}; an nnU-Net dataset keeps its training data there")

    images = find_cases(root / "imagesTr", len(channels), ending)
    masks = {path.name[: -len(ending)]: path for path in _files(root / "labelsTr", ending)}
    problems = [f"{root / 'labelsTr' / (case.name + ending)} is missing" for case in images if case.name not in masks]
    names = {case.name for case in images}
    problems += [f"{masks[name]} has no image in imagesTr" for name in sorted(masks.keys() - names)]
    if problems:
        raise DataError(f"images and masks don't match: {join_some(problems)}; add what is missing or remove the rest")
    if not images:
        raise DataError(f"{root / 'imagesTr'} holds no file that ends with {ending}; check file_ending in dataset.json")
    cases = tuple(Case(case.name, case.images, masks[case.name]) for case in images)
    return Dataset(root.name, channels, labels, ending, cases, _read_splits(root, cases), _hash(root, cases))


def find_cases(folder: Path, channels: int, ending: str) -> list[Case]:
    """Group a folder's images by case: `<case>_0000<ending>` and so on, or `<case><ending>` with all channels in one.

    Raises:
        DataError: a case lacks some of its channels' files, or has more than there are channels.
    """
    grouped: dict[str, list[Path]] = {}
    for path in _files(folder, ending):
        grouped.setdefault(re.sub(r"_\d{4}$", "", path.name[: -len(ending)]), []).append(path)
    problems = [
        f"{name} has {len(paths)} files ({', '.join(path.name for path in paths)})"
        for name, paths in grouped.items()
        if len(paths) not in (1, channels)
    ]
    if problems:
        raise DataError(
            f"{folder} should hold one file a case or one a channel ({channels}), but {join_some(problems)}"
        )
    return [Case(name, tuple(paths)) for name, paths in sorted(grouped.items())]


def make_splits(names: Sequence[str]) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
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


def join_some(items: Sequence[str], most: int = 10) -> str:
    """The first items in a row, and how many more there are."""
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith("."))


def _read_description(description: Any, path: Path) -> tuple[tuple[str, ...], dict[str, int], str]:
    if not isinstance(description, Mapping):
        raise DataError(f"{path} holds no object; see nnU-Net's dataset format")
    for key, kind in (("channel_names", Mapping), ("labels", Mapping), ("file_ending", str)):
        if not isinstance(description.get(key), kind):
            raise DataError(f"{path} has no {key}; see nnU-Net's dataset format (version 2)")
    numbered: Mapping[str, str] = description["channel_names"]
    if not numbered or sorted(numbered) != sorted(str(i) for i in range(len(numbered))):
        raise DataError(f"{path} numbers its channels {', '.join(numbered) or 'not at all'}; they must be 0, 1, 2 ...")
    labels: Mapping[str, Any] = description["labels"]
    unsuited = [name for name, label in labels.items() if type(label) is not int or name == "ignore"]
    if unsuited:
        raise DataError(f"{path} has regions or an ignore label ({', '.join(unsuited)}), which can't be trained on yet")
    if sorted(labels.values()) != list(range(len(labels))) or labels.get("background") != 0 or len(labels) < 2:
        raise DataError(
            f"{path} has the labels {dict(labels)}; they must be background = 0, then 1, 2 ... without gaps"
        )
    if len(labels) > 256:
        raise DataError(f"{path} has {len(labels)} labels; there can be 256 at most, background included")
    ending = description["file_ending"]
    if ending not in ENDINGS:
        raise DataError(f"{path} says that files end with {ending!r}; known are {', '.join(ENDINGS)}")
    by_number = sorted(labels.items(), key=lambda item: item[1])
    return tuple(str(numbered[str(i)]) for i in range(len(numbered))), dict(by_number), ending


def _read_splits(root: Path, cases: Sequence[Case]) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    names = {case.name for case in cases}
    path = root / "splits_final.json"
    if not path.exists():
        return make_splits(sorted(names))
    splits = []
    for fold, content in enumerate(read_json(path, what="a list of folds, each with train and val")):
        if not isinstance(content, Mapping) or not {"train", "val"} <= content.keys():
            raise DataError(f"{path} has a fold {fold} without train and val; write both as lists of cases")
        unknown = sorted({*content["train"], *content["val"]} - names)
        both = sorted(set(content["train"]) & set(content["val"]))
        if unknown:
            raise DataError(f"{path} names in fold {fold} cases that imagesTr does not hold: {join_some(unknown)}")
        if both:
            raise DataError(f"{path} has cases in both parts of fold {fold}: {join_some(both)}; keep them in one")
        splits.append((tuple(content["train"]), tuple(content["val"])))
    return tuple(splits)


def _hash(root: Path, cases: Sequence[Case]) -> str:
    digest = hashlib.sha256()
    for case in cases:
        for path in (*case.images, case.mask):
            assert path is not None
            digest.update(f"{path.relative_to(root)}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
