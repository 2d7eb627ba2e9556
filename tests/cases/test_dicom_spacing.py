"""The size of a DICOM image's pixels is what its kind's attributes say (PS3.3, 10.7.1.3), and never made up."""

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from dicom_objects import item, write_image
from PIL import Image
from pydicom.sequence import Sequence

import dinounet
from dinounet.cli.main import main
from dinounet.data.geometry import require_same_grid
from dinounet.data.images import read_image, write_mask
from dinounet.data.layouts import Case
from dinounet.errors import ConfigError, DataError
from dinounet.inference.outputs import choose_endings
from dinounet.io import read_json, write_json
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from networks import planned
from untrained import write_run

PIXELS = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48)
SPACED = {"PixelSpacing": [0.15, 0.16]}
IMAGER = {"ImagerPixelSpacing": [0.2, 0.21]}
SAME = {"PixelSpacing": [0.2, 0.21]}
FILM = {"NominalScannedPixelSpacing": [0.1, 0.11]}
PLACE = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}


def region(delta: float, unit: int = 3, form: int = 1) -> Any:
    (one,) = item(
        RegionSpatialFormat=form, RegionDataType=1, RegionLocationMinX0=0, RegionLocationMinY0=0,
        RegionLocationMaxX1=20, RegionLocationMaxY1=20, PhysicalUnitsXDirection=unit, PhysicalUnitsYDirection=unit,
        PhysicalDeltaX=delta, PhysicalDeltaY=-1.5 * delta,
    )  # fmt: skip
    return one


def regions(*ones: Any) -> dict[str, Any]:
    return {"SequenceOfUltrasoundRegions": Sequence(ones)}


MM, DETECTOR = "mm", "mm at the detector"


@pytest.mark.parametrize(
    ("kind", "attributes", "spacing", "unit"),
    [
        *((kind, {}, None, "") for kind in ("CR", "DX", "MG", "XA", "RF", "US", "SC", "OP", "CT", "PT")),
        *((kind, SPACED, (0.16, 0.15), MM) for kind in ("CR", "DX", "MG", "XA", "RF", "US", "SC", "OP", "CT", "PT")),
        *((kind, IMAGER, (0.21, 0.2), DETECTOR) for kind in ("CR", "DX", "MG", "XA", "RF")),
        *((kind, IMAGER, None, "") for kind in ("CT", "US", "SC", "OP")),  # which don't define it
        *((kind, SPACED | IMAGER, (0.16, 0.15), MM) for kind in ("CR", "DX", "MG", "XA", "RF")),
        *((kind, SAME | IMAGER, (0.21, 0.2), DETECTOR) for kind in ("CR", "DX", "MG", "XA", "RF")),
        ("DX", SAME | IMAGER | {"PixelSpacingCalibrationType": "GEOMETRY"}, (0.21, 0.2), MM),
        ("SC", FILM, (0.11, 0.1), DETECTOR),
        ("SC", FILM | SPACED, (0.16, 0.15), MM),
        ("DX", FILM, None, ""),
        ("OP", FILM, None, ""),
        ("US", regions(region(0.02)), (0.2, 0.3), MM),
        ("US", regions(region(0.02), region(0.02)), (0.2, 0.3), MM),
        ("US", regions(region(0.02), region(0.01)), None, ""),
        ("US", regions(region(0.02), region(0.5, unit=4, form=2)), (0.2, 0.3), MM),  # a plane above a curve over time
        ("US", regions(region(0.5, unit=4, form=2)), None, ""),
        ("US", regions(region(0.02)) | SPACED, (0.2, 0.3), MM),
        ("CT", {"PixelSpacing": [0, 0]}, None, ""),
        ("DX", SPACED | PLACE, (0.16, 0.15), MM),
        ("CT", PLACE | {"SliceThickness": 5}, None, ""),
        ("CT", SPACED | PLACE | {"SliceThickness": 5, "SpacingBetweenSlices": 4}, (0.16, 0.15, 5.0), MM),
        ("CT", SPACED | PLACE | {"SpacingBetweenSlices": 4}, (0.16, 0.15, 4.0), MM),
        ("CT", SPACED | PLACE, (0.16, 0.15), MM),
    ],
)
def test_spacing_is_what_the_kind_of_image_defines(
    kind: str, attributes: dict[str, Any], spacing: tuple[float, ...] | None, unit: str, tmp_path: Path
) -> None:
    image = read_image([write_image(tmp_path / "a" / "1.dcm", PIXELS, kind, **attributes)])
    np.testing.assert_array_equal(image.array[0, 0], PIXELS)
    if spacing is None:
        assert image.geometry is None
    else:
        assert image.geometry.spacing == pytest.approx(spacing)
        assert image.geometry.unit == unit


