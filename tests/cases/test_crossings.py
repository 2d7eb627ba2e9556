"""Where two parts meet: what one of them knows of a mask, a class or a patient, the next one doesn't forget."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import dinounet
from dinounet.data.dataset import read_dataset
from dinounet.data.layouts import Case
from dinounet.data.masks import read_truth
from dinounet.data.splits import group_cases, hold_out
from dinounet.errors import ConfigError, DataError
from dinounet.planning.data_plan import plan_data
from dinounet.schema.labels import parse_labels
from dinounet.schema.metrics import Metrics

LABELS = "background=0,liver=1,tumour=2"


def notes_of(verb: Callable[[], Any]) -> list[str]:
    """What a verb tells beside its result."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        verb()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    return [line["text"] for line in lines if line["event"] == "note"]


def numbers() -> np.ndarray:
    """A mask (Z, Y, X) of a liver, 1, beside a smaller tumour, 2."""
    mask = np.zeros((2, 16, 20), np.uint8)
    mask[:, 2:9, 3:10] = 1
    mask[:, 11:14, 12:17] = 2
    return mask


def write_segments(path: Path, mask: np.ndarray, **values: int) -> None:
    """As 3D Slicer does: each segment's name and number in the header."""
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(mask)
    for index, (name, value) in enumerate(values.items()):
        for key, content in (("Name", name), ("LabelValue", str(value)), ("Layer", "0")):
            image.SetMetaData(f"Segment{index}_{key}", content)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def drawn_in_two_orders(tmp_path: Path) -> Path:
    """Segmentations of Slicer in which one number is the liver here and the tumour there."""
    write_segments(tmp_path / "masks" / "a.seg.nrrd", numbers(), liver=1, tumour=2)
    swapped = np.array([0, 2, 1], np.uint8)[numbers()]
    write_segments(tmp_path / "masks" / "b.seg.nrrd", swapped, tumour=1, liver=2)
    return tmp_path / "masks"


def test_relabel_goes_by_the_names_of_segments(drawn_in_two_orders: Path, tmp_path: Path) -> None:
    copies = dinounet.relabel(drawn_in_two_orders, tmp_path / "clean", labels=LABELS)
    assert [path.name for path in copies] == ["a.seg.nrrd", "b.seg.nrrd"]
    for path in copies:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), numbers())


def test_relabel_takes_no_number_for_a_class_that_is_another_one_elsewhere(
    drawn_in_two_orders: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"segments liver, tumour, whose numbers differ from file to file"):
        dinounet.relabel(drawn_in_two_orders, tmp_path / "clean", labels="background=0,organ=1,lesion=2")
    assert not (tmp_path / "clean").exists()


COLOURS = "background=#000000,square=#00ff00,disc=#ff0000"
PAINTED = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[numbers()[0]]


def save_pictures(folder: Path, **masks: np.ndarray) -> None:
    """Images with these masks."""
    for index, (case, mask) in enumerate(masks.items()):
        image = np.random.default_rng(index).integers(0, 255, mask.shape[:2]).astype(np.uint8)
        for kind, pixels in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{case}.png")


def test_numbers_beside_colours_are_no_classes_by_the_order_of_the_labels(tmp_path: Path) -> None:
    save_pictures(tmp_path, a=PAINTED, b=numbers()[0], c=PAINTED, d=numbers()[0])
    told = r"b\.png, \S*d\.png hold numbers \(0, 1, 2\), but the labels are colours .* paint the masks in these"
    with pytest.raises(DataError, match=told):
        plan_data(read_dataset(tmp_path, parse_labels(COLOURS)), (16, 16))


def test_predictions_may_hold_numbers_beside_colours_and_the_truth_may_not(tmp_path: Path) -> None:
    ours = np.array([0, 2, 1], np.uint8)[numbers()[0]]  # square is 1, disc 2
    save_pictures(tmp_path / "found", a=ours)
    save_pictures(tmp_path / "truth", a=PAINTED)
    truth = tmp_path / "truth" / "masks"
    found = dinounet.evaluate(tmp_path / "found" / "masks", truth, labels=COLOURS)
    assert [found.cases[0].classes[name].dice for name in ("square", "disc")] == [1.0, 1.0]
    Image.fromarray(numbers()[0]).save(truth / "a.png")
    with pytest.raises(DataError, match=r"truth/masks/a\.png holds numbers \(0, 1, 2\)"):
        dinounet.evaluate(tmp_path / "found" / "masks", truth, labels=COLOURS)


