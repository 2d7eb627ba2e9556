"""Tables as people's programs write them: what they say is what is read, or a sentence with the file's own line."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.data.splits import read_test_list
from dinounet.errors import DataError

NAMES = "abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images and masks."""
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 1
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for index, name in enumerate(NAMES):
        Image.fromarray(mask * 90 + index).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def lines(group: str = "P{}", slash: str = "/") -> list[str]:
    return [
        f"images{slash}{name}.png,masks{slash}{name}.png,{group.format(index // 2)}" for index, name in enumerate(NAMES)
    ]


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "table.csv").write_bytes(text.encode(encoding))
    return folder / "table.csv"


def groups_of(path: Path) -> list[str | None]:
    return [case.group for case in read_dataset(path).cases]


def by_csv(path: Path) -> list[str]:
    """The groups as Python's own reader has them."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row["group"].strip() for row in csv.DictReader(file)]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\n", "\r\n"])
def test_what_breaks_lines_elsewhere_is_part_of_a_cell(inside: str, folder: Path) -> None:
    path = write(folder, "image,mask,group\n" + "\n".join(lines(f'"one{inside}P{{}}"')))
    assert groups_of(path) == by_csv(path) == [f"one{inside}P{index // 2}" for index in range(6)]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("\r\n".join(["image,mask,group", *lines()]).replace(",", ";") + "\r\n", "utf-8"),
        ("\n".join(["image,mask,group", *lines()]).replace(",", "\t"), "utf-16"),
        ("\r".join(["image,mask,group", *lines()]), "utf-8-sig"),
        ("sep=;\r\n" + "\r\n".join(["image,mask,group", *lines()]).replace(",", ";"), "utf-8"),
        ("\n".join(["", "image,mask,group", *lines()[:3], "", ",,", " , ,", *lines()[3:], ",,", "", ""]), "utf-8"),
        ("\n".join(["image,mask,group,,", *(f"{line},," for line in lines())]), "utf-8"),
        ("\n".join(["image, mask , GROUP", *(f" {line} " for line in lines())]), "utf-8"),
        ("\n".join(["image,mask,group", *lines(slash="\\")]), "utf-8"),
        ("\n".join(["image,mask,group", *lines()]), "cp1252"),
    ],
    ids=["crlf semicolon", "utf-16 tab", "cr", "sep=", "blank lines", "trailing", "spaces", "backslash", "cp1252"],
)
def test_tables_as_programs_write_them(text: str, encoding: str, folder: Path) -> None:
    dataset = read_dataset(write(folder, text, encoding))
    assert [(case.name, case.group) for case in dataset.cases] == [(n, f"P{i // 2}") for i, n in enumerate(NAMES)]
    assert [case.images[0].resolve() for case in dataset.cases] == [folder / "images" / f"{n}.png" for n in NAMES]
    assert len(dataset.splits) == 3


def test_other_columns_are_passed_over_and_told(folder: Path) -> None:
    text = "\n".join(["image,age,mask,group,split", *(f"{a},60,{b},{g},val" for a, b, g in map(_cells, lines()))])
    dataset = read_dataset(write(folder, text))
    assert [case.group for case in dataset.cases] == ["P0", "P0", "P1", "P1", "P2", "P2"]
    assert dataset.remarks == ("table.csv: the columns age, split are not read.",)


def _cells(line: str) -> list[str]:
    return line.split(",")


@pytest.mark.parametrize("column", ["patient", "Patient ID", "subject_id", "grp", "groups"])
def test_a_column_that_seems_to_be_the_group_is_no_other_column(column: str, folder: Path) -> None:
    text = "\n".join([f"image,mask,{column}", *lines()])
    with pytest.raises(DataError, match=rf"has the unknown column '{column.lower()}' \(did you mean 'group'\?\)"):
        read_dataset(write(folder, text))


@pytest.mark.parametrize("other", ["p{}", "P{} ", "p{}\u00a0"])
def test_groups_that_differ_in_capitals_or_spaces_are_one_and_told(other: str, folder: Path) -> None:
    mixed = [line if index % 2 else line[:-2] + f'"{other.format(index // 2)}"' for index, line in enumerate(lines())]
    dataset = read_dataset(write(folder, "\n".join(["image,mask,group", *mixed])))
    assert len({case.group for case in dataset.cases}) == 3
    assert len(dataset.splits) == 3
    if other[0] == "p":
        assert "Groups that differ in capitals or spaces alone are one group: 'p0' and 'P0'; " in dataset.remarks[0]


def test_an_accent_may_be_composed_or_not(folder: Path) -> None:
    mixed = [line.replace("P", "\u00e9" if index % 2 else "e\u0301") for index, line in enumerate(lines())]
    assert len(set(groups_of(write(folder, "\n".join(["image,mask,group", *mixed]))))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '\nimage,mask,group\nimages/a.png,masks/a.png,"one\ntwo"\n\nimages/x.png,masks/b.png,P1\n',
            r"table\.csv is wrong: table\.csv:6 names .*images/x\.png, which does not exist; correct the table",
        ),
        ('image,mask,group\nimages/x.png,masks/a.png,"one\ntwo"\n', r"table\.csv:2 names .*x\.png, which does not"),
        ("image,mask,group\r\nimages/a.png,masks/a.png,\u2028\r\n", r"table\.csv:2 is empty in the column group"),
        ("image,mask\n\n\nimages/a.png\n", r"table\.csv:4 does not have as many cells as the first line"),
        ("image,mask\nimages/a.png,masks/a.png,x\n", r"table\.csv:2 does not have as many cells as the first line"),
        (
            'image,mask\nimages/a.png,"masks/a.png\n',
            r"table\.csv can't be read as a table .*close every quotation mark",
        ),
        ("image,mask\nC:\\data\\a.png,masks\\a.png\n", r"names .*C:/data/a\.png, which does not exist"),
    ],
)
def test_lines_are_told_by_the_files_own_numbers(text: str, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(write(folder, text))


@pytest.mark.slow
@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\u2028", "\x85", "\x7f"])
def test_a_case_is_named_as_a_file_can_be(character: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f'image,mask,case\nimages/a.png,masks/a.png,"case{character}a"\nimages/b.png,masks/b.png,b\n'
    with pytest.raises(DataError, match=r"table\.csv:2 names the case 'case.+a', which is not a valid file name"):
        read_dataset(write(folder, text))
    assert main(["plan", str(folder / "table.csv")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_neither_utf_8_nor_utf_16_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv is not text in UTF-8; save the table as CSV UTF-8"):
        read_dataset(write(folder, "\n".join(["image,mask,group", *lines("Müller {}")]), "cp1252"))


@pytest.mark.skipif(os.name == "nt", reason="a backslash can be no part of a name there")
def test_a_backslash_in_a_name_is_one(folder: Path) -> None:
    (folder / "images" / "a.png").rename(folder / "images\\a.png")
    dataset = read_dataset(write(folder, "\n".join(["image,mask,case,group", "images\\a.png,masks\\a.png,a,P0"])))
    assert dataset.cases[0].images[0].exists()


def test_a_table_without_groups_has_those_that_its_folders_show(folder: Path) -> None:
    rows = ["image,mask,case"]
    for index in range(10):
        (folder / f"p{index // 2}").mkdir(exist_ok=True)
        for kind in ("images", "masks"):
            target = folder / f"p{index // 2}" / f"{kind}{index}.png"
            target.write_bytes((folder / kind / f"{NAMES[index % 6]}.png").read_bytes())
        rows.append(f"p{index // 2}/images{index}.png,p{index // 2}/masks{index}.png,c{index}")
    dataset = read_dataset(write(folder, "\n".join(rows)))
    assert [case.group for case in dataset.cases] == [f"p{index // 2}" for index in range(10)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_test_list_is_read_by_its_lines(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_bytes("one\u2028P0\r\ntwo\x85\n\n# three\rfour".encode(encoding))
    assert read_test_list(path) == ("one\u2028P0", "two", "four")
