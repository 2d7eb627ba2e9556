"""The layouts of a dataset: folders of images and masks with the same names, or a table in CSV."""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from dinounet.data.formats.dicom_headers import dicom_files, is_series
from dinounet.data.images import ending_of, refuse_dead_link, stem_of
from dinounet.errors import DataError
from dinounet.io import read_text, summarize

MASK_FOLDERS = ("masks", "labels")

IMAGE_WORDS = re.compile(r"(^|[ _.-])(image|img)$", re.IGNORECASE)
MASK_WORDS = re.compile(r"(^|[ _.-])(masks?|labels?|seg|segmentation|annotation|gt)$", re.IGNORECASE)
"""What the end of a name may say of a file without being part of the case's name."""


NO_IMAGES = ("__MACOSX",)
"""Folders that systems make."""


@dataclass(frozen=True)
class ClassFiles:
    """A mask that is kept as one file per class."""

    files: tuple[tuple[str, Path], ...]
    """Names of the classes, and their files."""

    @property
    def name(self) -> str:
        """The files' names, for people."""
        return " + ".join(f"{path.parent.name}/{path.name}" for _, path in self.files)


@dataclass(frozen=True)
class Case:
    """One subject or image: its files, not its pixels."""

    name: str
    """Identifier, which is the file name without channel and ending."""

    images: tuple[Path, ...]
    """One file per channel, or one file or folder of DICOM slices with all channels."""

    mask: Path | ClassFiles | None = None
    """The truth, where it is known."""

    group: str | None = None
    """Whose it is, such as the patient's: cases of one group are never both learned from and watched."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All that it is read from."""
        images = [file for path in self.images for file in (dicom_files(path) if path.is_dir() else [path])]
        return (*images, *mask_paths(self.mask))

    @property
    def state(self) -> list[tuple[str, int, int]]:
        """Place, size in bytes and time of change of each of its files: another content has another state."""
        return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]


def mask_paths(mask: Path | ClassFiles | None) -> tuple[Path, ...]:
    """The files that a mask consists of."""
    if isinstance(mask, ClassFiles):
        return tuple(path for _, path in mask.files)
    return () if mask is None else (mask,)


def find_pairs(root: Path) -> tuple[Case, ...]:
    """Match images and masks by name.

    Raises:
        DataError: there are none, some lack their other half, or several have the same name; all of it together.
    """
    images_folder = masks_folder = root
    if (root / "images").is_dir():
        for name in MASK_FOLDERS:
            refuse_dead_link(root / name)
        folder = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
        if folder is None:
            raise DataError(f"{root} has a folder images but no masks beside it; name their folder masks")
        images_folder, masks_folder = root / "images", folder
        images, masks = image_files(images_folder), mask_files(masks_folder)
    else:
        images, masks = _told_apart(root)
    if not images or not masks:
        raise DataError(
            f"{root} holds {len(images)} images and {len(masks)} masks; give a folder with dataset.json (nnU-Net's "
            "layout), with images/ and masks/, or with pairs such as a.png and a_mask.png"
        )
    otherwise = root.resolve().name
    named = [(name_of(path, images_folder, otherwise), path) for path in images]
    by_name = dict(named)
    problems = _twice(named)
    classes = class_files(masks, masks_folder, by_name) if masks_folder != root else {}
    masks_by_name: dict[str, Path | ClassFiles] = {**classes}
    if not classes:
        named_masks = [(name_of(path, masks_folder, otherwise), path) for path in masks]
        masks_by_name = dict(named_masks)
        problems += _twice(named_masks)
    problems += [f"{path} has no mask" for name, path in by_name.items() if name not in masks_by_name]
    problems += [f"{mask_paths(mask)[0]} has no image" for name, mask in masks_by_name.items() if name not in by_name]
    if problems:
        raise DataError(f"images and masks don't match by name: {summarize(problems)}; add, rename or remove files")
    return tuple(Case(name, (by_name[name],), masks_by_name[name]) for name in sorted(by_name))


def class_files(masks: Sequence[Path], folder: Path, names: Iterable[str]) -> dict[str, ClassFiles]:
    """Masks of one class each by case, if that is what a folder holds: every image then has one of every class.

    Raises:
        DataError: it clearly is, but some are missing.
    """
    names = set(names)
    if not names:
        return {}
    found: dict[str, dict[str, Path]] = {}
    if {name_of(path, folder) for path in masks} & names:
        return {}  # masks of whole cases
    in_folders = [path.relative_to(folder).parts for path in masks]
    if all(len(parts) > 1 for parts in in_folders):
        for path, parts in zip(masks, in_folders, strict=True):
            found.setdefault(name_of(path, folder / parts[0]), {})[parts[0]] = path
    if not found.keys() & names:
        found = {}
        for path in masks:
            stem = name_of(path, folder)
            places = [match.start() for match in re.finditer(r"[ _.-](?=.)", stem)]
            case = next((stem[:place] for place in reversed(places) if stem[:place] in names), None)
            if case is None:
                return {}
            found.setdefault(case, {})[stem[len(case) + 1 :]] = path
    classes = sorted({name for files in found.values() for name in files})
    missing = [
        f"{case} has no mask of {name}" for case in sorted(names) for name in classes if name not in found.get(case, {})
    ]
    if missing:
        raise DataError(
            f"{folder} seems to contain one mask per class ({', '.join(classes)}), but {summarize(missing)}; add masks "
            "of 0 where there is nothing, or rename them"
        )
    return {case: ClassFiles(tuple(sorted(files.items()))) for case, files in found.items()}


