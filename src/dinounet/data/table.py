"""A table of cases: a CSV file that names images and masks wherever they are, and whose patient each one is.

One row a case. Columns: `image` and `mask` (paths, relative to the table; an image may be a folder of DICOM files), and
optionally `group` (such as the patient: cases of one group are never split between training and validation) and `case`
(a name, by default the image's). Others are not read, which is told.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath

from dinounet.data.formats.dicom_objects import is_series
from dinounet.data.pairs import Case, mask_paths, name_of, wrong_names
from dinounet.errors import DataError
from dinounet.files import join_some, read_text

WANTED, OPTIONAL = ("image", "mask"), ("group", "case")

MEANS_A_PATIENT = re.compile(r"(patient|subject|person|participant)([ _-]?(id|no|number|name))?|pid|sub", re.IGNORECASE)
"""How people name the column that we call group."""

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
            problems.append(f"{where} has not as many cells as the first line")
            continue
        cells = {name: cell.strip() for name, cell in zip(columns, row, strict=False)}
        empty = [name for name in (*WANTED, "group") if cells.get(name) == ""]
        if empty:
            problems.append(f"{where} says nothing in the column {empty[0]}")
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
            problems.append(f"{where} names the case {name!r}, which can be no file's name")
        cases.append(Case(name, (files["image"],), files["mask"], cells.get("group")))
    counts = Counter(case.name for case in cases)
    problems += [
        f"{count} rows are of {name} (tell them apart in a column case)" for name, count in counts.items() if count > 1
    ]
    problems += wrong_names(counts)
    seen = Counter(file.resolve() for case in cases for file in (*case.images, *mask_paths(case.mask)))
    problems += [f"{file} stands there {count} times" for file, count in seen.items() if count > 1]
    if problems:
        raise DataError(f"{path} is wrong: {join_some(problems)}; correct the table")
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
    problems += [f"the column {name!r} twice" for name, count in Counter(names).items() if count > 1 and name in known]
    if problems:
        raise DataError(
            f"{path} has {join_some(problems)}; its first line must name image and mask, and may name group and case, "
            "separated by commas, semicolons or tabs"
        )
