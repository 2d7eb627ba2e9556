"""What a reader of the results must know is told in plan, run and report: absent classes, other axes of slices."""

import json
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

import dinounet
from datasets import describe
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import DataError
from dinounet.planning.data_plan import plan_data
from dinounet.schema.run import read_run

UNET = dict(network="unet", patch=(32, 32), changes={"steps": 1, "eval_interval": 1}, device="cpu")


def write_flat(root: Path, classes: dict[str, list[int]], labels: dict) -> Path:
    """Noise in nnU-Net's layout; each case holds a square of each of its classes."""
    random = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name, held in classes.items():
        mask = np.zeros((32, 32), np.uint8)
        for number in held:
            mask[8 * number : 8 * number + 6, 8:20] = number
        Image.fromarray(random.integers(0, 255, mask.shape, np.uint8)).save(root / "imagesTr" / f"{name}_0000.png")
        Image.fromarray(mask).save(root / "labelsTr" / f"{name}.png")
    describe(root, ".png", labels=labels)
    return root


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases, of which c alone has the class 2, and none the class 3."""
    root = tmp_path_factory.mktemp("rare") / "data"
    labels = {"background": 0, "organ": 1, "lesion": 2, "stone": 3}
    write_flat(root, {"a": [1], "b": [1], "c": [1, 2]}, labels)
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    return root


@pytest.mark.slow
def test_a_class_without_a_training_pixel_is_told_and_in_no_mean(
    rare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dinounet.train(rare, tmp_path / "run", fold=0, **UNET)
    told = capsys.readouterr().out
    record = read_run(run)
    assert record.data.absent_classes == ("lesion", "stone")
    page = (run / "report.html").read_text().replace("&#39;", "'")
    for name in ("lesion", "stone"):
        sentence = f"No training case has a pixel of {name}: it can't be learned, and is in no mean over classes."
        assert sentence in told
        assert sentence in record.notes
        assert sentence in page
    metrics = json.loads((run / "validation" / "metrics.json").read_text())
    organ = metrics["cases"][0]["classes"]["organ"]["dice"]
    assert metrics["mean_over_cases_and_classes"]["dice"] == pytest.approx(organ)
    assert set(metrics["left_out"]) == {"lesion", "stone"}
    bundle = dinounet.export([run], tmp_path / "bundle")
    for model in (run, bundle):
        masks = tmp_path / f"of_{model.name}"
        dinounet.predict(model, [rare / "imagesTr"], masks, device="cpu")
        again = dinounet.evaluate(masks, rare / "labelsTr")
        assert again.mean_over_cases_and_classes.dice == pytest.approx(again.mean_over_cases["organ"].dice)
        assert set(again.left_out) == {"lesion", "stone"}


def test_the_plan_tells_which_folds_lack_a_class(rare: Path) -> None:
    remarks = plan_data(read_dataset(rare)).groups.remarks_on_pixels
    assert "1 case has pixels of lesion, none of them a training case of the fold 0: there it can't be learned" in (
        " ".join(remarks)
    )
    assert "No case has a pixel of stone: it can't be learned, and is in no mean over classes." in remarks
    assert not any("organ" in remark for remark in remarks)


def test_regions_are_there_if_one_of_their_classes_is(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    root = write_flat(tmp_path / "data", {"a": [1], "b": [1], "c": [1, 2]}, labels)
    content = json.loads((root / "dataset.json").read_text()) | {"regions_class_order": [1, 2]}
    (root / "dataset.json").write_text(json.dumps(content))
    (root / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    remarks = plan_data(read_dataset(root)).groups.remarks_on_pixels
    assert len(remarks) == 1
    assert "1 case has pixels of core" in remarks[0]


@pytest.mark.parametrize("palette", [False, True], ids=["numbers", "colours"])
def test_classes_that_nobody_named_are_told_too(palette: bool, tmp_path: Path) -> None:
    colours = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 255, 0)}
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index, held in enumerate([(0, 1), (0, 1), (0, 1, 2)]):
        mask = np.zeros((32, 32), np.uint8)
        for number in held:
            mask[8 * number : 8 * number + 6, 8:20] = number
        stored = (
            np.array([colours[number] for number in mask.ravel()], np.uint8).reshape(32, 32, 3) if palette else mask
        )
        Image.fromarray(np.random.default_rng(index).integers(0, 255, mask.shape, np.uint8)).save(
            tmp_path / "images" / f"{index}.png"
        )
        Image.fromarray(stored).save(tmp_path / "masks" / f"{index}.png")
    name = "class #00ff00" if palette else "class 2"
    dataset = read_dataset(tmp_path)
    fold = next(index for index, (_, watched) in enumerate(dataset.splits) if watched == ("2",))
    (remark,) = plan_data(dataset).groups.remarks_on_pixels
    assert f"1 case has pixels of {name}, none of them a training case of the fold {fold}: " in remark


def test_a_fold_with_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    root = write_flat(tmp_path / "data", {"a": [], "b": [], "c": [1]}, {"background": 0, "organ": 1})
    (root / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    with pytest.raises(DataError, match=r"no training case of the fold 0 holds anything but background, .* --fold all"):
        dinounet.train(root, tmp_path / "run", fold=0, **UNET)
    assert not (tmp_path / "run").exists()


def write_volume(path: Path, codes: str, seed: int) -> None:
    """The same noise for a seed, left to right, back to front and foot to head, stored in the order of the codes."""
    image = nibabel.Nifti1Image(
        np.random.default_rng(seed).integers(0, 255, (24, 26, 8)).astype(np.int16), np.diag([1.0, 1.0, 3.0, 1.0])
    )
    mask = nibabel.Nifti1Image((image.get_fdata() > 128).astype(np.uint8), image.affine)
    for kind, one in (("images", image), ("masks", mask)):
        (path.parent / kind).mkdir(parents=True, exist_ok=True)
        turned = one.as_reoriented(ornt_transform(io_orientation(one.affine), axcodes2ornt(codes)))
        nibabel.save(turned, path.parent / kind / f"{path.name}.nii.gz")


@pytest.mark.parametrize(
    ("codes", "axes"),
    [
        ("LPS", ("inferior-superior", "anterior-posterior", "left-right")),
        ("RAS", ("inferior-superior", "anterior-posterior", "left-right")),
        ("PIR", ("left-right", "inferior-superior", "anterior-posterior")),
        ("SRA", ("anterior-posterior", "left-right", "inferior-superior")),
    ],
)
def test_a_plan_knows_the_axes_of_the_body(codes: str, axes: tuple[str, ...], tmp_path: Path) -> None:
    for seed in range(2):
        write_volume(tmp_path / str(seed), codes, seed)
    plan = plan_data(read_dataset(tmp_path))
    assert plan.fingerprint.axes == axes
    assert axes[plan.slice_axis] == "inferior-superior"  # the coarsest
    assert not plan.groups.remarks_on_pixels


def test_an_oblique_volume_counts_by_the_nearest_axis(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    for seed in range(2):
        write_volume(tmp_path / str(seed), "RAS", seed)
        for kind in ("images", "masks"):
            path = tmp_path / kind / f"{seed}.nii.gz"
            image = nibabel.load(path)
            affine = image.affine.copy()
            affine[:3, :3] = turn @ affine[:3, :3]
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
    axes = plan_data(read_dataset(tmp_path)).fingerprint.axes
    assert nibabel.aff2axcodes(affine) == tuple("RAS")
    assert axes == ("inferior-superior", "anterior-posterior", "left-right")


def test_volumes_of_mixed_orientation_are_told_by_the_plan(tmp_path: Path) -> None:
    for seed, codes in enumerate(("LPS", "RAS", "LPS", "LSP")):
        write_volume(tmp_path / f"v{seed}", codes, seed)
    (remark,) = plan_data(read_dataset(tmp_path)).groups.remarks_on_pixels
    assert (
        "1 of 4 volumes are cut along another axis of the body than the others, whose slices lie along inferior-super"
        in remark
    )
    assert "v3 (anterior-posterior)" in remark


@pytest.mark.slow
def test_a_volume_stored_in_another_order_is_told_when_it_is_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for seed in range(2):
        write_volume(data / f"v{seed}", "LPS", seed)
    run = dinounet.train(data, tmp_path / "run", report=False, **UNET)
    write_volume(tmp_path / "new" / "same", "RAS", 7)
    write_volume(tmp_path / "new" / "other", "PIR", 7)
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "new" / "images"), "-o", str(tmp_path / "masks")]) == 0
    sentence = (
        "1 volume is cut along another axis of the body than those that the network has learned from, whose slices lie "
        "along inferior-superior: other (left-right); expect worse masks"
    )
    assert sentence in capsys.readouterr().out
    record = json.loads((tmp_path / "masks" / "prediction.json").read_text())
    assert record["cut_otherwise"] == {"other": "left-right"}
    model = dinounet.load(run, device="cpu")
    with pytest.warns(UserWarning, match="cut along another axis of the body than those that the network has learned"):
        model.predict(tmp_path / "new" / "images" / "other.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(tmp_path / "new" / "images" / "same.nii.gz")
