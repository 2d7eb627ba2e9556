"""The same image under two names: on one side of every fold, and told; nearly the same ones are told as pairs."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

import dinounet
from conftest import shared
from datasets import describe, write_nifti_dataset
from dinounet.data.dataset import read_dataset
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.run import read_run


def scene(seed: int, size: tuple[int, int] = (96, 112)) -> np.ndarray:
    """Blobs of light of all sizes, other ones for each seed."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    pixels = np.zeros(size)
    for _ in range(60):
        y, x, radius, light = random.uniform((0, 0, 0.02, 0.2), (1, 1, 0.15, 1))
        pixels += light * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / radius**2)
    return (pixels / pixels.max() * 250).astype(np.uint8)


def write(root: Path, images: dict[str, np.ndarray]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, pixels in images.items():
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[8:30, 8:24] = 1
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


def pairs_of_copies(root: Path) -> Path:
    return write(root, {f"{copy}{name}": scene(ord(name)) for name in "abc" for copy in ("", "copy_of_")})


def planned(data: Path, **given: object) -> Plan:
    return dinounet.plan(data, network="unet", patch=(32, 32), **given)


@pytest.mark.slow
def test_copies_are_on_one_side_of_every_fold_of_a_run_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pairs_of_copies(tmp_path / "data")
    given = dict(network="unet", patch=(32, 32), changes={"steps": 1, "eval_interval": 1}, device="cpu")
    run = dinounet.train(data, tmp_path / "run", fold=2, report=False, **given)
    record = read_run(run)
    sides = [{name[-1] for name in part} for part in (record.data.training_cases, record.data.validation_cases)]
    assert [len(side) for side in sides] == [2, 1]
    assert not sides[0] & sides[1]
    sentence = "Identical pixels under several names: a and copy_of_a; b and copy_of_b; c and copy_of_c; they are kept"
    assert sentence in capsys.readouterr().out


def test_a_plan_names_copies_and_shows_the_folds_that_come_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(pairs_of_copies(tmp_path))
    assert plan.data.groups.twins == tuple((name, f"copy_of_{name}") for name in "abc")
    told = capsys.readouterr().out
    assert "4 + 2, 4 + 2, 4 + 2" in told
    assert "they are kept on one side of a fold" in told
    assert "none; 3 of identical pixels" in told


def test_a_copy_in_another_format_and_type_is_one(tmp_path: Path) -> None:
    write(tmp_path, {name: scene(index) for index, name in enumerate("abc")})
    for name, dtype in (("x", np.uint16), ("y", np.float32)):
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", scene(0).astype(dtype))
        Image.fromarray((scene(0) > 99).astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    assert plan_data(read_dataset(tmp_path)).groups.twins == (("a", "x", "y"),)


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_volumes_are_compared_whole(dtype: type, tmp_path: Path) -> None:
    write_nifti_dataset(tmp_path, cases=3, slices=4)
    path = tmp_path / "imagesTr" / "case_0_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    pixels = sitk.GetArrayFromImage(image).astype(dtype)
    for name, change in (("copy", 0), ("other", 1)):
        pixels[-1, -1, -1] += change
        like = sitk.GetImageFromArray(pixels)
        like.CopyInformation(image)
        sitk.WriteImage(like, str(tmp_path / "imagesTr" / f"{name}_0000.nii"))
        nibabel.save(nibabel.load(tmp_path / "labelsTr" / "case_0.nii.gz"), tmp_path / "labelsTr" / f"{name}.nii")
    for folder in ("imagesTr", "labelsTr"):
        for name in ("copy", "other"):
            for file in (tmp_path / folder).glob(f"{name}*.nii"):
                nibabel.save(nibabel.load(file), file.with_suffix(".nii.gz"))
                file.unlink()
    groups = plan_data(read_dataset(tmp_path)).groups
    assert groups.twins == (("case_0", "copy"),)
    assert ("case_0", "other") in groups.near_twins or ("copy", "other") in groups.near_twins


def test_a_table_that_tears_twins_apart_is_told_and_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"a": scene(0), "b": scene(1), "c": scene(0), "d": scene(2), "e": scene(3)})
    owners = {"a": "P0", "b": "P0", "c": "P1", "d": "P1", "e": "P2"}
    rows = [f"images/{name}.png,masks/{name}.png,{owner}" for name, owner in owners.items()]
    (tmp_path / "table.csv").write_text("\n".join(["image,mask,group", *rows]))
    plan = planned(tmp_path / "table.csv")
    sentence = "Groups that share pixels are taken for one: a (of P0) and c (of P1); correct the groups."
    assert plan.data.groups.remarks_on_pixels[1] == sentence
    told = capsys.readouterr().out
    assert sentence in told
    assert "1 + 4, 4 + 1" in told or "4 + 1, 1 + 4" in told


