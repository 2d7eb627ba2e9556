"""Numbers of classes that not every format holds: found before training, or written in one that does."""

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from dicom_objects import write_ct
from PIL import Image
from safetensors.torch import save_file

import dinounet
from dinounet.backbones.frozen import build_backbone
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, DataError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from networks import planned

pytestmark = pytest.mark.slow

WRITTEN = {  # the ending of an image, and that of a mask with 300, and with 70000
    ".bmp": (".png", ".tif"),
    ".png": (".png", ".tif"),
    ".jpg": (".png", ".tif"),
    ".tif": (".tif", ".tif"),
    ".nii.gz": (".nii.gz", ".nii.gz"),
    ".nrrd": (".nrrd", ".nrrd"),
    ".mha": (".mha", ".mha"),
}


def save(path: Path, pixels: np.ndarray) -> None:
    """(Y, X), in the format of the path's ending, volumes of one slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".bmp", ".png", ".jpg"):
        Image.fromarray(pixels).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(pixels[None]), path)


def read(path: Path) -> np.ndarray:
    if path.name.endswith(".nii.gz"):
        return np.asarray(nibabel.load(path).dataobj).T[0]
    return np.squeeze(sitk.GetArrayFromImage(sitk.ReadImage(path)))


def write(root: Path, number: int) -> Path:
    """An image in each format, with its mask as TIFF."""
    random = np.random.default_rng(4)
    for index, ending in enumerate(WRITTEN):
        mask = np.zeros((32, 40), np.uint32)
        mask[4 + index : 16 + index, 8:20] = number
        image = random.normal(60, 10, mask.shape) + (mask > 0) * 120
        save(root / "images" / f"c{index}{ending}", image.astype(np.uint8))
        save(root / "masks" / f"c{index}.tif", mask)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a class with the number 70000."""
    root = tmp_path_factory.mktemp("large")
    data = write(root / "data", 70000)
    plan = replace(plan_data(read_dataset(data), (32, 32)), spacing=None)  # which pictures don't tell
    assert plan.labels.classes == {"background": 0, "foreground": 70000}
    network = planned(num_classes=2)
    save_file(build_backbone(network).vit.state_dict(), root / "backbone.safetensors")
    write_json(root / "plan.json", Plan(plan, network, Recipe(steps=1, augmentation="none")))
    options = {"weights": str(root / "backbone.safetensors"), "device": "cpu", "report": False}
    dinounet.train(data, root / "run", plan=root / "plan.json", fold="all", **options)
    return root / "run"


@pytest.mark.parametrize(("number", "place"), [(300, 0), (70000, 1)])
def test_each_image_gets_a_mask_in_a_format_that_holds_its_numbers(
    number: int, place: int, run: Path, tmp_path: Path
) -> None:
    record = (run / "run.json").read_text()
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(record.replace("70000", str(number)))
    masks = dinounet.predict(tmp_path / "run", [run.parent / "data" / "images"], output=tmp_path / "out", device="cpu")
    assert sorted(path.name for path in masks) == [f"c{i}{both[place]}" for i, both in enumerate(WRITTEN.values())]
    found = [np.unique(read(path)).tolist() for path in masks]
    assert {value for values in found for value in values} == {0, number}


@pytest.mark.parametrize("number", [260, 70000])
def test_clean_copies_hold_them_too(number: int, tmp_path: Path) -> None:
    mask = np.zeros((8, 9), np.uint8)
    mask[2:5, 3:6] = 250
    for ending in WRITTEN:
        save(tmp_path / "masks" / f"of{ending.replace('.', '_')}{ending}", mask)
    copies = dinounet.relabel(tmp_path / "masks", tmp_path / "clean", labels=f"background=1,lesion={number}")
    assert len(copies) == len(WRITTEN)
    for path in copies:
        assert np.unique(read(path)).tolist() == ([1, 260] if number == 260 else [1])
        assert path.suffix in (".png" if number == 260 else ".tif", ".tif", ".gz", ".nrrd", ".mha")


def test_numbers_that_no_mask_may_hold_are_refused_before_training(tmp_path: Path) -> None:
    data = write(tmp_path / "data", 2**24)
    with pytest.raises(DataError, match=r"c0.tif holds the label 16777216; numbers in masks must be below 16777216"):
        plan_data(read_dataset(data))
    with pytest.raises(ConfigError, match=r"16777216 stands for a class, but may be 16777215 at most"):
        dinounet.plan(data, labels="background=0,lesion=16777216")


def test_a_mask_that_cannot_be_written_keeps_no_other_from_it(run: Path, tmp_path: Path) -> None:
    pixels = np.zeros((2, 32, 40), np.int16)
    for name in "abc":
        write_ct(tmp_path / "images" / name, pixels)
    for path in (tmp_path / "images" / "a").iterdir():
        content = pydicom.dcmread(path)
        del content.StudyInstanceUID  # which a segmentation must name
        content.save_as(path)
    with pytest.raises(DataError, match=r"1 of 3 images could not be predicted: .*a lacks what a DICOM segmentation"):
        dinounet.predict(run, [tmp_path / "images"], output=tmp_path / "out", device="cpu")
    assert [path.name for path in sorted((tmp_path / "out").glob("*.dcm"))] == ["b.dcm", "c.dcm"]