@pytest.mark.parametrize(
    ("labels", "grey", "classes"),
    [
        (COLOURS, [0, 0, 0], [0, 0, 0]),
        ("background=#000000,lesion=#ffffff", [0, 255, 0], [0, 1, 0]),
        ("background=#000000,lesion=#ffffff", [0, 1, 0], [0, 1, 0]),
        ("background=#ffffff,lesion=#000000", [255, 0, 255], [0, 1, 0]),
        ("background=#000000,bone=#808080,skin=#ff0000", [0, 128, 0], [0, 1, 0]),
    ],
)
def test_grey_that_is_a_colour_is_its_class(labels: str, grey: list[int], classes: list[int], tmp_path: Path) -> None:
    levels = np.array(grey, np.uint8)
    save_pictures(tmp_path, a=levels[numbers()[0]])
    dataset = read_dataset(tmp_path, parse_labels(labels))
    truth = read_truth(dataset.cases[0], dataset.labels)
    np.testing.assert_array_equal(truth.array[0], np.array(classes)[numbers()[0]])


def test_palettes_that_contradict_each_other_are_told_by_relabel_and_evaluate(tmp_path: Path) -> None:
    red, green = (255, 0, 0), (0, 255, 0)
    for folder, colours in (("masks", (red, green)), ("others", (green, red))):
        (tmp_path / folder).mkdir()
        image = Image.fromarray(numbers()[0])
        image.putpalette([0, 0, 0, *colours[0], *colours[1]])
        image.save(tmp_path / folder / "a.png")
    (tmp_path / "others" / "a.png").rename(tmp_path / "masks" / "b.png")
    clean = tmp_path / "clean"
    (told,) = notes_of(lambda: dinounet.relabel(tmp_path / "masks", clean, labels=LABELS))
    assert "a.png shows the number 1 as #ff0000, and" in told
    assert "b.png as #00ff00: palettes differ, and the numbers count" in told
    (told,) = notes_of(lambda: dinounet.evaluate(clean, tmp_path / "masks", labels=LABELS))
    assert "a.png shows the number 1 as #ff0000, and" in told


def test_evaluate_takes_groups_as_plan_does(tmp_path: Path) -> None:
    for folder in ("truth", "found"):
        (tmp_path / folder).mkdir()
        for case in "abc":
            Image.fromarray(numbers()[0]).save(tmp_path / folder / f"{case}.png")
    table = tmp_path / "groups.csv"
    table.write_text("case,group\na,P1\nb,p1\nc,P2\n")
    found: list[Metrics] = []

    def evaluate() -> None:
        found.append(dinounet.evaluate(tmp_path / "found", tmp_path / "truth", labels=LABELS, by="group", groups=table))

    (told,) = notes_of(evaluate)
    assert "'P1' and 'p1'" in told
    assert [(group.case, group.pooled) for group in found[0].groups] == [("P1", ("a", "b")), ("P2", ("c",))]


def test_a_mask_with_its_axes_in_another_order_is_no_mask_of_another_size(tmp_path: Path) -> None:
    for folder, axes in (("truth", (0, 1, 2)), ("found", (2, 0, 1))):
        (tmp_path / folder).mkdir()
        stored = sitk.PermuteAxes(sitk.GetImageFromArray(numbers()), axes)
        sitk.WriteImage(stored, str(tmp_path / folder / "a.nii.gz"))
    with pytest.raises(DataError, match="store the axes of both in one order"):
        dinounet.evaluate(tmp_path / "found", tmp_path / "truth", labels=LABELS)


def test_evaluate_says_that_a_folder_is_missing(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    Image.fromarray(numbers()[0]).save(tmp_path / "truth" / "a.png")
    with pytest.raises(DataError, match="found is not a folder"):
        dinounet.evaluate(tmp_path / "found", tmp_path / "truth")


def test_a_table_that_tears_a_patient_apart_is_told(tmp_path: Path) -> None:
    names = ["sub-1_ses-a_T1w", "sub-1_ses-b_T1w", "sub-2_T1w", "sub-3_T1w"]
    rows = []
    for index, name in enumerate(names):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(numbers()[0] + (index * 16 if folder == "images" else 0)).save(
                tmp_path / folder / f"{name}.png"
            )
        rows.append(f"images/{name}.png,masks/{name}.png,group {index}")
    (tmp_path / "table.csv").write_text("image,mask,group\n" + "\n".join(rows))
    cases = read_dataset(tmp_path / "table.csv").cases
    (told,) = group_cases(cases).remarks
    assert "sub-1_ses-a_T1w and sub-1_ses-b_T1w; a patient may be on both sides" in told


def test_a_patients_number_holds_nobody_out(tmp_path: Path) -> None:
    cases = [
        Case(name, (), None, group) for name, group in zip("abcd", ("patient 1",) * 2 + ("patient 2",) * 2, strict=True)
    ]
    with pytest.raises(ConfigError, match=r"patient 1, a number that may be another patient's .*: a, b\)"):
        hold_out(cases, ["patient 1"], "patient")
    with pytest.raises(ConfigError, match=r"it leaves b \(name these too\)"):
        hold_out(cases, ["a"], "patient")
    assert [case.name for case in hold_out(cases, ["a", "b"], "patient")[1]] == ["a", "b"]
    assert [case.name for case in hold_out(cases, ["patient 1"])[1]] == ["a", "b"]  # as a table has it