def class_names(cases: Sequence[Case]) -> tuple[str, ...] | None:
    """The classes that have a file each, without background; None where masks hold all of them."""
    first = cases[0].mask
    if not isinstance(first, ClassFiles):
        return None
    return tuple(name for name, _ in first.files if name.casefold() != "background")


def describe_pairs(cases: Sequence[Case]) -> str:
    """By which words in their names images and masks were paired."""
    counts: Counter[str] = Counter()
    for case in cases:
        if isinstance(case.mask, ClassFiles):
            counts["the same name, one mask per class"] += 1
            continue
        assert case.mask is not None
        words = [
            (found[0], what)
            for pattern, path, what in ((IMAGE_WORDS, case.images[0], "image"), (MASK_WORDS, case.mask, "mask"))
            if (found := pattern.search(stem_of(path)))
        ]
        told = " and ".join(f"`{word}` at the end of the {what}'s name" for word, what in words)
        counts[told or "the same name"] += 1
    return "; ".join(f"{how} ({count})" for how, count in counts.most_common())


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and below, sorted, without those that are masks of others by their name."""
    if is_series(folder):
        raise DataError(f"{folder} holds DICOM files themselves; put each series into a folder of its own in it")
    images, masks = _told_apart(folder)
    names = {name_of(path, folder) for path in images}
    return sorted([*images, *(path for path in masks if name_of(path, folder) not in names)])


def mask_files(folder: Path) -> list[Path]:
    """The masks in a folder and below, sorted, without images that others are masks of by their name."""
    images, masks = _told_apart(folder)
    names = {name_of(path, folder) for path in masks}
    return sorted([*masks, *(path for path in images if name_of(path, folder) not in names)])


def name_of(path: Path, folder: Path | None = None, otherwise: str = "image") -> str:
    """The case's name: the file's without ending and without a word that says image or mask.

    Args:
        path: the file.
        folder: that it was found in; the names of folders between them come first.
        otherwise: the name if nothing is left.
    """
    return in_folder(IMAGE_WORDS.sub("", MASK_WORDS.sub("", stem_of(path))), path, folder) or otherwise


def in_folder(name: str, path: Path, folder: Path | None) -> str:
    """A name with those of the folders between a file and the one that it was found in.

    Characters are composed: some systems store an é as two.
    """
    between = path.relative_to(folder).parent.parts if folder else ()
    return unicodedata.normalize("NFC", "_".join(part for part in (*between, name) if part))


def _twice(named: Sequence[tuple[str, Path]]) -> list[str]:
    folder = named[0][1].parent
    counts = Counter(name for name, _ in named)
    return [
        *(f"{count} files in {folder} are named {name}" for name, count in counts.items() if count > 1),
        *wrong_names(counts),
    ]


def wrong_names(names: Iterable[str]) -> list[str]:
    """What is wrong with names that are no text, or that some systems can't tell apart."""
    names = list(names)
    garbled = [name for name in names if name.encode(errors="replace").decode() != name]
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(name)
    return [f"{name!r} is no text in UTF-8" for name in garbled] + [
        f"{' and '.join(same)} differ only in small and capital letters, which some systems don't tell apart"
        for same in alike.values()
        if len(same) > 1
    ]


def known_files(folder: Path) -> list[Path]:
    """A folder's files of known formats, sorted."""
    return sorted(path for path in folder.iterdir() if ending_of(path) and not path.name.startswith("."))


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """The files of known formats in a folder and the folders in it, and those of these that are DICOM series.

    Raises:
        DataError: a symbolic link leads back to where it is.
    """
    above = (*above, folder.resolve())
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in NO_IMAGES:
            continue
        if not path.is_dir():
            found += [path] if ending_of(path) else []
        elif path.resolve() in above:
            raise DataError(f"{path} is a symbolic link that leads back to {path.resolve()}; remove it")
        else:
            found += [path] if is_series(path) else files_below(path, above)
    return found


