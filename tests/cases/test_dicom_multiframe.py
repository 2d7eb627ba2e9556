"""Objects of several frames are sorted, checked and rescaled frame by frame, as series of files are."""

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_objects import item, make_image, write_ct, write_frames, write_image
from pydicom.pixels import apply_modality_lut
from pydicom.uid import HTJ2KLossless, RLELossless, generate_uid

from dinounet.data.formats.dicom_seg import read_segmentation, write_segmentation
from dinounet.data.images import read_image
from dinounet.errors import DataError

PLANES = np.add.outer(10 * np.arange(6), np.arange(8 * 9).reshape(8, 9)).astype(np.int16)
"""(Z, Y, X); plane z lies at 3 z mm and holds 10 z more than the first."""

PLACES = np.array([[-5.0, 7.0, 3.0 * z] for z in range(6)])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [0, 2, 4, 1, 3, 5], [5, 4, 3, 2, 1, 0]])
def test_frames_are_sorted_by_place(order: list[int], tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a" / "1.dcm", PLANES[order], PLACES[order])
    image = read_image([folder])
    np.testing.assert_array_equal(image.array[0], PLANES)
    assert image.geometry.spacing == pytest.approx((0.7, 0.8, 3))
    assert image.geometry.origin == pytest.approx((-5, 7, 0))
    assert image.modality == "CT"


def test_a_segmentation_keeps_the_order_of_the_frames(tmp_path: Path) -> None:
    order = [0, 2, 4, 1, 3, 5]
    series = write_frames(
        tmp_path / "a" / "1.dcm", PLANES[order], PLACES[order],
        PositionReferenceIndicator="", StudyInstanceUID=generate_uid(), SeriesNumber=1, InstanceNumber=1,
    )  # fmt: skip
    labels = np.zeros(PLANES.shape, np.uint8)
    labels[1, 2:4, 2:5] = 1
    labels[4, 3:8, 1:5] = 2
    write_segmentation(tmp_path / "mask.dcm", labels, series, {"background": 0, "x": 1, "y": 2}, "1")
    content = highdicom.seg.segread(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(content.get_volume(combine_segments=True).array, labels[::-1])  # its own direction
    for frame in content.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0].ImagePositionPatient[2]
        assert place in PLACES[:, 2]
    found = read_segmentation(tmp_path / "mask.dcm")
    np.testing.assert_array_equal(found.labels, labels)
    assert found.geometry.origin == pytest.approx((-5, 7, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"lacks slices or has them at uneven distances: frame 3 of 1\.dcm and frame 4 of 1\.dcm are 6 mm"),
        ("two phases", r"holds two slices at one place \(frame 1 of 1\.dcm and frame 4 of 1\.dcm\)"),
        ("sheared", "slices that are shifted against each other, as a tilted gantry does"),
        ("turned", r"frame 3 of 1\.dcm lies in another direction or spacing than frame 1 of 1\.dcm"),
        ("zoomed", r"frame 3 of 1\.dcm lies in another direction or spacing than frame 1 of 1\.dcm"),
        ("cut", "lacks 100 bytes of its pixels; get the file again"),
        ("short", "lacks 40 bytes of its pixels; get the file again"),
        ("undescribed", "has 6 frames but describes 5"),
        ("compressed", "is compressed by High-Throughput JPEG 2000 .*, which isn't read here; export it uncompressed"),
        ("pixels", "is a DICOM image without pixels; export it with them, or remove it"),
        ("fractions", r"holds its pixels as fractions \(a parametric map\); convert it, such as to \.nii\.gz"),
    ],
)
def test_frames_that_make_no_volume_are_refused_as_slices_are(change: str, message: str, tmp_path: Path) -> None:
    places, planes = PLACES.copy(), PLANES
    if change == "missing":
        places, planes = np.delete(places, 3, axis=0), np.delete(planes, 3, axis=0)
    elif change == "two phases":
        places[3:] = places[:3]
    elif change == "sheared":
        places[:, 1] += np.arange(6)
    path = tmp_path / "a" / "1.dcm"
    folder = write_frames(path, planes, places)
    content = pydicom.dcmread(path)
    third = content.PerFrameFunctionalGroupsSequence[2]
    if change == "turned":
        third.PlaneOrientationSequence = item(ImageOrientationPatient=[0, 1, 0, -1, 0, 0])
    elif change == "zoomed":
        third.PixelMeasuresSequence = item(PixelSpacing=[0.4, 0.35], SliceThickness=3)
    elif change == "undescribed":
        del content.PerFrameFunctionalGroupsSequence[5]
    elif change == "short":  # the file is whole, and its pixels don't fill the frames
        content.PixelData = content.PixelData[:-40]
    elif change == "compressed":
        content.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" + bytes(10)] * 6)
        content.file_meta.TransferSyntaxUID = HTJ2KLossless
    elif change in ("pixels", "fractions"):
        del content.PixelData
        if change == "fractions":
            content.FloatPixelData = np.zeros(PLANES.shape, np.float32).tobytes()
            content.BitsAllocated = 32
    content.save_as(path)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=message):
        read_image([folder])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("slopes", "dtype"),
    [
        ([(z + 1, 0) for z in range(6)], np.int16),
        ([(0.25 * (z + 1), -7.5) for z in range(6)], np.float32),
        ([(1000, -100000)] * 6, np.float32),
    ],
)
def test_each_frame_has_its_own_slope(slopes: Any, dtype: type, compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a" / "1.dcm"
    planes = PLANES.astype(np.uint16)
    folder = write_frames(path, planes, PLACES, "ENHANCED MR", slopes)
    content = pydicom.dcmread(path)
    if compressed:
        content.compress(RLELossless)
        content.save_as(path)
    image = read_image([folder])
    frames = content.PerFrameFunctionalGroupsSequence
    expected = [
        apply_modality_lut(plane, one.PixelValueTransformationSequence[0])
        for plane, one in zip(planes, frames, strict=True)
    ]
    np.testing.assert_allclose(image.array[0], expected, rtol=1e-6)
    assert (image.array.dtype, image.modality) == (dtype, "MR")


@pytest.mark.parametrize(
    "kind",
    [
        "1.2",
        "1.4",
        "1.128",
        "1.20",
        "1.1.1",
        "1.6.1",
        "1.7",
        "1.77.1.4.1",
        "1.12.2.1",
        "1.30",
        "1.77.1.8",
        "1.77.1.5.5",
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_values_of_every_kind_of_image_are_rescaled(kind: str, several: bool, tmp_path: Path) -> None:
    pixels = PLANES.astype(np.uint16) if several else PLANES[2].astype(np.uint16)
    made = make_image(pixels, "CT", RescaleSlope=2, RescaleIntercept=-5)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.{kind}"
    made.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_image([tmp_path]).array[0].squeeze(), apply_modality_lut(pixels, made))


def test_nuclear_medicine_and_dose_are_sorted_by_their_vectors(tmp_path: Path) -> None:
    first = {"ImagePositionPatient": [0, 0, 50], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    planes = PLANES.astype(np.uint16)
    nm = write_image(
        tmp_path / "nm" / "1.dcm", planes, "NM", PixelSpacing=[4, 4], SpacingBetweenSlices=-2.5, SliceThickness=2.5,
        SliceVector=[1, 2, 3, 4, 5, 6], DetectorInformationSequence=item(**first),
    )  # fmt: skip
    image = read_image([nm])
    np.testing.assert_array_equal(image.array[0], planes[::-1])
    assert image.geometry.spacing == pytest.approx((4, 4, 2.5))
    assert image.geometry.origin == pytest.approx((0, 0, 37.5))

    dose = write_image(
        tmp_path / "dose" / "1.dcm", planes, "RTDOSE", PixelSpacing=[2, 2], DoseGridScaling=0.5, **first,
        GridFrameOffsetVector=[50, 53, 56, 59, 62, 65],
    )  # fmt: skip
    image = read_image([dose])
    np.testing.assert_allclose(image.array[0], planes * 0.5)
    assert image.geometry.spacing == pytest.approx((2, 2, 3))
    assert image.geometry.origin == pytest.approx((0, 0, 50))


def test_one_series_may_be_cut_into_several_objects(tmp_path: Path) -> None:
    series = generate_uid()
    for part in (slice(3, 6), slice(0, 3)):
        write_frames(tmp_path / "a" / f"{part.start}.dcm", PLANES[part], PLACES[part], SeriesInstanceUID=series)
    np.testing.assert_array_equal(read_image([tmp_path / "a"]).array[0], PLANES)


def test_a_slide_in_tiles_is_no_stack(tmp_path: Path) -> None:
    folder = write_image(
        tmp_path / "a" / "1.dcm", PLANES.astype(np.uint8), "SM", TotalPixelMatrixColumns=27, TotalPixelMatrixRows=16
    )
    with pytest.raises(DataError, match=r"is a slide of 27 x 16 pixels in 6 tiles; convert it to a TIFF"):
        read_image([folder])


def test_images_without_place_are_no_volume(tmp_path: Path) -> None:
    series = generate_uid()
    for name in "ab":
        write_image(tmp_path / "a" / f"{name}.dcm", PLANES[0].astype(np.uint8), "US", SeriesInstanceUID=series)
    with pytest.raises(DataError, match=r"holds 2 images that don't tell their place, .*; give each a folder"):
        read_image([tmp_path / "a"])


OTHERS = {
    "Segmentation Storage": "66.4", "Label Map Segmentation Storage": "66.7", "Surface Segmentation Storage": "66.5",
    "RT Structure Set Storage": "481.3", "RT Plan Storage": "481.5", "Basic Text SR Storage": "88.11",
    "Grayscale Softcopy Presentation State Storage": "11.1", "Key Object Selection Document Storage": "88.59",
    "Encapsulated PDF Storage": "104.1", "Raw Data Storage": "66", "Spatial Registration Storage": "66.1",
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_objects_without_an_image_are_passed_over(name: str, tmp_path: Path) -> None:
    write_ct(tmp_path / "a", PLANES)
    for folder in ("a", "b"):
        other = make_image(PLANES[0], "CT")
        other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{OTHERS[name]}"
        (tmp_path / folder).mkdir(exist_ok=True)
        other.save_as(tmp_path / folder / "other.dcm")
    np.testing.assert_array_equal(read_image([tmp_path / "a"]).array[0], PLANES)
    with pytest.raises(DataError, match=rf"b holds no image, but DICOM objects of the kind {name}; give the folder"):
        read_image([tmp_path / "b"])


@pytest.mark.parametrize("kind", ["CT", "ENHANCED MR", "NM"])
def test_a_damaged_file_is_read_or_answered_by_a_sentence(kind: str, tmp_path: Path) -> None:
    planes = PLANES.astype(np.uint16)
    path = tmp_path / "a" / "1.dcm"
    if kind == "CT":
        write_ct(tmp_path / "whole", PLANES[:1])
        whole = (tmp_path / "whole" / "0.dcm").read_bytes()
    elif kind == "NM":
        first = {"ImagePositionPatient": [0, 0, 50], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        write_image(
            path, planes, "NM", PixelSpacing=[4, 4], SpacingBetweenSlices=2, SliceVector=[1, 2, 3, 4, 5, 6],
            DetectorInformationSequence=item(**first),
        )  # fmt: skip
        whole = path.read_bytes()
    else:
        write_frames(path, planes, PLACES, kind, [(z + 1, 0) for z in range(6)])
        whole = path.read_bytes()
    path.parent.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(132, len(whole), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_image([path.parent])
        except DataError:
            refused += 1
    assert 0 < refused < 60