def test_a_film_of_frames_has_no_depth(tmp_path: Path) -> None:
    frames = np.stack([(PIXELS // 8).astype(np.uint8)] * 3)
    image = read_image([write_image(tmp_path / "a" / "1.dcm", frames, "US CINE", **SPACED)])
    np.testing.assert_array_equal(image.array[0], frames)
    assert image.geometry is None


@pytest.mark.parametrize("tags", [SPACED, SPACED | PLACE])
def test_an_x_ray_lies_wherever_its_mask_does(tags: dict[str, Any], tmp_path: Path) -> None:
    image = read_image([write_image(tmp_path / "a" / "1.dcm", PIXELS, "DX", **tags)])
    for name, affine in {
        "nibabel": np.diag([0.16, 0.15, 1, 1]), "itk": np.diag([-0.16, -0.15, 1, 1]),
        "far": np.array([[0.16, 0, 0, 90], [0, 0, 1, 7], [0, 0.15, 0, -3], [0, 0, 0, 1]]),
    }.items():  # fmt: skip
        nibabel.save(nibabel.Nifti1Image(PIXELS.T[..., None].astype(np.uint8), affine), tmp_path / f"{name}.nii")
        require_same_grid(read_image([tmp_path / f"{name}.nii"]), image)
    nibabel.save(nibabel.Nifti1Image(PIXELS.T[..., None].astype(np.uint8), np.eye(4)), tmp_path / "other.nii")
    with pytest.raises(DataError, match="differ in spacing"):
        require_same_grid(read_image([tmp_path / "other.nii"]), image)


def test_a_film_gets_a_mask_in_a_format_that_can_hold_it(tmp_path: Path) -> None:
    frames = np.stack([(PIXELS // 8).astype(np.uint8)] * 3)
    film = write_image(tmp_path / "film" / "1.dcm", frames, "US CINE")
    still = write_image(tmp_path / "still" / "1.dcm", frames[0], "US")
    cases = [Case(path.name, (path,)) for path in (film, still)]
    assert choose_endings(cases, None, 1) == {"film": ".tif", "still": ".dcm"}
    with pytest.raises(ConfigError, match=r"--format is \.dcm, but film are frames that have no position"):
        choose_endings(cases, ".dcm", 1)
    labels = (frames > 100).astype(np.uint8)
    write_mask(tmp_path / "film.tif", labels, read_image([film]))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "film.tif"), labels)


def write_x_rays(root: Path, tags: list[dict[str, Any]]) -> Path:
    """A rectangle each, with masks in PNG."""
    (root / "masks").mkdir(parents=True)
    for seed, attributes in enumerate(tags):
        random = np.random.default_rng(seed)
        mask = np.zeros((64, 64), np.uint8)
        y, x = random.integers(8, 30, 2)
        mask[y : y + 24, x : x + 20] = 1
        pixels = (random.normal(900, 100, mask.shape) + 1500.0 * mask).astype(np.uint16)
        write_image(root / "images" / f"c{seed}" / "1.dcm", pixels, "DX", **attributes)
        Image.fromarray(mask).save(root / "masks" / f"c{seed}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tags", "told", "unit", "area"),
    [
        ([IMAGER, IMAGER], "0.2 x 0.21 mm at the detector", "mm at the detector", "mm2 at the detector"),
        ([SPACED, IMAGER, {}], "0.175 x 0.185 mm, at the detector in 1 of 3 cases; unknown in 1", "px", "px"),
    ],
)
def test_lengths_have_their_unit_in_plan_metrics_and_report(
    tags: list[dict[str, Any]], told: str, unit: str, area: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    x_rays = write_x_rays(tmp_path / "data", tags)
    data = dinounet.plan(x_rays, network="unet", patch=(32, 32), device="cpu").data
    assert f"median spacing {told}" in in_one_line(capsys)
    assert data.fingerprint.cases_at_the_detector == tags.count(IMAGER)
    assert (data.spacing is None) == ({} in tags)

    write_json(tmp_path / "plan.json", Plan(data, planned(num_classes=2), Recipe(steps=1, augmentation="none")))
    run = dinounet.train(
        x_rays, tmp_path / "run", plan=tmp_path / "plan.json", weights="random", fold="all", device="cpu"
    )
    cases = read_json(run / "training" / "metrics.json", what="metrics")["cases"]
    assert [(case["unit"], case["volume_unit"]) for case in cases] == [(unit, area)] * len(tags)
    page = (run / "report.html").read_text()
    assert f"HD95 ({unit})" in page and f"volume ({area})" in page

    if {} not in tags:
        return
    last = f"c{len(tags) - 1}"
    (mask,) = dinounet.predict(run, [x_rays / "images" / last], tmp_path / "masks", uncertainty=True)
    assert mask.name == f"{last}.dcm"
    entropy = nibabel.load(tmp_path / "masks" / "uncertainty" / f"{last}_entropy.nii.gz")
    assert entropy.shape[:2] == (64, 64)


@pytest.mark.slow
def test_lengths_stay_at_the_detector_where_the_truth_s_format_has_no_word_for_it(tmp_path: Path) -> None:
    """From the images that were predicted to `evaluate`, `report` and `compare`, of one image later too."""
    x_rays, truth = write_x_rays(tmp_path / "data", [IMAGER, IMAGER, SPACED]), tmp_path / "truth"
    data = dinounet.plan(x_rays, network="unet", patch=(32, 32), device="cpu").data
    write_run(tmp_path / "run", data)
    truth.mkdir()
    pixels = {}
    for index, spacing in enumerate([(0.21, 0.2), (0.21, 0.2), (0.16, 0.15)]):
        mask = np.asarray(Image.open(x_rays / "masks" / f"c{index}.png"))
        pixels[f"c{index}"] = nibabel.Nifti1Image(mask.T[..., None], np.diag([*spacing, 1, 1]))

    masks = tmp_path / "masks"
    for name in ("c0", "c1"):
        dinounet.predict(tmp_path / "run", [x_rays / "images" / name], masks, tta="none")
        nibabel.save(pixels[name], truth / f"{name}.nii.gz")
    found = dinounet.evaluate(masks, truth)
    assert (found.unit, found.volume_unit) == (DETECTOR, "mm2 at the detector")
    words = ["report", masks, truth, "--images", x_rays / "images", "-o", tmp_path / "report.html"]
    assert main([str(word) for word in words]) == 0
    page = (tmp_path / "report.html").read_text()
    assert f"HD95 ({DETECTOR})" in page and "volume (mm2 at the detector)" in page
    shutil.copytree(masks, tmp_path / "others")
    (tmp_path / "others" / "prediction.json").unlink()  # masks of someone else's, which tell nothing
    compared = dinounet.compare([tmp_path / "others", masks], truth, labels="background=0,foreground=1")
    assert (compared.unit, compared.volume_unit) == (DETECTOR, "mm2 at the detector")

    dinounet.predict(tmp_path / "run", [x_rays / "images" / "c2"], tmp_path / "calibrated", tta="none")
    for path in truth.iterdir():
        path.unlink()
    nibabel.save(pixels["c2"], truth / "c2.nii.gz")
    assert dinounet.evaluate(tmp_path / "calibrated", truth).unit == MM


def in_one_line(capsys: pytest.CaptureFixture) -> str:
    """What was printed, without the table's lines."""
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({}, "median spacing unknown channel"),
        (regions(region(0.02), region(0.01)), "median spacing unknown (ultrasound regions of several spacings: a; b)"),
    ],
)
@pytest.mark.slow
def test_plan_prints_what_is_known(
    attributes: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in "ab":
        write_image(tmp_path / "images" / name / "1.dcm", PIXELS, "US", **attributes)
    (tmp_path / "masks").mkdir()
    for name in "ab":
        Image.fromarray((PIXELS > 900).astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    main(["plan", str(tmp_path), "--network", "unet", "--patch", "32", "32", "--device", "cpu"])
    assert told in in_one_line(capsys)
