"""The dataset as an index of cases, read without touching a pixel.

Three layouts: nnU-Net's ("dataset format", version 2: `dataset.json`, `imagesTr/<case>_0000<ending>` with one file a
channel or one file for all channels, `labelsTr/<case><ending>`, and optionally `imagesTs`, `labelsTs`,
`splits_final.json`), plain images with masks of the same name (`pairs.py`), and a table that names both (`table.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dinounet.data.images import ENDINGS, ending_of, refuse_dead_link, stem_of
from dinounet.data.layouts import (
    Case,
    class_names,
    describe_pairs,
    find_pairs,
    in_folder,
    known_files,
    mask_paths,
    name_of,
    read_table,
    wrong_names,
)
from dinounet.data.legends import labels_of_legends
from dinounet.data.masks import refuse_fractions, refuse_jpegs
from dinounet.data.splits import group_cases, hold_out, read_splits, split_cases
from dinounet.errors import ConfigError, DataError, collect_errors
from dinounet.io import read_json, read_patiently, summarize, write_json
from dinounet.schema.labels import Given, Labels, name_labels, read_nnunet_labels
from dinounet.schema.plan import GroupBy, Split


@dataclass(frozen=True)
class Dataset:
    """What a dataset folder holds."""

    name: str
    """The folder's or the table's name."""

    channels: tuple[str, ...] | None
    """Names of the channels; as in nnU-Net they decide the normalisation ("CT", "noNorm", "rgb_to_0_1", others), and
    beyond it "rgb". None where only the images can tell."""

    labels: Labels | None
    """Classes and the numbers that stand for them in masks; None where only the masks can tell."""

    file_ending: str | None
    """Ending of all images and masks; None where each file has its own and holds all channels."""

    cases: tuple[Case, ...]
    """The cases to train on, sorted by name."""

    splits: tuple[Split, ...]
    """Names of the training and validation cases of each fold; none where there is nothing to split."""

    paired_by: str = ""
    """What images and masks were matched by, for people."""

    held_out: tuple[Case, ...] = ()
    """Cases for a test at the end: neither among the cases nor in any fold."""

    group: GroupBy = "none"
    """What put cases into groups; never auto."""

    remarks: tuple[str, ...] = ()
    """Sentences about the groups, and about what a reader of the results must know of the cases."""

    has_own_splits: bool = False
    """Whether the folds are the dataset's own."""

    @property
    def test_cases(self) -> tuple[str, ...]:
        """Names of the cases that are held out."""
        return tuple(case.name for case in self.held_out)


def read_dataset(
    root: Path,
    labels: Given | None = None,
    channels: tuple[str, ...] | None = None,
    *,
    test: Sequence[str] = (),
    group: GroupBy = "auto",
) -> Dataset:
    """Index a dataset.

    Args:
        root: a folder, in nnU-Net's layout if it holds `dataset.json`, else plain images and masks; or a table of them,
            a CSV file.
        labels: of plain masks, names of the classes and their numbers or colours, "ignore" for pixels that nobody has
            judged; by default the masks tell.
        channels: of plain images, the channels' names, which decide the normalisation.
        test: names of cases, or of groups of them, to hold out.
        group: what puts cases that the dataset has no groups of into some.

    Raises:
        DataError: all that is wrong with the layout, together.
        ConfigError: labels or channels are given where `dataset.json` names them, or without background; the cases to
            hold out are not there, or are all there is; or nothing belongs together by what should group them.
    """
    is_table = root.suffix.lower() == ".csv" and not root.is_dir()
    refuse_dead_link(root)
    if not root.exists() and not is_table:
        raise DataError(f"{root} does not exist; give the folder that holds the images and masks, or a CSV of them")
    if not root.is_dir() and not is_table:
        raise DataError(f"{root} is not a folder; give the folder that holds the images and masks, or a CSV of them")
    if (root / "dataset.json").exists() or (root / "imagesTr").is_dir():
        for given, what in ((labels, "labels"), (channels, "channels")):
            if given is not None:
                raise ConfigError(
                    f"{root / 'dataset.json'} names the {what}; correct them there, or leave --{what} out"
                )
        return _read_nnunet(root, test, group)
    named = None if labels is None else name_labels(labels)
    found, remarks = read_table(root) if is_table else (find_pairs(root), ())
    grouping = group_cases(found, group)
    cases, held_out = hold_out(grouping.cases, test, grouping.by)
    masks = [path for case in cases for path in mask_paths(case.mask)]
    refuse_jpegs(masks)
    refuse_fractions(masks)
    files = [case.mask for case in cases if isinstance(case.mask, Path)]
    named = _of_class_files(cases, named) if class_names(cases) else labels_of_legends(files, named)
    name = root.stem if is_table else root.resolve().name
    splits = split_cases(cases)
    paired_by = "the table's rows" if is_table else describe_pairs(cases)
    return Dataset(
        name, channels, named, None, cases, splits, paired_by=paired_by, held_out=held_out, group=grouping.by,
        remarks=remarks + grouping.remarks,
    )  # fmt: skip


