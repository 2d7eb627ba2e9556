"""What is printed for masks that can't be used as they are: one command for all, from the files' own values, that keeps
every class; and no file that is whole is doubted."""

import bz2
import shlex
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

import dinounet
from datasets import picture
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.data.images import read_stored
from dinounet.data.masks import read_mask
from dinounet.errors import DataError, UserError
from dinounet.planning.data_plan import plan_data
from dinounet.schema.labels import parse_labels

MASK = np.zeros((4, 20, 22), np.uint8)
MASK[:, 4:12, 5:15] = 1
MASK[1:3, 6:9, 8:12] = 2
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def write_volume(path: Path, array: np.ndarray, stored: type | None = None) -> None:
    """NIfTI of (Z, Y, X); where another type is stored, nibabel chooses a slope for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array.T, AFFINE, dtype=array.dtype)
    if stored is not None:
        image.header.set_data_dtype(stored)
    nibabel.save(image, path)


def write_volumes(root: Path, masks: Sequence[np.ndarray], stored: type | None = None) -> Path:
    for index, mask in enumerate(masks):
        noise = np.random.default_rng(index).normal(50, 10, MASK.shape) + 40 * MASK
        write_volume(root / "images" / f"c{index:02}.nii.gz", noise.astype(np.float32))
        write_volume(root / "masks" / f"c{index:02}.nii.gz", mask, stored)
    return root


@pytest.mark.parametrize("stored", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("most", [2, 7])
def test_whole_numbers_that_a_slope_has_rounded_are_whole(stored: type, most: int, tmp_path: Path) -> None:
    mask = MASK.copy()
    mask[3, 15:18, 15:18] = most
    root = write_volumes(tmp_path, [mask.astype(np.float64)] * 2, stored)
    path = root / "masks" / "c00.nii.gz"
    read_back = nibabel.load(path).get_fdata().T
    assert nibabel.load(path).dataobj.slope != 1
    assert (read_back != mask).any()
    np.testing.assert_array_equal(read_mask(path).array, mask)
    np.testing.assert_array_equal(np.rint(read_back), mask)
    given = {"background": 0, "organ": 1, "lesion": 2, **({} if most == 2 else {"other": most})}
    assert plan_data(read_dataset(root, given)).fingerprint.label_pixels["lesion"] == 2 * (mask == 2).sum()


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".tif"])
def test_nearly_whole_floats_are_whole(ending: str, tmp_path: Path) -> None:
    values = np.array([0, 0.99998, 1.99996], np.float32)[MASK]
    path = tmp_path / f"a{ending}"
    if ending == ".tif":
        tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "ZYX"})
    else:
        sitk.WriteImage(sitk.GetImageFromArray(values), path)
    np.testing.assert_array_equal(read_mask(path).array, MASK)
    assert read_mask(path).array.dtype.kind in "iu"


def command_in(message: str) -> list[str]:
    """The words of the one command that a message holds."""
    assert message.count("dinounet relabel") == 1
    return shlex.split(message[message.index("dinounet relabel") :])


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ((0, 0.5, 1), "background=0,class1=0.5,class2=1"),
        ((0, 1.2, 1.8), "background=0,class1=1,class2=2"),
        ((0.25, 0.5, 3), "background=0.25,class1=0.5,class2=3"),
    ],
)
def test_fractions_get_one_command_for_all_files_that_keeps_every_class(
    values: tuple[float, ...], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few, all_of_them = np.array([*values[:2], values[1]])[MASK], np.array(values)[MASK]
    write_volumes(Path("data"), [few.astype(np.float32), *[all_of_them.astype(np.float32)] * 4])
    with pytest.raises(DataError, match=r"^data/masks/c00.nii.gz, .*c02.nii.gz and 2 more hold the value") as told:
        plan_data(read_dataset(Path("data")))
    words = command_in(str(told.value))
    assert words[words.index("--labels") + 1] == meant
    assert main(words[1:]) == 0
    for index in range(5):
        copy = np.asarray(nibabel.load(f"data/masks_clean/c{index:02}.nii.gz").dataobj).T
        np.testing.assert_array_equal(copy, np.minimum(MASK, 1) if index == 0 else MASK)
    with pytest.raises(DataError) as told:
        dinounet.evaluate("data/masks", "data/masks", labels="background=0,a=1,b=2")
    assert command_in(str(told.value))


def test_fifty_smoothed_masks_get_one_command(tmp_path: Path) -> None:
    smoothed = np.clip(MASK * 1.0 + np.linspace(0, 0.4, MASK.size).reshape(MASK.shape) * (MASK > 0), 0, 2)
    write_volumes(tmp_path, [smoothed.astype(np.float32)] * 50)
    with pytest.raises(DataError, match="and 47 more hold the values") as told:
        plan_data(read_dataset(tmp_path))
    assert "background=0,class1=1,class2=2" in command_in(str(told.value))
    assert str(told.value).count("dinounet relabel") == 1


def write_pictures(root: Path, masks: Sequence[np.ndarray]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index, mask in enumerate(masks):
        Image.fromarray(picture(mask.shape[:2], index)[0]).save(root / "images" / f"c{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"c{index}.png")
    return root


def test_colours_and_numbers_of_no_label_get_one_command(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [250, 5, 0]], np.uint8)[MASK[1]]
    root = write_pictures(tmp_path / "colours", [colours] * 4)
    with pytest.raises(DataError, match=r"c2\.png and 1 more hold #fa0500 in 48 pixels, but the labels are") as told:
        plan_data(read_dataset(root, {"background": "#000000", "lesion": "#ff0000"}))
    assert command_in(str(told.value))[-1] == "background=#000000,lesion=#ff0000"
    many = np.arange(20 * 22, dtype=np.uint16).reshape(20, 22) % 40
    root = write_pictures(tmp_path / "numbers", [many.astype(np.uint8)] * 4)
    with pytest.raises(
        DataError, match=r"and 1 more hold 1, 2, .*but the labels are background=0,lesion=30; name"
    ) as told:
        plan_data(read_dataset(root, {"background": 0, "lesion": 30}))
    assert command_in(str(told.value))[-1] == "background=0,lesion=30"


def test_smoothed_masks_of_one_class_get_one_command(tmp_path: Path) -> None:
    write_pictures(tmp_path, [MASK[1]] * 5)
    for path in sorted((tmp_path / "masks").iterdir()):
        (tmp_path / "masks" / "lesion").mkdir(exist_ok=True)
        grey = np.linspace(0, 255, 20 * 22).astype(np.uint8).reshape(20, 22)
        Image.fromarray(grey).save(tmp_path / "masks" / "lesion" / path.name)
        path.unlink()
    with pytest.raises(DataError, match="and 2 more hold 256 different values") as told:
        plan_data(read_dataset(tmp_path))
    assert command_in(str(told.value))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.where(MASK == 1, np.int64(-1), MASK), "holds the label -1; store a number from 0 up in its place"),
        (np.where(MASK == 1, -1.0, MASK), "holds the label -1; store a number from 0 up in its place, such as 255"),
        (np.where(MASK == 1, np.int64(2**31), MASK), "holds the label 2147483648; numbers in masks must be below 167"),
        (np.where(MASK == 1, np.nan, MASK), r"holds \d+ pixels that are NaN or infinite; store a number in them"),
        (np.where(MASK == 1, np.inf, MASK), r"holds \d+ pixels that are NaN or infinite; store a number in them"),
    ],
)
def test_values_that_no_mask_may_hold_are_told_what_to_do(mask: np.ndarray, message: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack", metadata={"axes": "ZYX"})
    write_volume(tmp_path / "a.nii.gz", mask)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError, match=message):
            read_mask(path)
    whole = np.where(np.isfinite(mask) & (mask >= 0) & (mask < 9), mask, 0).astype(mask.dtype)
    tifffile.imwrite(tmp_path / "a.tif", whole, photometric="minisblack", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif").array, whole)


def test_transparent_background_is_background_and_hidden_numbers_are_asked_for(tmp_path: Path) -> None:
    mask = MASK[1]
    alpha = np.where(mask > 0, 255, 0).astype(np.uint8)
    Image.fromarray(np.stack([mask * 100, alpha], -1), "LA").save(tmp_path / "a.png")
    tifffile.imwrite(
        tmp_path / "a.tif", np.stack([mask * 100, alpha], -1), photometric="minisblack", extrasamples=["unassalpha"],
        planarconfig="contig",
    )  # fmt: skip
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_mask(path).array[0], mask * 100)
    Image.fromarray(np.stack([mask * 0 + 100, alpha], -1), "LA").save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"transparent where it holds more than 0; if what is hidden there is backgr"):
        read_mask(tmp_path / "a.png")


def test_a_mask_in_the_red_channel_is_told_how_to_be_named(tmp_path: Path) -> None:
    red = np.stack([MASK[1], MASK[1] * 0, MASK[1] * 0], -1)
    root = write_pictures(tmp_path, [red] * 3)
    with pytest.raises(DataError, match="say what they stand for") as told:
        plan_data(read_dataset(root))
    words = shlex.split(str(told.value))
    options = words[words.index("--labels") + 1]
    plan = plan_data(read_dataset(root, parse_labels(options)))
    assert plan.fingerprint.label_pixels["class2"] == 3 * (MASK[1] == 2).sum()


def test_no_file_that_is_whole_is_doubted(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 2 2\nencoding: bzip2\n\n"
    (tmp_path / "bzip2.nrrd").write_bytes(header.encode() + bz2.compress(bytes(4)))
    for name, compression in {"jpeg2000": 34712}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", MASK[1], metadata=None)
        with tifffile.TiffFile(tmp_path / f"{name}.tif", mode="r+b") as file:
            file.pages[0].tags["Compression"].overwrite(compression)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=r"imagecodecs; or save it|save it in another way, such as") as told:
            read_stored(path, of="mask")
        assert "is it whole" not in str(told.value)
