"""Datasets that a CSV file describes."""

from pathlib import Path

import pytest
from PIL import Image

from datasets import picture
from dinounet.data.dataset import hash_dataset, read_dataset
from dinounet.errors import DataError
from dinounet.planning.data_plan import plan_data


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six images of three patients, in folders of their own."""
    rows = ["image,mask,group"]
    for index in range(6):
        folder = tmp_path / f"patient {index // 2}"
        folder.mkdir(exist_ok=True)
        image, mask = picture((64, 64), index)
        Image.fromarray(image).save(folder / f"eye{index}.png")
        Image.fromarray(mask).save(folder / f"eye{index}_truth.png")
        rows.append(f"{folder.name}/eye{index}.png,{folder.name}/eye{index}_truth.png,p{index // 2}")
    path = tmp_path / "eyes.csv"
    path.write_text("\n".join(rows))
    return path


def test_a_table_names_cases_and_their_groups(table: Path) -> None:
    dataset = read_dataset(table)
    assert dataset.name == "eyes"
    assert [(case.name, case.group) for case in dataset.cases] == [(f"eye{i}", f"p{i // 2}") for i in range(6)]
    assert plan_data(dataset).fingerprint.cases == 6


@pytest.mark.parametrize("change", ["Excel", "tabs", "case"])
def test_a_table_may_be_written_otherwise(change: str, table: Path) -> None:
    text = table.read_text()
    if change == "Excel":
        table.write_text(text.replace(",", ";").replace("image", "Image"), encoding="utf-8-sig")
    elif change == "tabs":
        table.write_text(text.replace(",", "\t"))
    else:
        lines = text.splitlines()
        table.write_text("\n".join([lines[0] + ",case", *(f"{line},eye{i}" for i, line in enumerate(lines[1:]))]))
    assert [case.name for case in read_dataset(table).cases] == [f"eye{i}" for i in range(6)]


def test_other_groups_are_other_data_for_they_decide_the_folds(table: Path) -> None:
    before = hash_dataset(read_dataset(table))
    table.write_text(table.read_text().replace(",p1", ",p2"))
    assert hash_dataset(read_dataset(table)) != before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "image,mask,group",
            "image,group,x",
            r"eyes\.csv has the unknown column 'x'; no column 'mask'; its first line must",
        ),
        ("image,mask,group", "image,maks,group", r"has the unknown column 'maks' \(did you mean 'mask'\?\)"),
        ("image,mask,group", "image,group,case", r"eyes\.csv has no column 'mask'; its first line must name image and"),
        ("image,mask,group", "image,mask,mask", r"has a duplicate column 'mask'"),
        ("eye3.png", "eye9.png", r"eyes\.csv is wrong: eyes\.csv:5 names .*eye9\.png, which does not exist; correct"),
        (",p1", ",", r"eyes\.csv:4 is empty in the column group; eyes\.csv:5 is empty in the column group;"),
        (",p1", "", r"eyes\.csv:4 does not have as many cells as the first line"),
        (",p2", ",p2,p3", r"eyes\.csv:6 does not have as many cells as the first line"),
        (
            "eye3.png",
            "eye2.png",
            r"2 rows are of eye2 \(tell them apart in a column case\); .*eye2\.png stands",
        ),
    ],
)
def test_a_wrong_table_is_answered(old: str, new: str, message: str, table: Path) -> None:
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        read_dataset(table)


def test_tables_that_hold_nothing_are_answered(tmp_path: Path) -> None:
    for content, message in (
        (b"", "has no column 'image'"),
        (b"image,mask\n", "has no row; write one for each image"),
        (b"\xff\xfe\x00", "is not text in UTF-8; save the table as CSV UTF-8"),
    ):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_dataset(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"b\.csv can't be read \(No such file or directory\)"):
        read_dataset(tmp_path / "b.csv")