def with_twins(dataset: Dataset, twins: Sequence[Sequence[str]]) -> Dataset:
    """A dataset whose cases of identical pixels are in one group, with those of the groups that they were in.

    Folds that are the dataset's own stay as they are.
    """
    units = {case.name: case.name if case.group is None else case.group for case in dataset.cases}
    joined = {unit: unit for unit in units.values()}
    for names in twins:
        together = {joined[units[name]] for name in names if name in units}
        joined = {unit: min(together) if into in together else into for unit, into in joined.items()}
    sizes = Counter(joined[unit] for unit in units.values())
    cases = tuple(
        replace(case, group=joined[units[case.name]]) if sizes[joined[units[case.name]]] > 1 else case
        for case in dataset.cases
    )
    return replace(dataset, cases=cases, splits=dataset.splits if dataset.has_own_splits else split_cases(cases))


def _of_class_files(cases: Sequence[Case], named: Labels | None) -> Labels | None:
    """What is known of the labels once the names of masks of one class each are."""
    classes = class_names(cases)
    if classes is None:
        return named
    if named is None:
        return Labels({"background": 0} | {name: index for index, name in enumerate(classes, start=1)})
    if {name for name, label in named.classes.items() if label} != {*classes} or named.colours or named.ignore:
        raise ConfigError(
            f"the masks have a file for each of {', '.join(classes)}, but the labels are {named.as_cli}; name these, "
            "by numbers, or leave --labels out"
        )
    return named


def hash_dataset(dataset: Dataset, on_case: Callable[[], None] = lambda: None) -> str:
    """sha256 of the names and contents of all files that training reads, and of the groups, which decide the folds."""
    digest = hashlib.sha256()
    for case in dataset.cases:
        if case.group is not None:
            digest.update(f"{case.group}\0".encode())
        for path in case.files:
            digest.update(f"{path.parent.name}/{path.name}\0".encode())
            digest = read_patiently(path, partial(_with_content, digest, path))
        on_case()
    return digest.hexdigest()


DIGESTS = "digests.json"
"""File in a cache's folder: the hashes of datasets by their files' places, sizes and times of change."""


def known_hash(dataset: Dataset, cache: Path) -> str | None:
    """The hash of a dataset none of whose files has changed since `remember_hash`; None if there is none."""
    found = _known_hashes(cache).get(_state_of(dataset))
    return found if isinstance(found, str) else None


def remember_hash(dataset: Dataset, digest: str, cache: Path) -> None:
    """Keep the hash of a dataset in a cache's folder, so that unchanged files need not be read again."""
    known, state = _known_hashes(cache), _state_of(dataset)
    if known.get(state) != digest:
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / DIGESTS, {**known, state: digest})


