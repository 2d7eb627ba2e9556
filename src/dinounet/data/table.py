"""A table of cases: a CSV file that names images and masks wherever they are, and whose patient each one is.

One row a case. Columns: `image` and `mask` (paths, relative to the table; an image may be a folder of DICOM files), and
optionally `group` (such as the patient: cases of one group are never split between training and validation) and `case`
(a name, by default the image's).
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from pathlib import Path

from dinounet.data.formats.dicom_objects import is_series
from dinounet.data.pairs import Case, mask_paths, name_of, wrong_names
from dinounet.errors import DataError
from dinounet.files import join_some

WANTED, OPTIONAL = ("image", "mask"), ("group", "case")


def read_table(path: Path) -> tuple[Case, ...]:
    """The cases that a CSV file (separated by commas, semicolons or tabs) names, sorted by name.

    Raises:
        DataError: the file can't be read, has other columns, or its rows are wrong; all of that together.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Excel's UTF-8 begins with a mark
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); it should be a table of images and masks") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8; save the table as CSV UTF-8") from None
    if any("\0" in line for line in lines):
        raise DataError(f"{path} is not text, for it holds bytes of 0; save the table as CSV UTF-8")
    header = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=max(",;\t", key=header.count), skipinitialspace=True, strict=True)
    try:
        columns = rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        numbered = [(f"{path.name}:{rows.line_num}", row) for row in rows]
    except csv.Error as error:
        raise DataError(f"{path} can't be read as a table ({error}); close every quotation mark") from None
    _check_columns(path, columns)

    cases, problems = [], []
    for where, row in numbered:
        if None in row or None in row.values():
            problems.append(f"{where} has not as many cells as the first line")
            continue
        cells = {name: cell.strip() for name, cell in row.items()}
        empty = [name for name, cell in cells.items() if not cell and name != "case"]
        if empty:
            problems.append(f"{where} says nothing in the column {empty[0]}")
            continue
        files = {name: path.parent / cells[name] for name in WANTED}
        problems += [f"{where} names {file}, which does not exist" for file in files.values() if not file.exists()]
        problems += [
            f"{where} names {file} as {name}, which is a folder" + (" without DICOM files" if name == "image" else "")
            for name, file in files.items()
            if file.is_dir() and not (name == "image" and is_series(file))
        ]
        name = cells.get("case") or name_of(files["image"], None, files["image"].absolute().parent.name)
        if "/" in name or "\\" in name:
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
    return tuple(sorted(cases, key=lambda case: case.name))


def _check_columns(path: Path, names: list[str]) -> None:
    known = (*WANTED, *OPTIONAL)
    problems = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            problems.append(f"the unknown column {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    problems += [f"no column {name!r}" for name in WANTED if name not in names]
    problems += [f"the column {name!r} twice" for name, count in Counter(names).items() if count > 1]
    if problems:
        raise DataError(
            f"{path} has {join_some(problems)}; its first line must name image and mask, and may name group and case, "
            "and nothing else, separated by commas, semicolons or tabs"
        )
