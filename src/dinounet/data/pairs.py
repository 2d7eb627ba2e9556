"""Plain images and masks: pairs of files with the same name, as people have them.

Either `images/` and `masks/` (or `labels/`), or everything in one folder, where a mask's name ends with a word that
says so: `case_mask.png`, `case-label.nrrd`, `mask.png`. Each file holds all channels of its case.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dinounet.data.images import ending_of, stem_of
from dinounet.errors import DataError
from dinounet.files import join_some

MASK_FOLDERS = ("masks", "labels")

IMAGE_WORDS = re.compile(r"(^|[ _.-])(image|img)$", re.IGNORECASE)
MASK_WORDS = re.compile(r"(^|[ _.-])(masks?|labels?|seg|segmentation|annotation|gt)$", re.IGNORECASE)
"""What the end of a name may say of a file without being part of the case's name."""


@dataclass(frozen=True)
class Case:
    """One subject or image: its files, not its pixels."""

    name: str
    """Identifier, which is the file name without channel and ending."""

    images: tuple[Path, ...]
    """One file a channel, or one file with all channels."""

    mask: Path | None = None
    """The truth, where it is known."""

    group: str | None = None
    """Whose it is, such as the patient's: cases of one group are never both learned from and watched."""


def find_pairs(root: Path) -> tuple[Case, ...]:
    """Match images and masks by name.

    Raises:
        DataError: there are none, some lack their other half, or several have the same name; all of it together.
    """
    if (root / "images").is_dir():
        folder = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
        if folder is None:
            raise DataError(f"{root} has a folder images but no masks beside it; name their folder masks")
        images, masks = image_files(root / "images"), mask_files(folder)
    else:
        images, masks = _told_apart(root)
    if not images or not masks:
        raise DataError(
            f"{root} holds {len(images)} images and {len(masks)} masks; give a folder with dataset.json (nnU-Net's "
            "layout), with images/ and masks/, or with pairs such as a.png and a_mask.png"
        )
    by_name = {name_of(path, root.resolve().name): path for path in images}
    masks_by_name = {name_of(path, root.resolve().name): path for path in masks}
    problems = _twice(images, root) + _twice(masks, root)
    problems += [f"{path} has no mask" for name, path in by_name.items() if name not in masks_by_name]
    problems += [f"{path} has no image" for name, path in masks_by_name.items() if name not in by_name]
    if problems:
        raise DataError(f"images and masks don't match by name: {join_some(problems)}; add, rename or remove files")
    return tuple(Case(name, (by_name[name],), masks_by_name[name]) for name in sorted(by_name))


def image_files(folder: Path) -> list[Path]:
    """A folder's files of known formats, sorted, without those that are masks of others by their name."""
    images, masks = _told_apart(folder)
    names = {name_of(path) for path in images}
    return sorted([*images, *(path for path in masks if name_of(path) not in names)])


def mask_files(folder: Path) -> list[Path]:
    """A folder's files of known formats, sorted, without those that others are masks of by their name."""
    images, masks = _told_apart(folder)
    names = {name_of(path) for path in masks}
    return sorted([*masks, *(path for path in images if name_of(path) not in names)])


def name_of(path: Path, otherwise: str = "image") -> str:
    """The case's name: the file's without ending and without a word that says image or mask."""
    stem = stem_of(path)
    return IMAGE_WORDS.sub("", MASK_WORDS.sub("", stem)) or otherwise


def _twice(paths: Sequence[Path], root: Path) -> list[str]:
    counts = Counter(name_of(path, root.resolve().name) for path in paths)
    return [f"{count} files in {paths[0].parent} are named {name}" for name, count in counts.items() if count > 1]


def known_files(folder: Path) -> list[Path]:
    """A folder's files of known formats, sorted."""
    return sorted(path for path in folder.iterdir() if ending_of(path) and not path.name.startswith("."))


def _told_apart(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of known formats: those whose names don't say that they are masks, and those whose names do."""
    files = known_files(folder)
    masks = [path for path in files if MASK_WORDS.search(stem_of(path))]
    return [path for path in files if path not in masks], masks