def _known_hashes(cache: Path) -> dict[str, Any]:
    try:
        known = read_json(cache / DIGESTS, what="the hashes of datasets")
    except DataError:  # there is none yet, or a disk has damaged it: files are hashed anew
        return {}
    return known if isinstance(known, dict) else {}


def _state_of(dataset: Dataset) -> str:
    states = [(case.group, case.state) for case in dataset.cases]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _with_content(digest: hashlib._Hash, path: Path) -> hashlib._Hash:
    """The hash of what was hashed before, and a file's content; the one before stays, for another try."""
    grown = digest.copy()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            grown.update(block)
    return grown


def parse_channels(text: str) -> tuple[str, ...]:
    """Split "T1,T2" into names.

    Raises:
        ConfigError: a name is empty.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ConfigError(f"--channels is {text!r}; write a name for each channel, such as CT or T1,T2")
    return names


def _read_nnunet(root: Path, test: Sequence[str], group: GroupBy) -> Dataset:
    description = read_json(root / "dataset.json", what="the description of an nnU-Net dataset")
    channels, labels, ending = read_description(description, root / "dataset.json")
    for folder in ("imagesTr", "labelsTr"):
        if not (root / folder).is_dir():
            raise DataError(f"{root} has no folder {folder}; an nnU-Net dataset keeps its training data there")

    images = find_cases(known_files(root / "imagesTr"), len(channels), ending)
    masks = {case.name: case.images[0] for case in find_cases(known_files(root / "labelsTr"), 1, ending)}
    refuse_jpegs(list(masks.values()))
    problems = [f"{root / 'labelsTr' / (case.name + ending)} is missing" for case in images if case.name not in masks]
    names = {case.name for case in images}
    problems += [f"{masks[name]} has no image in imagesTr" for name in sorted(masks.keys() - names)]
    if problems:
        raise DataError(f"images and masks don't match: {summarize(problems)}; add what is missing or remove the rest")
    if not images:
        raise DataError(f"{root / 'imagesTr'} holds no file that ends with {ending}; check file_ending in dataset.json")
    of_its_own = root / "splits_final.json"
    if of_its_own.exists() and group in ("folder", "name", "patient"):
        raise ConfigError(f"{of_its_own} decides on the folds; remove it, or leave --group {group} out")
    # without being asked for them no groups are made, so that the folds are nnU-Net's
    grouping = group_cases(
        [Case(case.name, case.images, masks[case.name]) for case in images],
        "none" if of_its_own.exists() else group,
        offer_only=True,
    )
    cases, held_out = hold_out(grouping.cases, test, grouping.by)
    splits = (
        read_splits(of_its_own, cases, [case.name for case in held_out]) if of_its_own.exists() else split_cases(cases)
    )
    return Dataset(
        root.resolve().name, channels, labels, ending, cases, splits,
        paired_by="nnU-Net's layout", held_out=held_out, group=grouping.by, remarks=grouping.remarks,
        has_own_splits=of_its_own.exists(),
    )  # fmt: skip


def find_cases(files: Sequence[Path], channels: int, ending: str | None, folder: Path | None = None) -> list[Case]:
    """Group images by case: `<case>_0000<ending>` and so on, one file per channel; or `<case><ending>` with all in one.

    Args:
        files: in known formats, and folders of DICOM slices, which each are a case.
        channels: how many there are.
        ending: that all files must have; None: each file is a case, in any format.
        folder: that they were found in; the names of folders in it become part of their cases' names.

    Raises:
        DataError: a file has another ending, a case lacks some of its channels' files, or two have the same name.
    """
    cases = [Case(name_of(path, folder), (path,)) for path in files if ending is None or path.is_dir()]
    if ending is not None:
        cases += _join_channels([path for path in files if not path.is_dir()], channels, ending, folder)
    refuse_same_names(cases)
    return sorted(cases, key=lambda case: case.name)


def refuse_same_names(cases: Sequence[Case]) -> None:
    """Raise a DataError if cases have one name, or names that some systems can't tell apart."""
    counts = Counter(case.name for case in cases)
    twice = [f"several images are named {name}" for name in sorted(counts) if counts[name] > 1]
    problems = twice + wrong_names(counts)
    if problems:
        raise DataError(f"{summarize(problems)}; rename them, or keep them in folders of their own")


