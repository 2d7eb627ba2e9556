"""DICOM segmentations of all types, written by highdicom, as training truth, as prediction, and beside their series."""

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_objects import make_image, write_ct, write_segments
from pydicom.dataset import Dataset

import dinounet
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.data.formats.dicom_seg import read_segmentation, write_segmentation
from dinounet.data.images import read_image
from dinounet.data.layouts import Case
from dinounet.data.masks import read_mask, read_truth
from dinounet.errors import DataError
from dinounet.planning.data_plan import plan_data
from dinounet.schema.labels import Labels

SHAPE = (6, 16, 18)
NAMES = ["organ", "tumour"]
KNOWN = {"background": 0, "organ": 1, "tumour": 2}


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, SHAPE).astype(np.int16)


def truth() -> np.ndarray:
    """Numbers of NAMES, with empty slices at both ends and between."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 2:9, 3:10] = 1
    labels[3, 4:12, 5:9] = 2
    labels[4, 4:8, 5:12] = 1
    return labels


@pytest.fixture
def series(tmp_path: Path) -> list[Dataset]:
    return write_ct(tmp_path / "data" / "images" / "a", picture())


def palette() -> Any:
    return highdicom.PaletteColorLUTTransformation.from_colors(
        ["black", "red", "blue"], palette_color_lut_uid=highdicom.UID()
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BINARY", {}),
        ("BINARY", {"omit_empty_frames": False}),
        ("LABELMAP", {}),
        ("LABELMAP", {"omit_empty_frames": False}),
        ("LABELMAP", {"palette_color_lut_transformation": palette}),
        ("FRACTIONAL", {"fractional_type": "OCCUPANCY"}),
    ],
)
def test_every_type_is_learned_from_by_its_names(
    kind: str, options: dict[str, Any], series: list[Dataset], tmp_path: Path
) -> None:
    options = {name: value() if callable(value) else value for name, value in options.items()}
    write_segments(tmp_path / "data" / "masks" / "a.dcm", series, truth(), NAMES, kind, **options)
    dataset = read_dataset(tmp_path / "data")
    assert dataset.labels.classes == KNOWN
    np.testing.assert_array_equal(read_truth(dataset.cases[0], dataset.labels).array, truth())
    counts = plan_data(dataset).fingerprint.label_pixels
    assert counts == {name: int((truth() == number).sum()) for name, number in KNOWN.items()}


def test_two_segments_of_one_name_are_one_class(series: list[Dataset], tmp_path: Path) -> None:
    write_segments(tmp_path / "data" / "masks" / "a.dcm", series, truth(), ["lesion", "lesion"])
    dataset = read_dataset(tmp_path / "data")
    np.testing.assert_array_equal(read_truth(dataset.cases[0], dataset.labels).array, truth() > 0)


def test_fractions_are_answered_with_a_command_that_works(
    series: list[Dataset], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "data"
    fractions = np.stack([(truth() == 1) * 0.8, (truth() == 2) * 0.6], axis=-1)
    fractions[1, 2, 3] = (0.6, 0.9)  # more of the second
    fractions[1, 3, 3] = (0.4, 0.3)  # of neither at least half
    write_segments(data / "masks" / "a.dcm", series, fractions, NAMES, "FRACTIONAL")
    write_ct(data / "images" / "b", picture(1))
    write_segments(
        data / "masks" / "b.dcm", [pydicom.dcmread(path) for path in sorted((data / "images" / "b").iterdir())],
        fractions, NAMES, "FRACTIONAL",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"a\.dcm, .*b\.dcm hold fractions, .* of organ, tumour; .*: dinounet relabel"):
        read_dataset(data)
    with pytest.raises(DataError, match=r"a\.dcm holds fractions") as refused:
        read_mask(data / "masks" / "a.dcm")
    assert "whole" not in str(refused.value)

    with pytest.raises(DataError) as refused:
        read_dataset(data)
    command = str(refused.value).partition("dinounet relabel ")[2].split()
    main(["relabel", *command])
    (data / "masks").rename(tmp_path / "fractions")
    (data / "masks_clean").rename(data / "masks")
    dataset = read_dataset(data)
    expected = truth()
    expected[1, 2, 3], expected[1, 3, 3] = 2, 0
    np.testing.assert_array_equal(read_truth(dataset.cases[0], dataset.labels).array, expected)
    content = highdicom.seg.segread(data / "masks" / "a.dcm")
    assert content.segmentation_type.value == "BINARY"
    volume = content.get_volume(combine_segments=True, allow_missing_positions=True)
    assert np.bincount(volume.array.ravel())[1:].tolist() == np.bincount(expected.ravel())[1:].tolist()


def test_segments_that_overlap_are_regions_where_one_lies_in_the_other(series: list[Dataset], tmp_path: Path) -> None:
    path = tmp_path / "data" / "masks" / "a.dcm"
    both = np.stack([truth() > 0, truth() == 2], axis=-1).astype(np.uint8)
    write_segments(path, series, both, NAMES)
    assert pydicom.dcmread(path).SegmentsOverlap == "YES"
    dataset = read_dataset(tmp_path / "data")
    inner, outer = NAMES[1], NAMES[0]
    assert [region.name for region in dataset.labels.regions] == [outer, inner]
    pixels = plan_data(dataset).fingerprint.label_pixels
    assert (pixels[f"{outer} alone"], pixels[inner]) == ((truth() == 1).sum(), (truth() == 2).sum())
    both[1, 2, 3] = 0, 1
    write_segments(path, series, both, NAMES)
    with pytest.raises(DataError, match=r"a\.dcm has \d+ voxels that are both .*, and neither lies in the other"):
        read_dataset(tmp_path / "data")


def test_a_mask_that_is_another_object_is_named(series: list[Dataset], tmp_path: Path) -> None:
    (tmp_path / "data" / "masks").mkdir()
    structures = make_image(picture()[0], "RTSTRUCT")
    structures.save_as(tmp_path / "data" / "masks" / "a.dcm")
    with pytest.raises(
        DataError, match=r"a\.dcm is a DICOM object of the kind RT Structure Set Storage and no DICOM seg"
    ):
        read_dataset(tmp_path / "data")


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_segmentation_beside_its_series_is_passed_over(kind: str, series: list[Dataset], tmp_path: Path) -> None:
    folder = tmp_path / "data" / "images" / "a"
    write_segments(folder / "zz.dcm", series, truth(), NAMES, kind)
    np.testing.assert_array_equal(read_image([folder]).array[0], picture())


def test_predictions_and_truths_may_leave_out_other_slices(series: list[Dataset], tmp_path: Path) -> None:
    predicted = np.zeros(SHAPE, np.uint8)
    predicted[0, 2:9, 3:10] = 1
    predicted[3] = truth()[3]
    write_segments(tmp_path / "truth" / "a.dcm", series, truth(), NAMES, "LABELMAP")
    write_segments(tmp_path / "found" / "a.dcm", series, predicted, NAMES)
    metrics = dinounet.evaluate(tmp_path / "found", tmp_path / "truth", labels="background=0,organ=1,tumour=2")
    (case,) = metrics.cases
    assert (case.classes["organ"].dice, case.classes["tumour"].dice) == (0, 1)
    voxels = int((predicted == 1).sum()) - int((truth() == 1).sum())
    assert case.classes["organ"].volume_difference == pytest.approx(voxels * 0.8 * 0.7 * 3 / 1000)


@pytest.mark.parametrize(
    "tags", [{}, {"PixelSpacing": [0.15, 0.16]}, {"ImagerPixelSpacing": [0.2, 0.2], "FrameOfReferenceUID": "1.2.3"}]
)
def test_an_x_rays_segmentation_is_read_without_a_place(tags: dict[str, Any], tmp_path: Path) -> None:
    labels = truth()[3:4] + np.eye(*SHAPE[1:], dtype=np.uint8)[None] * (truth()[3:4] == 0)
    x_ray = make_image(picture()[0].astype(np.uint16), "DX", **tags)
    (tmp_path / "a").mkdir()
    x_ray.save_as(tmp_path / "a" / "1.dcm")
    for path, kind in ((tmp_path / "theirs.dcm", "BINARY"), (tmp_path / "map.dcm", "LABELMAP")):
        write_segments(path, [x_ray], labels, NAMES, kind)
    write_segmentation(tmp_path / "ours.dcm", labels, tmp_path / "a", KNOWN, "1")
    for name in ("theirs", "map", "ours"):
        found = read_segmentation(tmp_path / f"{name}.dcm")
        np.testing.assert_array_equal(found.labels, labels)
        assert found.names == {1: "organ", 2: "tumour"}
        spacing = tags.get("PixelSpacing")
        assert found.geometry is None if spacing is None else found.geometry.spacing == pytest.approx((0.16, 0.15))
    case = Case("a", (tmp_path / "a",), tmp_path / "theirs.dcm")
    assert read_truth(case, Labels(KNOWN)).array.shape == labels.shape
