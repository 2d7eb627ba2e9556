"""Wrong datasets: dataset.json, splits_final.json and tables of cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wrong_datasets import describe, nnunet, pairs, wrong

DISCS = {"background": 0, "disc": 1}


def wrong_description(name: str, *words: str, **changes: Any) -> None:
    """Enters a dataset whose dataset.json differs in some keys."""

    def spoil(root: Path) -> None:
        describe(root, **changes)

    spoil.__name__ = name
    wrong(nnunet, "dataset.json", *words)(spoil)


def wrong_text(name: str, file: str, text: str | bytes, *words: str) -> None:
    """Enters a dataset with a text file in the place of a description."""

    def spoil(root: Path) -> None:
        (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    spoil.__name__ = name
    base = pairs if file.endswith(".csv") else nnunet
    wrong(base, file, *words, data=file if file.endswith(".csv") else "")(spoil)


# ---- dataset.json

wrong_text("no_json", "dataset.json", "channels: MR", "is not JSON", "it should be the description of an nnU-Net")
wrong_text("empty_json", "dataset.json", "", "is not JSON", "it should be the description of an nnU-Net dataset")
wrong_text("half_a_json", "dataset.json", '{"labels": {"backg', "is not JSON", "it should be")
wrong_text("json_in_latin_1", "dataset.json", '{"name": "Größe"}'.encode("latin-1"), "is not JSON", "it should be")
wrong_text("deep_json", "dataset.json", "[" * 100_000, "is not JSON", "it should be")
wrong_text("deep_and_whole_json", "dataset.json", "[" * 90_000 + "]" * 90_000, "it should be")
wrong_text("a_list_in_json", "dataset.json", "[1, 2]", "holds no object; see nnU-Net's dataset format")
wrong_text("a_number_in_json", "dataset.json", "1" * 10_000, "it should be")
wrong_text("null_in_json", "dataset.json", "null", "holds no object; see nnU-Net's dataset format")

wrong_text("half_a_character_in_json", "dataset.json", r'{"labels": {"\ud800": 0}}', "is not JSON", "it should be")
wrong_text("json_in_utf_16", "dataset.json", '{"labels": {}}'.encode("utf-16"), "is not JSON", "it should be")

wrong_text("a_name_twice_in_json", "dataset.json", '{"labels": {"a": 0, "a": 1}}', "duplicate key 'a'")

wrong_description("no_channel_names", "has no channel_names; see nnU-Net's", channel_names=None)
wrong_description(
    "channel_names_as_a_list", "has no channel_names but list in its place", "see nnU-Net's", channel_names=["MR"]
)
wrong_description("no_channel_at_all", "numbers its channels not at all; they must be 0, 1, 2", channel_names={})
wrong_description("channels_from_1", "numbers its channels 1; they must be 0, 1, 2", channel_names={"1": "MR"})
wrong_description("channels_with_a_gap", "0, 2; they must be 0, 1, 2", channel_names={"0": "MR", "2": "CT"})
wrong_description("a_channel_named_by_a_number", "channel_names", "write a name", channel_names={"0": 7})
wrong_description("a_channel_with_an_empty_name", "channel_names", "write a name", channel_names={"0": " "})
wrong_description("no_file_ending", "has no file_ending; see nnU-Net's", file_ending=None)
wrong_description("file_ending_as_a_number", "has no file_ending but int in its place", "see nnU-Net's", file_ending=5)
wrong_description("an_unknown_file_ending", "files end with '.docx'; known are .nii.gz", file_ending=".docx")
wrong_description("a_file_ending_without_its_dot", "files end with 'png'; known are", file_ending="png")
wrong_description("a_file_ending_that_no_file_has", "don't end with .nii.gz", "file_ending", file_ending=".nii.gz")
wrong_description("no_labels", "has no labels; see nnU-Net's", labels=None)
wrong_description(
    "labels_as_a_list", "has no labels but list in its place", "see nnU-Net's", labels=["background", "disc"]
)
wrong_description("no_label_at_all", "must be background = 0, then 1, 2", labels={})
wrong_description("background_alone", "must be background = 0, then 1, 2", labels={"background": 0})
wrong_description("labels_without_background", "must be background = 0, then 1, 2", labels={"disc": 1, "other": 2})
wrong_description("labels_with_a_gap", "without gaps", labels={"background": 0, "disc": 2})
wrong_description("labels_that_stand_twice", "without gaps", labels={**DISCS, "square": 1})
wrong_description("a_label_as_text", "has disc = '1' among its labels; write the name", labels={**DISCS, "disc": "1"})
wrong_description("a_label_as_a_fraction", "has disc = 1.5 among its labels; write", labels={**DISCS, "disc": 1.5})
wrong_description("a_label_as_nan", "has disc = nan among its labels; write", labels={**DISCS, "disc": float("nan")})
wrong_description("a_label_as_a_truth", "has disc = True among its labels; write", labels={**DISCS, "disc": True})
wrong_description("a_negative_label", "without gaps", labels={**DISCS, "disc": -1})
wrong_description("labels_the_old_way_round", "write the name first", labels={"0": "background", "1": "disc"})
wrong_description("ignore_is_not_last", "ignore last", labels={"background": 0, "ignore": 1, "disc": 2})
wrong_description("ignore_is_background", "0 is the ignore label and a class too", labels={**DISCS, "ignore": 0})
wrong_description("ignore_is_a_list", "ignore label, which must be one number", labels={**DISCS, "ignore": [2, 3]})
wrong_description("too_many_labels", "257 classes; there can be 256", labels={"background": 0} | {
    f"class {number}": number for number in range(1, 257)
})  # fmt: skip
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
wrong_description("regions_without_order", "regions_class_order None, which must be a list", labels=REGIONS)
wrong_description("regions_with_a_short_order", "order [1], which must", labels=REGIONS, regions_class_order=[1])
wrong_description(
    "regions_ordered_by_names", "which must be a list of one", labels=REGIONS, regions_class_order=["x", 2]
)
wrong_description("regions_ordered_by_a_number", "order 5, which must", labels=REGIONS, regions_class_order=5)
wrong_description("a_region_written_as_another", "must be one of its own", labels=REGIONS, regions_class_order=[1, 1])
wrong_description("an_empty_region", "has whole = [] among its labels; write", labels={**DISCS, "whole": []})
wrong_description(
    "a_region_with_background", "without the background",
    labels={"background": 0, "whole": [0, 1], "core": 2}, regions_class_order=[1, 2],
)  # fmt: skip
wrong_description(
    "several_wrong_fields_at_once", "no channel_names", "no labels", "no file_ending", "see nnU-Net's",
    channel_names=None, labels=[1], file_ending=7,
)  # fmt: skip
wrong_description(
    "several_wrong_values_at_once", "numbers its channels 1", "has disc = 1.5", "files end with '.docx'",
    channel_names={"1": "MR"}, labels={**DISCS, "disc": 1.5}, file_ending=".docx",
)  # fmt: skip

# ---- splits_final.json


def wrong_splits(name: str, content: Any, *words: str) -> None:
    wrong_text(name, "splits_final.json", json.dumps(content), *words)


wrong_text("splits_that_are_no_json", "splits_final.json", "train: a", "is not JSON", "it should be a list of folds")
wrong_splits("splits_without_folds", [], "is no list of folds; write a list of objects with train and val")
wrong_splits("splits_as_an_object", {"train": ["a"], "val": ["b"]}, "is no list of folds; write a list")
wrong_splits("a_fold_without_val", [{"train": ["a"]}], "has a fold 0 without train and val (write both")
wrong_splits("a_fold_of_numbers", [{"train": [1], "val": [2]}], "has a fold 0 without train and val (write both")
wrong_splits("a_fold_that_is_a_list", [["a"], ["b"]], "has a fold 0 without train and val (write both")
wrong_splits(
    "a_fold_with_nothing_to_train_on", [{"train": [], "val": ["b"]}], "no case to train on (name some); correct"
)
wrong_splits(
    "a_fold_with_unknown_cases", [{"train": ["a", "x"], "val": ["y"]}], "imagesTr does not hold: x, y; correct"
)
wrong_splits(
    "a_fold_with_cases_on_both_sides",
    [{"train": ["a", "b"], "val": ["b"]}],
    "twice in fold 0 (keep them in one of its parts): b; correct it",
)
wrong_splits("a_fold_with_a_case_twice", [{"train": ["a", "a"], "val": ["b"]}], "twice in fold 0 (keep", ": a;")
wrong_splits(
    "several_wrong_folds_at_once", [{"train": ["x"], "val": []}, {"train": ["a", "b"], "val": ["b"]}, 5],
    "fold 0", "fold 1", "fold 2",
)  # fmt: skip

# ---- tables


def wrong_table(name: str, text: str | bytes, *words: str) -> None:
    wrong_text(name, "table.csv", text, *words)


ROW = "images/a.png,masks/a.png"
wrong_table("an_empty_table", "", "has no column 'image'; no column 'mask'; its first line must name")
wrong_table("a_table_of_blank_lines", "\n\n\n", "has no column 'image'", "its first line must")
wrong_table("a_table_with_a_header_only", "image,mask\n", "has no row; write one for each image")
wrong_table("a_table_without_header", f"{ROW}\n", "has the unknown column 'images/a.png'", "its first line must")
wrong_table("a_table_without_masks", "image,group\nimages/a.png,p\n", "has no column 'mask'; its first line must")
wrong_table("a_table_of_patients", f"image,mask,patient_id\n{ROW},3\n", "'patient_id' (did you mean 'group'?)")
wrong_table("a_table_with_a_mistyped_column", f"image,maks\n{ROW}\n", "'maks' (did you mean 'mask'?)")
wrong_table("a_table_with_a_column_twice", f"image,mask,mask\n{ROW},\n", "has a duplicate column 'mask'")
wrong_table("a_table_with_bars", f"image|mask\n{ROW.replace(',', '|')}\n", "unknown column 'image|mask'", "commas")
wrong_table("a_table_in_latin_1", "image,mask\nGröße.png,x\n".encode("latin-1"), "is not text in UTF-8; save")
wrong_table("a_table_in_utf_16_without_mark", f"image,mask\n{ROW}\n".encode("utf-16-le"), "null bytes; save")
wrong_table("a_table_with_a_zero_byte", f"image,mask\n{ROW}\0\n", "is not text, since it contains null bytes; save")
wrong_table("a_table_with_short_rows", f"image,mask\n{ROW}\nimages/b.png\n", "table.csv:3 does not have as many cells")
wrong_table("a_table_with_empty_cells", f"image,mask\n{ROW}\n,masks/b.png\n", "table.csv:3 is empty in the column")
wrong_table(
    "a_table_of_missing_files", f"image,mask\n{ROW}\nx.png,masks/b.png\nimages/c.png,y.png\n",
    "table.csv:3 names", "x.png, which does not exist", "table.csv:4 names", "y.png, which does not exist", "correct",
)  # fmt: skip
wrong_table(
    "a_table_of_missing_absolute_paths", f"image,mask\n{ROW}\n/no/b.png,/no/b_mask.png\n",
    "names /no/b.png, which does not exist", "names /no/b_mask.png, which does not exist",
)  # fmt: skip
wrong_table("a_table_with_a_row_twice", f"image,mask\n{ROW}\n{ROW}\n", "2 rows are of a", "images/a.png stands there 2")
wrong_table(
    "a_table_with_one_mask_for_two",
    f"image,mask\n{ROW}\nimages/b.png,masks/a.png\n",
    "masks/a.png stands there 2 times",
)
wrong_table("a_table_with_folders_in_it", "image,mask\nimages,masks\n", "which is a folder", "without DICOM files")
wrong_table("a_table_with_texts_in_it", "image,mask\ntable.csv,masks/a.png\n", "table.csv is not an image in a known")
wrong_table("a_table_with_slashes_in_names", f"image,mask,case\n{ROW},a/b\n", "'a/b', which is not a valid file name")
wrong_table(
    "a_table_with_an_open_quote", f'image,mask,group\n{ROW},"p1\nimages/b.png,masks/b.png,p2\n',
    "table.csv can't be read as a table (unexpected end of data)", "close every quotation mark",
)  # fmt: skip
wrong_table(
    "a_table_with_an_endless_cell", f"image,mask\n{'x' * 200_000},y\n", "table.csv can't be read as a table (field"
)


@wrong(pairs, "images/b.png holds 88 different values and", "masks/b.png few", "swap them back", data="table.csv")
def a_table_with_swapped_cells(root: Path) -> None:
    (root / "table.csv").write_text(f"image,mask\n{ROW}\nmasks/b.png,images/b.png\n")


@wrong(pairs, "table.csv holds 0 images and 0 masks; give a folder with", data="table.csv")
def a_folder_named_as_a_table(root: Path) -> None:
    (root / "table.csv").mkdir()


@wrong(pairs, "table.csv can't be read (No such file or directory)", data="table.csv")
def a_table_that_does_not_exist(root: Path) -> None: ...


@wrong(nnunet, "dataset.json names the labels; correct them there", flags=("--labels", "background=0,disc=1"))
def labels_given_beside_those_of_nnunet(root: Path) -> None: ...


@wrong(nnunet, "dataset.json names the channels; correct them there", flags=("--channels", "CT"))
def channels_given_beside_those_of_nnunet(root: Path) -> None: ...


@wrong(nnunet, "dataset.json can't be read (Is a directory); it should be the description of an nnU-Net dataset")
def a_folder_named_as_a_description(root: Path) -> None:
    (root / "dataset.json").unlink()
    (root / "dataset.json").mkdir()


@wrong(pairs, "images/a.png has 1 channels, but 2 are expected (T1, T2)", "images/c.png", flags=("--channels", "T1,T2"))
def more_channel_names_than_channels(root: Path) -> None: ...


@wrong(pairs, "--labels is 'disc'; write it as background=0,lesion=1", flags=("--labels", "disc"))
def labels_that_are_no_labels(root: Path) -> None: ...
