"""One notion of "the same grid": corners in voxels, spacings relative to themselves, and (H, W) is (H, W, 1)."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import dinounet
from dinounet.data.cache import build_cache
from dinounet.data.dataset import read_dataset
from dinounet.data.images import read_image, write_mask
from dinounet.errors import DataError
from dinounet.planning.data_plan import plan_data

FAR, FINE = (-900.0, -250.0, -1200.0), (0.4, 0.4, 1.0)


def disc(seed: int = 0, shape: tuple[int, ...] = (3, 32, 30)) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(shape, np.uint8)
    mask[..., 6:20, 8:20] = 1
    return (np.random.RandomState(seed).normal(50, 10, shape) + mask * 40).astype(np.float32), mask


def save(path: Path, array: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...] = (0, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


DISPLACED = {
    "far from the scanner's origin": (FINE, FAR, FINE, (-900.8, -250.0, -1201.0)),
    "a tenth of a millimetre, ten pixels": ((0.01, 0.01, 0.05), (120, -80, 30), (0.01, 0.01, 0.05), (120.1, -80, 30)),
    "micrometres in mm": ((0.0002, 0.0002, 0.0009), (0, 0, 0), (0.0009, 0.0009, 0.0009), (0, 0, 0)),
    "near the origin": (FINE, (0, 0, 0), FINE, (0.8, 0, 1.0)),
}


@pytest.fixture(params=DISPLACED)
def displaced(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Images, masks that lie elsewhere, and predictions and truths that do."""
    spacing, origin, other_spacing, other_origin = DISPLACED[request.param]
    ending = {"micrometres in mm": ".mha", "near the origin": ".nii.gz"}.get(request.param, ".nrrd")
    for seed, name in enumerate("ab"):
        image, mask = disc(seed)
        for folder, array in (("data/images", image), ("truth", mask)):
            save(tmp_path / folder / (name + ending), array, spacing, origin)
        for folder in ("data/masks", "predicted"):
            save(tmp_path / folder / (name + ending), mask, other_spacing, other_origin)
    return tmp_path


def test_a_displaced_mask_is_refused_wherever_two_grids_meet(displaced: Path, tmp_path: Path) -> None:
    predicted, truth, labels = displaced / "predicted", displaced / "truth", "background=0,disc=1"
    dataset = read_dataset(displaced / "data")
    right = [replace(case, mask=next(truth.glob(f"{case.name}.*"))) for case in dataset.cases]
    plan = plan_data(replace(dataset, cases=tuple(right)))
    for verb in (
        lambda: plan_data(dataset),
        lambda: build_cache(dataset.cases, plan, tmp_path / "cache"),
        lambda: dinounet.evaluate(predicted, truth, labels=labels),
        lambda: dinounet.compare([f"a={predicted}", f"b={truth}"], truth, labels=labels),
        lambda: read_image(sorted((displaced / "data").rglob("a.*"))),
    ):
        with pytest.raises(DataError, match=r"differ in (origin|spacing): .*; resample one onto the other's grid"):
            verb()


