"""DICOM series, written here by pydicom with known numbers."""

import shutil
import sys
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

import dinounet
from datasets import picture
from dinounet.data.dataset import read_dataset
from dinounet.data.formats.dicom_seg import write_segmentation
from dinounet.data.geometry import require_same_grid
from dinounet.data.images import read_image
from dinounet.data.layouts import Case
from dinounet.data.masks import read_mask, read_truth
from dinounet.errors import ConfigError, DataError
from dinounet.inference.outputs import choose_endings
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from networks import planned

SLICES, ROWS, COLUMNS = 5, 40, 48
SPACING = (0.7, 0.8, 2.5)
"""x, y, z in mm."""

ORIGIN = (-10.5, 20.0, 100.0)


def write_series(folder: Path, array: np.ndarray, modality: str = "CT", **changes: Any) -> Path:
    """Write slices (Z, Y, X) as files in an order that isn't theirs, in an oblique direction (rows run along y)."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid()
    for k, pixels in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID = series, study
        one.Modality, one.PatientID, one.PatientName = modality, "x", "Doe^J"
        one.StudyDate = one.StudyTime = one.PatientBirthDate = one.PatientSex = one.AccessionNumber = ""
        one.ReferringPhysicianName = ""
        one.StudyID, one.SeriesNumber = "1", 1
        one.FrameOfReferenceUID = study
        one.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + SPACING[2] * k]
        one.ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
        one.PixelSpacing, one.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        one.Rows, one.Columns = pixels.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept = changes.get("slope", [1] * len(array))[k], -1024
        one.InstanceNumber = k + 1
        one.PixelData = pixels.astype(np.int16).tobytes()
        one.save_as(folder / f"{(k * 3) % 7:03d}", enforce_file_format=True)
    return folder


def sorted_files(folder: Path) -> list[Path]:
    """The files, by where their slices lie."""
    return sorted(folder.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])


def edit(path: Path, **changes: Any) -> None:
    content = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(content, name, value)
    content.save_as(path)


@pytest.fixture
def array() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 2000, (SLICES, ROWS, COLUMNS)).astype(np.int16)


@pytest.fixture
def series(array: np.ndarray, tmp_path: Path) -> Path:
    return write_series(tmp_path / "series", array)


def test_a_folder_is_one_image_in_its_own_units_and_place(series: Path, array: np.ndarray) -> None:
    (series / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (series / "readme.txt").write_text("by the scanner")
    image = read_image([series])
    np.testing.assert_array_equal(image.array[0], array - 1024)
    assert image.array.dtype == np.int16
    assert image.geometry.spacing == pytest.approx(SPACING)
    assert image.geometry.origin == pytest.approx(ORIGIN)
    # columns of the matrix are where x, y and z run: y, -x and z
    np.testing.assert_allclose(np.reshape(image.geometry.direction, (3, 3)), [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert image.modality == "CT"


def test_each_slice_has_its_own_slope(array: np.ndarray, tmp_path: Path) -> None:
    slopes = [1, 1, 0.5, 2, 0.25]
    image = read_image([write_series(tmp_path / "a", array, slope=slopes)])
    np.testing.assert_allclose(image.array[0], array * np.reshape(slopes, (-1, 1, 1)) - 1024)


def break_it(series: Path, what: str) -> None:
    files = sorted_files(series)
    if what == "two series":
        edit(files[0], SeriesInstanceUID=generate_uid())
    elif what == "gap":
        files[2].unlink()
    elif what == "double":
        shutil.copy(files[2], series / "again")
    elif what == "size":
        edit(files[1], Rows=ROWS // 2, PixelData=pydicom.dcmread(files[1]).PixelData[: ROWS * COLUMNS])
    elif what == "direction":
        edit(files[1], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    elif what == "tilt":
        for k, path in enumerate(files):
            edit(path, ImagePositionPatient=[ORIGIN[0] + k, ORIGIN[1], ORIGIN[2] + SPACING[2] * k])
    elif what == "truncated":
        files[3].write_bytes(files[3].read_bytes()[:-30])
    elif what == "no pixels":
        content = pydicom.dcmread(files[3])
        del content.PixelData
        content.save_as(files[3])
    elif what == "empty":
        for path in files:
            path.unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("two series", r"holds 2 DICOM series \(of .* files\); give each a folder of its own"),
        ("gap", r"lacks slices or has them at uneven distances: 003 and 002 are 5 mm apart, others 2\.5 mm"),
        ("double", r"holds two slices at one place \(.*again.*\)"),
        ("size", r"is 20 x 48 of 1 channels but|but .* is 20 x 48 of 1 channels; keep slices of one size"),
        ("direction", "lies in another direction or spacing than"),
        ("tilt", "slices that are shifted against each other, as a tilted gantry does"),
        ("truncated", r"lacks 30 bytes of its pixels; get the file again"),
        ("no pixels", r"is a DICOM image without pixels; export it with them, or remove it"),
        ("empty", r"is not an image in a known format \(.*or a folder of DICOM files\)"),
    ],
)
def test_what_is_no_regular_volume_is_answered(what: str, message: str, series: Path) -> None:
    break_it(series, what)
    with pytest.raises(DataError, match=message):
        read_image([series])


def write_dataset(root: Path, modalities: list[str]) -> Path:
    """Series with masks in NIfTI on their grid, as SimpleITK's own reader sees it."""
    (root / "masks").mkdir(parents=True)
    for index, modality in enumerate(modalities):
        slices = [picture((ROWS, COLUMNS), 10 * index + z) for z in range(SLICES)]
        folder = write_series(root / "images" / f"c{index}", np.stack([s[0] for s in slices]).astype(int), modality)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        mask = sitk.GetImageFromArray(np.stack([s[1] for s in slices]))
        mask.CopyInformation(reader.Execute())
        sitk.WriteImage(mask, str(root / "masks" / f"c{index}.nii.gz"))
    return root