def _join_channels(files: Sequence[Path], channels: int, ending: str, folder: Path | None) -> list[Case]:
    others = [str(path) for path in files if ending_of(path) != ending]
    if others:
        raise DataError(
            f"these don't end with {ending}, as the dataset's images do: {summarize(others)}; convert or remove them, "
            "or correct file_ending in dataset.json"
        )
    numbered: dict[str, list[tuple[int, Path]]] = {}
    cases, problems = [], []
    for path in files:
        found = re.search(r"_(\d{4})$", stem_of(path))
        stem = in_folder(stem_of(path), path, folder)
        if found and int(found[1]) < channels:
            numbered.setdefault(stem.removesuffix(found[0]), []).append((int(found[1]), path))
        else:
            cases.append(Case(stem, (path,)))
    for name, parts in numbered.items():
        parts.sort()
        paths = tuple(path for _, path in parts)
        if [channel for channel, _ in parts] not in ([0], list(range(channels))):
            held = ", ".join(path.name for path in paths)
            problems.append(f"{name} should have one file per channel ({channels}), or one with all, but has {held}")
        cases.append(Case(name, paths))
    if problems:
        raise DataError(f"{summarize(problems)}; add what is missing")
    return cases


def read_description(description: Any, path: Path) -> tuple[tuple[str, ...], Labels, str]:
    """Channels, labels and the images' ending, as nnU-Net's `dataset.json` has them.

    Raises:
        DataError: what is missing or wrong, all together.
    """
    if not isinstance(description, Mapping):
        raise DataError(f"{path} holds no object; see nnU-Net's dataset format")
    wanted = {"channel_names": Mapping, "labels": Mapping, "file_ending": str}
    missing = [
        f"no {key}" if key not in description else f"no {key} but {type(description[key]).__name__} in its place"
        for key, kind in wanted.items()
        if not isinstance(description.get(key), kind)
    ]
    if missing:
        raise DataError(f"{path} has {summarize(missing)}; see nnU-Net's dataset format (version 2)")
    problems: list[str] = []
    with collect_errors(problems):
        channels = _read_channels(description["channel_names"], path)
    with collect_errors(problems):
        labels = _read_labels(description, path)
    ending = description["file_ending"]
    if ending not in ENDINGS:
        problems.append(f"{path} says that files end with {ending!r}; known are {', '.join(ENDINGS)}")
    if problems:
        raise DataError(summarize(problems))
    return channels, labels, ending


def _read_channels(numbered: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    if not numbered or sorted(numbered) != sorted(str(i) for i in range(len(numbered))):
        raise DataError(f"{path} numbers its channels {', '.join(numbered) or 'not at all'}; they must be 0, 1, 2 ...")
    nameless = [number for number, name in numbered.items() if not isinstance(name, str) or not name.strip()]
    if nameless:
        raise DataError(f"{path} has no name for {', '.join(nameless)} in channel_names; write a name, such as CT")
    return tuple(numbered[str(i)] for i in range(len(numbered)))


def _read_labels(description: Mapping[str, Any], path: Path) -> Labels:
    labels = read_nnunet_labels(description, path)
    numbers = [*labels.classes.values(), *(() if labels.ignore is None else (labels.ignore,))]
    if numbers != list(range(len(numbers))) or labels.classes.get("background") != 0 or len(labels.classes) < 2:
        raise DataError(
            f"{path} has the labels {description['labels']}; they must be background = 0, then 1, 2 ... without gaps, "
            "ignore last"
        )
    return labels