def test_numbers_rounded_to_single_precision_far_away_are_one_grid(tmp_path: Path) -> None:
    turn = np.deg2rad(17)
    affine = np.eye(4)
    affine[:2, :2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * 0.0123
    affine[2, 2], affine[:3, 3] = 0.05, (1234.56789, -987.654321, 555.55555)
    image, mask = disc()
    nibabel.save(nibabel.Nifti2Image(image.T, affine), tmp_path / "image.nii")
    nibabel.save(nibabel.Nifti1Image(mask.T, affine.astype(np.float32)), tmp_path / "mask.nii")
    read_image([tmp_path / "image.nii", tmp_path / "mask.nii"])


def test_spacings_written_with_four_digits_are_one_grid_as_long_as_the_corners_meet(tmp_path: Path) -> None:
    image, mask = disc()
    save(tmp_path / "a.nrrd", image, (0.703125, 0.703125, 1.25))
    save(tmp_path / "b.mha", mask, (0.7031, 0.7031, 1.25))
    assert len(read_image([tmp_path / "a.nrrd", tmp_path / "b.mha"]).array) == 2
    wide, shape = np.zeros((2, 4, 2000), np.uint8), (0.703125, 0.703125, 1.25)
    save(tmp_path / "c.nrrd", wide, shape)
    save(tmp_path / "d.nrrd", wide, (0.7029, *shape[1:]))  # by 0.03 %, but after 2000 columns that is 0.6 of one
    with pytest.raises(DataError, match=r"differ in spacing: .* by up to 0\.64 voxels"):
        read_image([tmp_path / "c.nrrd", tmp_path / "d.nrrd"])


def test_a_volume_that_tells_of_no_space_is_matched_by_its_shape(tmp_path: Path) -> None:
    image, mask = disc(shape=(32, 30))
    from PIL import Image

    Image.fromarray(mask).save(tmp_path / "mask.png")
    save(tmp_path / "image.mha", image, (0.4, 0.4), (900.0, 100.0))
    assert len(read_image([tmp_path / "image.mha", tmp_path / "mask.png"]).array) == 2


FLAT = {"image": (..., (..., None)), "mask": ((..., None), ...), "neither": (..., ...), "4d": ((..., None, None),) * 2}


@pytest.mark.parametrize("which", FLAT)
def test_a_flat_image_and_one_slice_are_one_grid(which: str, tmp_path: Path) -> None:
    affine, of_image, of_mask = np.diag([0.8, 0.8, 1, 1]), *FLAT[which]
    for seed, name in enumerate("abc"):
        image, mask = disc(seed, (32, 30))
        for folder, array, shape in (("images", image, of_image), ("masks", mask, of_mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array[shape], affine), tmp_path / folder / f"{name}.nii.gz")
    data = plan_data(read_dataset(tmp_path))
    assert data.fingerprint.label_pixels["background"] == 3 * (32 * 30 - 14 * 12)
    assert data.spacing == pytest.approx((0.8, 0.8))
    source = tmp_path / "images" / "a.nii.gz"
    write_mask(tmp_path / "out.nii.gz", np.ones((1, 30, 32), int), read_image([source]))
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.shape == nibabel.load(source).shape
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_flat_truth_and_a_prediction_of_one_slice_are_one_grid(ending: str, tmp_path: Path) -> None:
    _, mask = disc(shape=(32, 30))
    for name in "ab":
        save(tmp_path / "truth" / (name + ending), mask, (0.5, 0.5), (7, 8))
        save(tmp_path / "flat" / (name + ending), mask, (0.5, 0.5), (7, 8))
        save(tmp_path / "slice" / (name + ending), np.roll(mask, 2, 0)[None], (0.5, 0.5, 3.0), (7, 8, 9))
        save(tmp_path / "off" / (name + ending), mask[None], (0.5, 0.5, 3.0), (8, 8, 9))
    labels = "background=0,disc=1"
    assert dinounet.evaluate(tmp_path / "flat", tmp_path / "truth", labels=labels).mean_over_cases["disc"].dice == 1
    metrics = dinounet.evaluate(tmp_path / "slice", tmp_path / "truth", labels=labels)
    assert metrics.mean_over_cases["disc"].dice == pytest.approx(12 / 14)
    assert metrics.mean_over_cases["disc"].hd95 == pytest.approx(1.0)  # two rows of 0.5 mm
    other = dinounet.evaluate(tmp_path / "truth", tmp_path / "slice", labels=labels)
    assert other.mean_over_cases["disc"].hd95 == pytest.approx(1.0)
    with pytest.raises(DataError, match="differ in origin"):
        dinounet.evaluate(tmp_path / "off", tmp_path / "truth", labels=labels)


def test_a_tolerance_larger_than_the_image_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, mask = disc()
    for name in "ab":
        save(tmp_path / "truth" / f"{name}.nrrd", mask, (0.0002, 0.0002, 0.0009))
        save(tmp_path / "predicted" / f"{name}.nrrd", np.roll(mask, 4, 1), (0.0002, 0.0002, 0.0009))
    folders, labels = (tmp_path / "predicted", tmp_path / "truth"), "background=0,disc=1"
    metrics = dinounet.evaluate(*folders, labels=labels)
    assert metrics.mean_over_cases["disc"].nsd == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (told,) = [line["text"] for line in lines if line["event"] == "tolerance"]
    assert told == (
        "the tolerance of 1 mm is larger than whole images (a; b), so that their NSD is 1 wherever anything was found; "
        "give a smaller one with --tolerance"
    )
    assert dinounet.evaluate(*folders, labels=labels, tolerance=0.0002).mean_over_cases["disc"].nsd < 1
    assert "larger than" not in capsys.readouterr().out
    dinounet.compare([f"{name}={folders[0]}" for name in "ab"], folders[1], labels=labels)
    assert "larger than" in capsys.readouterr().out


@pytest.mark.parametrize("step", [0.0001, 1000.0])
def test_the_coarsest_axis_is_told_by_spacings_relative_to_each_other(step: float, tmp_path: Path) -> None:
    image, mask = disc(shape=(8, 32, 30))
    save(tmp_path / "images" / "a.nrrd", image, (9 * step, 2 * step, 2 * step))
    save(tmp_path / "masks" / "a.nrrd", mask, (9 * step, 2 * step, 2 * step))
    assert plan_data(read_dataset(tmp_path)).slice_axis == 2