def test_splits_of_the_dataset_stay_and_what_they_tear_apart_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for index, name in enumerate("abcd"):
        Image.fromarray(scene(index % 3)).save(tmp_path / "imagesTr" / f"{name}_0000.png")
        Image.fromarray((scene(index) > 99).astype(np.uint8)).save(tmp_path / "labelsTr" / f"{name}.png")
    describe(tmp_path, ".png", labels={"background": 0, "a": 1})
    folds = [{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["a", "d"], "val": ["b", "c"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    plan = planned(tmp_path)
    assert plan.data.groups.twins == (("a", "d"),)
    assert (
        "a and d; splits_final.json has some of them on both sides of the folds 0, whose"
        in (plan.data.groups.remarks_on_pixels[0])
    )
    assert "2 + 2, 2 + 2" in capsys.readouterr().out


def test_a_test_case_that_is_trained_on_under_another_name_is_told_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", {name: scene(ord(name) % 98) for name in "abcde"} | {"secret": scene(1)})
    (tmp_path / "test.txt").write_text("secret\nd\n")
    Image.fromarray(np.asarray(Image.fromarray(scene(0)).resize((100, 86)))).save(data / "images" / "d.png")
    Image.fromarray(np.ones((86, 100), np.uint8)).save(data / "masks" / "d.png")
    plan = planned(data, test=tmp_path / "test.txt")
    told = capsys.readouterr().out
    assert "THE TEST LEAKS: cases that are held out hold the pixels of others that are not: c and secret;" in told
    assert plan.data.groups.twins == ()
    assert plan.data.groups.near_twins == (("b", "d"),)
    assert "In 1 of them one is held out for the test and the other is not" in told
    (data / "images" / "secret.png").write_text("no image")
    assert plan_data(read_dataset(data, test=["secret"])).fingerprint.cases == 5


def changed(pixels: np.ndarray, how: str, path: Path) -> np.ndarray:
    image = Image.fromarray(pixels)
    if how == "JPEG":
        image.save(path, quality=50)
        return np.asarray(Image.open(path))
    if how == "smaller":
        return np.asarray(image.resize((int(image.width * 0.8), int(image.height * 0.8)), Image.Resampling.BICUBIC))
    if how == "noise":
        return (pixels + np.random.default_rng(0).normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)
    assert how == "contrast"
    return (20 + pixels * 0.8).astype(np.uint8)


@pytest.mark.parametrize("how", ["JPEG", "smaller", "noise", "contrast"])
def test_what_looks_nearly_the_same_is_told_as_a_pair(how: str, tmp_path: Path) -> None:
    images = {f"s{seed}": scene(seed) for seed in range(6)} | {"t": changed(scene(3), how, tmp_path / "t.jpg")}
    data = write(tmp_path / "data", images)
    groups = plan_data(read_dataset(data)).groups
    assert (groups.twins, groups.near_twins) == ((), (("s3", "t"),))
    assert "1 pair looks nearly the same and may lie on both sides of a fold: s3 and t;" in groups.remarks_on_pixels[0]


def test_what_is_in_one_group_is_no_pair_to_tell(tmp_path: Path) -> None:
    names = {
        f"v{seed}_frame_{z}": changed(scene(seed), ("noise", "contrast")[z], tmp_path)
        for seed in range(5)
        for z in (0, 1)
    }
    write(tmp_path / "data", names)
    assert plan_data(read_dataset(tmp_path / "data")).groups.near_twins == ()
    assert len(plan_data(read_dataset(tmp_path / "data", group="none")).groups.near_twins) == 5


def test_other_images_and_empty_ones_are_no_pairs(tmp_path: Path) -> None:
    dark = {
        f"dark{index}": np.where(np.arange(64 * 64).reshape(64, 64) == index, 200, 0).astype(np.uint8)
        for index in (5, 900)
    }
    groups = plan_data(read_dataset(write(tmp_path, {f"s{seed}": scene(seed) for seed in range(20)} | dark))).groups
    assert (groups.twins, groups.near_twins, groups.remarks_on_pixels) == ((), (), ())


def test_the_eyes_of_a_child_are_no_twins(tmp_path: Path) -> None:
    table = read_dataset(shared("data/retina_chase/cases.csv")).cases[:8]
    rows = ["image,mask", *(f"{case.images[0].absolute()},{case.mask.absolute()}" for case in table)]
    (tmp_path / "eyes.csv").write_text("\n".join(rows))
    groups = plan_data(read_dataset(tmp_path / "eyes.csv")).groups
    assert (groups.twins, groups.near_twins) == ((), ())