def _told_apart(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of known formats: those whose names don't say that they are masks, and those whose names do."""
    images: list[Path] = []
    masks: list[Path] = []
    for path in files_below(folder):
        is_mask = MASK_WORDS.search(stem_of(path)) and not path.is_dir()
        (masks if is_mask else images).append(path)
    return images, masks


WANTED, OPTIONAL = ("image", "mask"), ("group", "case")

MEANS_A_PATIENT = re.compile(r"(patient|subject|person|participant)([ _-]?(id|no|number|name))?|pid|sub", re.IGNORECASE)
"""Names that people give to the column that we call group."""

CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that break lines, or that nobody sees."""


def read_table(path: Path) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The cases that a CSV file (separated by commas, semicolons or tabs) names, sorted by name; and remarks on it.

    Raises:
        DataError: the file can't be read, lacks columns, or its rows are wrong; all of that together.
    """
    text = read_text(path, unreadable="it should be a table of images and masks", no_text="save the table as CSV UTF-8")
    rows = read_rows(path, text)
    _, header = next(rows, (0, []))
    columns = [name.strip().lower() for name in header]
    while columns and not columns[-1]:  # some programs end lines with separators
        columns.pop()
    _check_columns(path, columns)

    cases, problems = [], []
    for line, row in rows:
        where = f"{path.name}:{line}"
        if any(cell.strip() for cell in row[len(columns) :]) or len(row) < len(columns):
            problems.append(f"{where} does not have as many cells as the first line")
            continue
        cells = {name: cell.strip() for name, cell in zip(columns, row, strict=False)}
        empty = [name for name in (*WANTED, "group") if cells.get(name) == ""]
        if empty:
            problems.append(f"{where} is empty in the column {empty[0]}")
            continue
        files = {name: _find(path.parent, cells[name]) for name in WANTED}
        problems += [f"{where} names {file}, which does not exist" for file in files.values() if not file.exists()]
        problems += [
            f"{where} names {file} as {name}, which is a folder" + (" without DICOM files" if name == "image" else "")
            for name, file in files.items()
            if file.is_dir() and not (name == "image" and is_series(file))
        ]
        name = cells.get("case") or name_of(files["image"], None, files["image"].absolute().parent.name)
        if "/" in name or "\\" in name or CONTROL.search(name):
            problems.append(f"{where} names the case {name!r}, which is not a valid file name")
        cases.append(Case(name, (files["image"],), files["mask"], cells.get("group")))
    counts = Counter(case.name for case in cases)
    problems += [
        f"{count} rows are of {name} (tell them apart in a column case)" for name, count in counts.items() if count > 1
    ]
    problems += wrong_names(counts)
    seen = Counter(file.resolve() for case in cases for file in (*case.images, *mask_paths(case.mask)))
    problems += [f"{file} stands there {count} times" for file, count in seen.items() if count > 1]
    if problems:
        raise DataError(f"{path} is wrong: {summarize(problems)}; correct the table")
    if not cases:
        raise DataError(f"{path} has no row; write one for each image, below the line with the columns' names")
    return tuple(sorted(cases, key=lambda case: case.name)), _remarks(path, columns)


def read_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold anything, each with the number of its first line in the file.

    Raises:
        DataError: a quotation mark is not closed, or stands in the middle of a cell.
    """
    lines = io.StringIO(text, newline="")  # which csv wants as they are, since a quoted cell may hold several
    begin = text.lstrip("\r\n").split("\n", 1)[0].strip()
    told = re.fullmatch(r"sep=(.)", begin, re.IGNORECASE)  # Excel's own
    delimiter = told[1] if told else max(",;\t", key=begin.count)
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for row in rows:
            if any(cell.strip() for cell in row) and not (told and line == 1):
                yield line, row
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} can't be read as a table ({error}); close every quotation mark") from None


def _find(folder: Path, cell: str) -> Path:
    """The file that a cell names, also if it is written as on Windows."""
    path = folder / cell
    if "\\" in cell and not path.exists():
        return folder / PureWindowsPath(cell).as_posix()
    return path


def _remarks(path: Path, columns: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know of a table that is right."""
    ignored = [name for name in columns if name and name not in (*WANTED, *OPTIONAL)]
    if not ignored:
        return ()
    what = f"column {ignored[0]} is" if len(ignored) == 1 else f"columns {', '.join(ignored)} are"
    return (f"{path.name}: the {what} not read.",)


def _check_columns(path: Path, names: Sequence[str]) -> None:
    known = (*WANTED, *OPTIONAL)
    absent = [name for name in known if name not in names]
    problems = []
    for name in names:
        if not name or name in known:
            continue
        near = difflib.get_close_matches(name, absent, n=1, cutoff=0.7)
        if "group" in absent and MEANS_A_PATIENT.fullmatch(name):
            near = ["group"]
        if near or set(WANTED) & set(absent):
            problems.append(f"the unknown column {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    problems += [f"no column {name!r}" for name in WANTED if name not in names]
    problems += [f"a duplicate column {name!r}" for name, n in Counter(names).items() if n > 1 and name in known]
    if problems:
        raise DataError(
            f"{path} has {summarize(problems)}; its first line must name image and mask, and may name group and case, "
            "separated by commas, semicolons or tabs"
        )