@pytest.mark.parametrize(
    ("modalities", "name", "normalisation"),
    [(["CT", "CT"], "CT", "ct"), (["MR", "MR"], "MR", "zscore"), (["CT", "MR"], "channel 0", "zscore")],
)
def test_the_modality_names_the_channel(modalities: list[str], name: str, normalisation: str, tmp_path: Path) -> None:
    plan = plan_data(read_dataset(write_dataset(tmp_path / "data", modalities)))
    assert [(channel.name, channel.normalisation) for channel in plan.channels] == [(name, normalisation)]
    assert plan.slice_axis == 0
    assert plan.spacing == pytest.approx((0.8, 0.7))


def test_a_table_may_name_series(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", ["CT", "CT"])
    rows = "".join(f"images/c{index},masks/c{index}.nii.gz\n" for index in range(2))
    (data / "table.csv").write_text(f"image,mask\n{rows}")
    assert [case.images[0].name for case in read_dataset(data / "table.csv").cases] == ["c0", "c1"]
    (data / "table.csv").write_text("image,mask\nmasks,images/c0\n")
    with pytest.raises(DataError, match=r"names .*masks as image, which is a folder without DICOM files; .*c0 as mask"):
        read_dataset(data / "table.csv")


def test_a_single_file_is_answered_with_its_folder(series: Path) -> None:
    with pytest.raises(DataError, match="is a single DICOM file; give the folder that holds its series"):
        read_image([series / "000"])


def test_series_lie_in_folders_of_their_own(series: Path) -> None:
    root = series.parent
    (root / "masks").mkdir()
    series.rename(root / "images")
    with pytest.raises(DataError, match="holds DICOM files themselves; put each series into a folder of its own in it"):
        read_dataset(root)


@pytest.mark.slow
def test_a_series_is_trained_on_and_predicted_on_its_own_grid(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", ["CT", "CT"])
    plan = plan_data(read_dataset(data), (32, 32))
    write_json(tmp_path / "plan.json", Plan(plan, planned(num_classes=3), Recipe(steps=2, augmentation="none")))
    run = dinounet.train(data, tmp_path / "run", plan=tmp_path / "plan.json", weights="random", device="cpu")
    masks = dinounet.predict(run, [data / "images"], tmp_path / "all", format=".nii.gz")
    (mask,) = dinounet.predict(run, [data / "images" / "c1"], tmp_path / "one")
    assert [path.name for path in [*masks, mask]] == ["c0.nii.gz", "c1.nii.gz", "c1.dcm"]
    # NIfTI's axes point to the left and front's opposite: x and y change sign
    expected = np.diag([-1, -1, 1, 1]) @ [
        [0, -SPACING[1], 0, ORIGIN[0]], [SPACING[0], 0, 0, ORIGIN[1]], [0, 0, SPACING[2], ORIGIN[2]], [0, 0, 0, 1],
    ]  # fmt: skip
    nifti = nibabel.load(masks[1])
    np.testing.assert_allclose(nifti.affine, expected, atol=1e-5)
    dinounet.evaluate(tmp_path / "all", data / "masks")
    page = dinounet.report(tmp_path / "all", data / "masks", tmp_path / "r.html", images=data / "images", run=run)
    assert "c1" in page.read_text()

    # pydicom sees the same in the segmentation object
    content = pydicom.dcmread(mask)
    series = [pydicom.dcmread(path) for path in sorted_files(data / "images" / "c1")]
    labels = np.asarray(nifti.dataobj).T
    assert content.StudyInstanceUID == series[0].StudyInstanceUID
    assert [segment.SegmentLabel for segment in content.SegmentSequence] == ["class 1", "class 2"]
    for frame, pixels in zip(content.PerFrameFunctionalGroupsSequence, content.pixel_array, strict=True):
        segment = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        place = frame.PlanePositionSequence[0].ImagePositionPatient[2]
        slice = round((place - ORIGIN[2]) / SPACING[2])
        np.testing.assert_array_equal(pixels, labels[slice] == segment)
    known = dinounet.load(run).plan.data.labels
    again = read_mask(mask, known)
    np.testing.assert_array_equal(again.array, labels)
    require_same_grid(again, read_image([data / "images" / "c1"]))
    (data / "masks" / "c0.nii.gz").unlink()
    dinounet.evaluate(tmp_path / "one", data / "masks")  # formats may differ
    (tmp_path / "metrics").mkdir()
    other = dinounet.evaluate(tmp_path / "one", tmp_path / "one", tmp_path / "metrics" / "m.json")
    assert other.mean_over_cases_and_classes.dice == 1


def segment(series: Path, path: Path, labels: np.ndarray, names: list[str], **options: Any) -> None:
    """Write a segmentation object as another program would: without empty slices."""
    sources = [pydicom.dcmread(file) for file in sorted_files(series)]
    path.parent.mkdir(exist_ok=True)
    highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=labels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            highdicom.seg.SegmentDescription(
                number, name, codes.SCT.Tissue, codes.SCT.Tissue, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
            )
            for number, name in enumerate(names, start=1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="x",
        device_serial_number="x",
        **options,
    ).save_as(path)


def test_segmentations_of_other_programs_are_learned_from(array: np.ndarray, tmp_path: Path) -> None:
    truths = []
    for index, names in enumerate((["tumour", "organ"], ["organ", "tumour"])):  # each in its own order
        series = write_series(tmp_path / "data" / "images" / f"c{index}", array)
        truth = np.zeros(array.shape, np.uint8)
        truth[1, 5:9, 5:30] = 1
        truth[3, 20 + index :, 20:] = 2
        segment(series, tmp_path / "data" / "masks" / f"c{index}.dcm", truth, names)
        truths.append(truth)
    dataset = read_dataset(tmp_path / "data")
    assert dataset.labels.classes == {"background": 0, "organ": 1, "tumour": 2}
    swapped = np.array([0, 2, 1])[truths[0]]
    np.testing.assert_array_equal(read_truth(dataset.cases[0], dataset.labels).array, swapped)
    np.testing.assert_array_equal(read_truth(dataset.cases[1], dataset.labels).array, truths[1])
    pixels = plan_data(dataset).fingerprint.label_pixels
    assert pixels["tumour"] == (truths[0] == 1).sum() + (truths[1] == 2).sum()
    for index, truth in enumerate((swapped, truths[1])):
        mask = sitk.GetImageFromArray(truth)
        grid = read_image([tmp_path / "data" / "images" / f"c{index}"]).geometry
        mask.SetSpacing(grid.spacing), mask.SetOrigin(grid.origin), mask.SetDirection(grid.direction)
        (tmp_path / "out").mkdir(exist_ok=True)
        sitk.WriteImage(mask, str(tmp_path / "out" / f"c{index}.nrrd"))
    labels = "background=0,organ=1,tumour=2"
    metrics = dinounet.evaluate(tmp_path / "out", tmp_path / "data" / "masks", labels=labels)
    assert metrics.mean_over_cases_and_classes.dice == 1
    with pytest.raises(DataError, match=r"c0\.dcm has the segments tumour, organ, but the labels are .*name these"):
        plan_data(read_dataset(tmp_path / "data", {"background": 0, "organ": 1}))
    (tmp_path / "data" / "masks" / "c1.dcm").write_bytes(b"\0" * 128 + b"DICM nothing")
    with pytest.raises(DataError, match=r"c1\.dcm is no DICOM segmentation"):
        read_dataset(tmp_path / "data")


def test_a_series_that_does_not_tell_its_frame_of_reference_gets_no_segmentation(
    series: Path, array: np.ndarray, tmp_path: Path
) -> None:
    for path in sorted_files(series):
        content = pydicom.dcmread(path)
        del content.FrameOfReferenceUID, content.PatientBirthDate  # the latter may be empty
        content.save_as(path)
    with pytest.raises(DataError, match=r"series lacks .* \(.*Frame Of Reference.*such as --format \.nii\.gz"):
        write_segmentation(tmp_path / "a.dcm", array % 2, series, {"background": 0, "x": 1}, "1")


def test_without_highdicom_one_sentence_tells_both_ways(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case("a", (series,))]
    assert choose_endings(cases, None, 1) == {"a": ".dcm"}
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ConfigError, match=r'pip install "dinounet\[dicom\]"; or choose another .* --format \.nii\.gz'):
        choose_endings(cases, None, 1)
    assert choose_endings(cases, ".nrrd", 1) == {"a": ".nrrd"}
    with pytest.raises(ConfigError, match=r"--format is \.png; masks of every size and place can be \.nii\.gz"):
        choose_endings(cases, ".png", 1)
    with pytest.raises(ConfigError, match=r"is for DICOM series only, but there is b\.png"):
        choose_endings([*cases, Case("b", (Path("b.png"),))], ".dcm", 1)


def test_a_cache_notices_that_a_slice_has_changed(tmp_path: Path) -> None:
    from dinounet.data.cache import build_cache

    dataset = read_dataset(write_dataset(tmp_path / "data", ["CT", "CT"]))
    plan = plan_data(dataset)
    before = [case.folder.name for case in build_cache(dataset.cases, plan, tmp_path / "cache")]
    edit(sorted_files(dataset.cases[0].images[0])[0], RescaleIntercept=-1000)
    after = [case.folder.name for case in build_cache(dataset.cases, plan, tmp_path / "cache")]
    assert (before[0] != after[0], before[1] == after[1]) == (True, True)
