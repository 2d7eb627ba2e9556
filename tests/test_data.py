"""Dataset, plan, preprocessing, cache and patches."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from skimage.transform import resize

from datasets import LABELS, describe, normalised, picture, volume, write_nifti_dataset
from dinounet.backbones.registry import network_config
from dinounet.data.cache import build_cache
from dinounet.data.dataset import find_cases, hash_dataset, known_hash, read_dataset, remember_hash
from dinounet.data.geometry import Geometry, Volume, coarsest_axis
from dinounet.data.images import read_image, write_mask
from dinounet.data.label_inference import infer_labels
from dinounet.data.layouts import image_files, mask_files
from dinounet.data.masks import read_mask
from dinounet.data.patches import PatchDataset, cut_patch
from dinounet.data.preprocessing import image_to_slices, in_slice, mask_to_slices
from dinounet.errors import ConfigError, DataError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.planning.planner import make_plan
from dinounet.schema.labels import parse_labels
from dinounet.schema.plan import ChannelPlan, Intensities, read_plan
from dinounet.schema.recipe import Recipe


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    return write_nifti_dataset(tmp_path / "volumes")


def test_an_index_is_read_without_its_pixels(png: Path, tmp_path: Path) -> None:
    dataset = read_dataset(png)
    assert [case.name for case in dataset.cases] == [f"case_{i}" for i in range(6)]
    assert dataset.labels.classes == LABELS
    assert dataset.cases[0].mask == png / "labelsTr" / "case_0.png"
    before = hash_dataset(dataset)
    assert known_hash(dataset, tmp_path / "cache") is None
    remember_hash(dataset, before, tmp_path / "cache")
    assert known_hash(read_dataset(png), tmp_path / "cache") == before
    Image.fromarray(picture((72, 80), 99)[0]).save(png / "imagesTr" / "case_0_0000.png")
    assert hash_dataset(read_dataset(png)) != before
    assert known_hash(read_dataset(png), tmp_path / "cache") is None


def test_a_plan_measures_and_decides(nifti: Path) -> None:
    plan = plan_data(read_dataset(nifti))
    assert plan.fingerprint.median_shape == (3, 64, 70)
    assert plan.fingerprint.median_spacing == pytest.approx((3.0, 0.8, 0.7))
    assert plan.slice_axis == 0
    assert plan.spacing == pytest.approx((0.8, 0.7))
    assert plan.patch == (64, 96)
    masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in sorted((nifti / "labelsTr").iterdir())]
    assert plan.fingerprint.label_pixels["disc"] == sum((mask == 1).sum() for mask in masks)


@pytest.mark.parametrize(("spacing", "axis"), [((3.0, 1.0, 1.0), 2), ((1.0, 3.0, 1.0), 1), ((1.0, 1.0, 1.0), 0)])
def test_slices_are_cut_along_the_coarsest_axis_and_put_back(
    spacing: tuple[float, ...], axis: int, tmp_path: Path
) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    array = np.random.RandomState(0).randint(0, 3, (5, 6, 7)).astype(np.uint8)
    sitk.WriteImage(volume(array, spacing), str(tmp_path / "imagesTr" / "a_0000.nii.gz"))
    sitk.WriteImage(volume(array, spacing), str(tmp_path / "labelsTr" / "a.nii.gz"))
    describe(tmp_path, ".nii.gz")
    plan = plan_data(read_dataset(tmp_path))
    assert plan.slice_axis == axis
    mask = read_mask(tmp_path / "labelsTr" / "a.nii.gz")
    slices = mask_to_slices(mask, plan)
    assert len(slices) == array.shape[axis]
    put_back = np.zeros_like(array)
    for index, one in enumerate(slices):
        put_back[in_slice(axis, index)] = one
    np.testing.assert_array_equal(put_back, array)


def test_flat_images_with_a_spacing_are_one_slice_each(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    pixels, mask = picture((40, 50), 0)
    for path, array in ((tmp_path / "imagesTr" / "a_0000.nrrd", pixels), (tmp_path / "labelsTr" / "a.nrrd", mask)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((2.5, 3.5))  # coarser than the 1 mm that stands for the missing axis
        sitk.WriteImage(image, str(path))
    describe(tmp_path, ".nrrd")
    plan = plan_data(read_dataset(tmp_path))
    assert (plan.slice_axis, plan.spacing, plan.patch) == (0, (3.5, 2.5), (64, 64))
    image = read_image([tmp_path / "imagesTr" / "a_0000.nrrd"])
    assert image_to_slices(image, plan).shape == (1, 1, 40, 50)


def test_a_palette_colours_a_mask_but_spoils_an_image(tmp_path: Path) -> None:
    mask = picture((40, 50), 0)[1]
    coloured = Image.fromarray(mask, mode="P")
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    coloured.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png").array[0], mask)
    with pytest.raises(DataError, match=r"a\.png has a palette; convert it to grey levels or RGB"):
        read_image([tmp_path / "a.png"])


def test_a_volume_of_one_slice_and_a_headers_last_digits_do_not_turn_the_slices() -> None:
    assert coarsest_axis((1, 64, 70), (1.0, 1.5, 1.5)) == 0
    assert coarsest_axis((30, 64, 70), (1.0, 1.0000001, 1.0)) == 0
    assert coarsest_axis((30, 64, 70), (1.0, 1.0, 4.0)) == 2
    assert coarsest_axis((30, 64, 70), None) == 0


def test_only_numbered_channels_are_joined_to_cases() -> None:
    def names(files: list[str], channels: int) -> dict[str, int]:
        cases = find_cases([Path(file) for file in files], channels, ".png")
        return {case.name: len(case.images) for case in cases}

    assert names(["a_0000.png", "a_0001.png", "b_0001.png", "b_0000.png"], 2) == {"a": 2, "b": 2}
    assert names(["a_0000.png", "scan_2021.png", "c.png"], 1) == {"a": 1, "scan_2021": 1, "c": 1}
    with pytest.raises(DataError, match=r"scan should have one file per channel \(2\).* but has scan_0001\.png"):
        names(["scan_0001.png", "scan_0002.png"], 2)
    with pytest.raises(DataError, match="several images are named a; rename them"):
        names(["a.png", "a_0000.png"], 1)
    with pytest.raises(DataError, match=r"these don't end with \.png, as the dataset's images do: b\.tif"):
        names(["a.png", "b.tif"], 1)


def write_pairs(root: Path, images: str, masks: str, cases: int = 4, label: int = 255) -> Path:
    """Plain pictures of one class; the patterns say where, * stands for the case."""
    for index in range(cases):
        image, mask = picture((40, 50), index)
        for pattern, pixels in ((images, image), (masks, (mask > 0) * np.uint8(label))):
            path = root / pattern.replace("*", f"IMG_000{index}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/*.png", "masks/*.png"),
        ("images/*.jpg", "labels/*.png"),
        ("images/*.tif", "masks/*_mask.png"),
        ("*.png", "*_segmentation.tif"),
        ("*_image.png", "*-label.png"),
        ("* img.bmp", "* Mask.bmp"),
    ],
)
def test_plain_images_and_masks_are_paired_by_name(images: str, masks: str, tmp_path: Path) -> None:
    dataset = read_dataset(write_pairs(tmp_path / "data", images, masks))
    assert [case.name for case in dataset.cases] == [f"IMG_000{index}" for index in range(4)]
    for case in dataset.cases:
        assert read_image(case.images).shape == read_mask(case.mask).shape
    plan = plan_data(dataset)
    assert plan.labels.classes == {"background": 0, "foreground": 255}
    assert plan.channels[0].name == "channel 0"
    assert len(dataset.splits) == 4


def test_a_single_pair_bears_the_folders_name(tmp_path: Path) -> None:
    image, mask = picture((40, 50), 0)
    (tmp_path / "nerve").mkdir()
    Image.fromarray(np.stack([image] * 3, -1)).save(tmp_path / "nerve" / "image.png")
    Image.fromarray(np.stack([np.array([0, 128, 255], np.uint8)[mask]] * 3, -1)).save(tmp_path / "nerve" / "mask.png")
    with pytest.raises(
        DataError, match=r"nerve hold 0, 128, 255; .*such as --labels background=0,class1=128,class2=255"
    ):
        plan_data(read_dataset(tmp_path / "nerve"))
    dataset = read_dataset(tmp_path / "nerve", {"axon": 255, "background": 0, "myelin": 128})
    assert [case.name for case in dataset.cases] == ["nerve"]
    plan = plan_data(dataset)
    assert list(plan.labels.classes) == ["background", "myelin", "axon"]
    assert [channel.name for channel in plan.channels] == ["R", "G", "B"]
    classes = mask_to_slices(read_mask(dataset.cases[0].mask), plan)
    np.testing.assert_array_equal(classes[0], mask)


def test_no_file_is_passed_over_for_its_name_alone(tmp_path: Path) -> None:
    write_pairs(tmp_path, "*.png", "*_mask.png", cases=2)
    shutil.copy(tmp_path / "IMG_0000.png", tmp_path / "atlas_gt.png")
    images = [path.name for path in image_files(tmp_path)]
    assert images == ["IMG_0000.png", "IMG_0001.png", "atlas_gt.png"]
    assert [path.name for path in mask_files(tmp_path)] == ["IMG_0000_mask.png", "IMG_0001_mask.png", "atlas_gt.png"]


def test_numbers_that_tell_are_named() -> None:
    def infer(pixels: dict[int, int]) -> dict[str, int]:
        return infer_labels(pixels, "x", Path("masks"))[0].classes

    assert infer({0: 5, 7: 1}) == {"background": 0, "foreground": 7}
    assert infer({1: 5, 2: 1}) == {"background": 0, "class 1": 1, "class 2": 2}
    with pytest.raises(DataError, match="as smoothed masks do"):
        infer(dict.fromkeys(range(256), 1))
    with pytest.raises(DataError, match="in which each object has a number of its own"):
        infer(dict.fromkeys(range(900), 1))
    with pytest.raises(
        DataError, match=r"hold 0, 2, 3; say what they stand for, such as --labels background=0,class1=2"
    ):
        infer({2: 1, 3: 1})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", r"holds 0 images and 0 masks; give a folder with dataset\.json"),
        ("no masks", r"has a folder images but no masks beside it; name their folder masks"),
        ("no mask", r"IMG_0001\.png has no mask; add, rename or remove files"),
        ("no image", r"IMG_0001\.png has no image"),
        ("twice", r"2 files in .*images are named IMG_0002"),
        (
            "smooth",
            r"hold \d+ different values \(0, .*as smoothed masks do; export them without anti-aliasing",
        ),
        ("jpeg", r"IMG_0003\.jpg is a JPEG, which changes labels in storing them: 0, .*; export masks as PNG, or give"),
    ],
)
def test_wrong_pairs_are_answered(what: str, message: str, tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "data", "images/*.png", "masks/*.png")
    mask = root / "masks" / "IMG_0003.png"
    if what == "nothing":
        shutil.rmtree(root)
        root.mkdir()
    elif what == "no masks":
        shutil.rmtree(root / "masks")
    elif what == "no mask":
        (root / "masks" / "IMG_0001.png").unlink()
    elif what == "no image":
        (root / "images" / "IMG_0001.png").unlink()
    elif what == "twice":
        shutil.copy(root / "images" / "IMG_0002.png", root / "images" / "IMG_0002_image.png")
    elif what == "smooth":
        Image.open(mask).resize((51, 41), Image.Resampling.BICUBIC).resize((50, 40), Image.Resampling.BICUBIC).save(
            mask
        )
    elif what == "jpeg":
        Image.open(mask).save(mask.with_suffix(".jpg"))
        mask.unlink()
    with pytest.raises(DataError, match=message):
        plan_data(read_dataset(root))


def test_labels_are_read_as_the_user_writes_them() -> None:
    assert parse_labels("background=0, grey matter=1,a=b=2") == {"background": 0, "grey matter": 1, "a=b": 2}
    for text in ("", "background", "background=0,x=", "background=0,x=-1", "background=0,background=1", "a=1,b=1"):
        with pytest.raises(ConfigError, match="--labels is"):
            parse_labels(text)


def test_labels_where_the_dataset_names_them_or_without_background_are_refused(png: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.json names the labels; correct them there"):
        read_dataset(png, {"background": 0, "x": 1})
    root = write_pairs(tmp_path / "data", "images/*.png", "masks/*.png")
    with pytest.raises(ConfigError, match="name what 0 stands for"):
        read_dataset(root, {"x": 255})


def channel(normalisation: str) -> ChannelPlan:
    return ChannelPlan("x", normalisation, Intensities(50.0, 20.0, 5.0, 95.0))


def test_normalisation_is_nnunets() -> None:
    image = np.random.RandomState(0).normal(40, 60, (4, 5, 6)).astype(np.float32)
    zscore = normalised(image, channel("zscore"))
    assert (zscore.mean(), zscore.std()) == pytest.approx((0, 1), abs=1e-5)
    np.testing.assert_allclose(normalised(image, channel("ct")), (image.clip(5, 95) - 50) / 20, rtol=1e-6)
    np.testing.assert_allclose(normalised(image, channel("rgb_to_0_1")), image / 255)
    rescaled = normalised(image, channel("rescale_to_0_1"))
    np.testing.assert_allclose(rescaled, (image - image.min()) / (image.max() - image.min()), rtol=1e-6)
    np.testing.assert_array_equal(normalised(image, channel("none")), image)
    assert np.isfinite(normalised(np.full_like(image, 7), channel("zscore"))).all()


def test_another_spacing_is_resampled_within_slices_as_scikit_image_does(nifti: Path) -> None:
    plan = plan_data(read_dataset(nifti))
    array = np.stack([picture((40, 50), seed)[0] for seed in range(2)]).astype(np.float32)
    image = Volume(array[None], Geometry((1.4, 1.6, 3.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1)), Path("a"))
    slices = image_to_slices(image, plan)
    assert slices.shape == (2, 1, 80, 100)
    expected = resize(normalised(array, plan.channels[0])[1], (80, 100), order=3, mode="edge", anti_aliasing=False)
    np.testing.assert_array_equal(slices[1, 0], expected)


def test_a_mask_is_written_onto_the_images_grid_as_nibabel_sees_it(nifti: Path, tmp_path: Path) -> None:
    path = nifti / "imagesTr" / "case_0_0000.nii.gz"
    image = read_image([path])
    labels = np.random.RandomState(0).randint(0, 3, image.shape)
    write_mask(tmp_path / "mask.nii.gz", labels, like=image)
    theirs, ours = nibabel.load(path), nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(ours.dataobj).T, labels)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def patches(png: Path, tmp_path: Path, **changes: object) -> PatchDataset:
    dataset = read_dataset(png)
    cases = build_cache(dataset.cases, plan_data(dataset), tmp_path / "cache")
    settings = {"batch_size": 3, "foreground_fraction": 0.34, "augmentation": "none", "seed": 0, **changes}
    return PatchDataset(cases, (32, 48), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", ["none", "flip", "nnunet"])
def test_a_patch_depends_on_seed_and_number_alone(augmentation: str, png: Path, tmp_path: Path) -> None:
    some = patches(png, tmp_path, augmentation=augmentation)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    image, mask = some[7]
    np.testing.assert_array_equal(state[1], np.random.get_state()[1])
    assert torch.equal(state[0], torch.get_rng_state())
    some[3]
    again, mask_again = patches(png, tmp_path, augmentation=augmentation)[7]
    assert image.shape == (1, 32, 48)
    assert mask.shape == (32, 48)
    assert torch.equal(image, again)
    assert torch.equal(mask, mask_again)
    assert not torch.equal(image, patches(png, tmp_path, augmentation=augmentation, seed=1)[7][0])


def test_the_last_third_of_each_batch_is_centred_on_foreground(png: Path, tmp_path: Path) -> None:
    some = patches(png, tmp_path)
    centres = [some[index][1][16, 24].item() for index in range(90)]
    assert all(label > 0 for label in centres[2::3])
    assert {1, 2} == set(centres[2::3])
    assert 0 in centres[0::3]


@pytest.mark.parametrize("augmentation", ["flip", "nnunet"])
def test_patches_come_from_everywhere_and_stay_inside(augmentation: str, png: Path, tmp_path: Path) -> None:
    some = patches(png, tmp_path, augmentation=augmentation)  # for nnunet, what is cut is larger than the image
    centres = np.array([some._centre(some.cases[0], on_foreground=False) for _ in range(2000)])
    assert set(centres[:, 1]) == set(range(16, 72 - 16 + 1))
    assert set(centres[:, 2]) == set(range(24, 80 - 24 + 1))


def test_a_window_that_sticks_out_is_filled_with_zero_and_background(png: Path, tmp_path: Path) -> None:
    case = patches(png, tmp_path).cases[0]
    image, mask = cut_patch(case, (0, 0, 79), (20, 20))
    np.testing.assert_array_equal(image[:, 10:, :11], case.image[0][:, :10, 69:80])
    assert not image[:, :10].any()
    assert not mask[:, 11:].any()


def break_it(png: Path, what: str) -> None:
    description = json.loads((png / "dataset.json").read_text())
    mask = np.asarray(Image.open(png / "labelsTr" / "case_1.png"))
    if what == "no description":
        (png / "dataset.json").unlink()
    elif what == "no JSON":
        (png / "dataset.json").write_text("{")
    elif what == "no labels":
        describe(png, ".png", labels={})
    elif what == "gaps":
        describe(png, ".png", labels={"background": 0, "disc": 2})
    elif what == "regions":
        describe(png, ".png", labels={"background": 0, "whole": [1, 2]})
    elif what == "ending":
        (png / "dataset.json").write_text(json.dumps({**description, "file_ending": ".docx"}))
    elif what == "no masks":
        shutil.rmtree(png / "labelsTr")
    elif what == "mask missing":
        (png / "labelsTr" / "case_1.png").unlink()
    elif what == "image missing":
        (png / "imagesTr" / "case_1_0000.png").unlink()
    elif what == "too many channels":
        shutil.copy(png / "imagesTr" / "case_1_0000.png", png / "imagesTr" / "case_1_0001.png")
    elif what == "unknown case in split":
        (png / "splits_final.json").write_text(json.dumps([{"train": ["case_9"], "val": ["case_0"]}]))
    elif what == "no folds":
        (png / "splits_final.json").write_text("5")
    elif what == "no list in fold":
        (png / "splits_final.json").write_text(json.dumps([{"train": None, "val": ["case_0"]}]))
    elif what == "nothing to train on":
        (png / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["case_0"]}]))
    elif what == "leak":
        (png / "splits_final.json").write_text(json.dumps([{"train": ["case_0"], "val": ["case_0"]}]))
    elif what == "not an image":
        (png / "imagesTr" / "case_1_0000.png").write_text("hello")
    elif what == "truncated":
        path = png / "imagesTr" / "case_1_0000.png"
        path.write_bytes(path.read_bytes()[:200])
    elif what == "size":
        Image.fromarray(mask[:50]).save(png / "labelsTr" / "case_1.png")
    elif what == "label":
        Image.fromarray(mask * 100).save(png / "labelsTr" / "case_1.png")
    elif what == "colour":
        Image.fromarray(np.stack([mask, mask, mask * 0], -1)).save(png / "labelsTr" / "case_1.png")
    elif what == "channels":
        Image.fromarray(np.stack([mask] * 3, -1)).save(png / "imagesTr" / "case_1_0000.png")
    elif what == "empty":
        for path in (png / "labelsTr").iterdir():
            Image.fromarray(np.zeros_like(mask)).save(path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no description", r"dataset\.json does not exist; it should be the description of an nnU-Net dataset"),
        ("no JSON", r"dataset\.json is not JSON"),
        ("no labels", r"has the labels \{\}; they must be background = 0, then 1, 2"),
        ("gaps", r"without gaps"),
        ("regions", r"has the regions whole and regions_class_order None"),
        ("ending", r"files end with '\.docx'; known are \.nii\.gz"),
        ("no masks", r"has no folder labelsTr"),
        ("mask missing", r"labelsTr/case_1\.png is missing"),
        ("image missing", r"labelsTr/case_1\.png has no image in imagesTr"),
        ("too many channels", r"labelsTr/case_1_0001\.png is missing"),
        ("unknown case in split", r"cases that imagesTr does not hold: case_9"),
        ("no folds", r"splits_final\.json is no list of folds"),
        ("no list in fold", r"has a fold 0 without train and val"),
        ("nothing to train on", r"has a fold 0 with no case to train on"),
        ("leak", r"cases twice in fold 0 \(keep them in one of its parts\): case_0"),
        ("not an image", r"case_1_0000\.png can't be read as an image"),
        ("truncated", r"case_1_0000\.png can't be read as an image .*truncated"),
        ("size", r"case_1\.png is 1 x 50 x 80 but .*case_1_0000\.png is 1 x 72 x 80"),
        ("label", r"case_1\.png holds 100, 200, but the labels are background=0,disc=1,square=2; name them or correct"),
        ("colour", r"is a mask in different colours \(#000000, #010100, #020200\), but the labels are numbers"),
        ("channels", r"case_1_0000\.png has 3 channels, but 1 are expected \(MR\)"),
        ("empty", r"contain only background"),
    ],
)
def test_a_wrong_dataset_is_answered(what: str, message: str, png: Path) -> None:
    break_it(png, what)
    with pytest.raises(DataError, match=message):
        plan_data(read_dataset(png))


def test_wrong_images_are_listed_together(png: Path) -> None:
    break_it(png, "size")
    (png / "imagesTr" / "case_3_0000.png").write_text("hello")
    with pytest.raises(DataError, match=r"(?s)case_1\.png is .*; .*case_3_0000\.png can't be read"):
        plan_data(read_dataset(png))


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz", ".mha"])
def test_nan_is_answered(ending: str, tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4), np.float32)
    array[0, 1, 1:3] = np.nan, np.inf
    sitk.WriteImage(volume(array), str(tmp_path / f"a{ending}"))
    with pytest.raises(DataError, match=r"holds 2 pixels that are NaN or infinite; repair or exclude it"):
        read_image([tmp_path / f"a{ending}"])


def test_another_place_in_space_is_answered(nifti: Path) -> None:
    moved = sitk.ReadImage(str(nifti / "labelsTr" / "case_1.nii.gz"))
    moved.SetOrigin((0, 0, 0))
    sitk.WriteImage(moved, str(nifti / "labelsTr" / "case_1.nii.gz"))
    with pytest.raises(DataError, match=r"case_1\.nii\.gz and .*case_1_0000\.nii\.gz differ in origin"):
        plan_data(read_dataset(nifti))


def test_a_plan_with_wrong_keys_or_values_is_refused_with_the_nearest_name(png: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = make_plan(plan_data(read_dataset(png)), Recipe(), network_config())
    write_json(path, plan)
    assert read_plan(path) == plan

    def edited(**changes: object) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    content = json.loads(path.read_text())
    for changes, message in [
        (
            {"recipe": {**content["recipe"], "learnig_rate": 1}},
            r"unknown key 'recipe\.learnig_rate'; did you mean 'learning_rate'",
        ),
        ({"recipe": {**content["recipe"], "steps": "many"}}, r"recipe\.steps is 'many'; it must be a whole number"),
        ({"recipe": {**content["recipe"], "steps": 0}}, r"recipe\.steps is 0; it must be at least 1"),
        ({"data": {k: v for k, v in content["data"].items() if k != "patch"}}, r"lacks data\.patch"),
        ({"network": {**content["network"], "num_classes": 7}}, r"num_classes is 7 but data names 3 labels"),
        (
            {"recipe": {**content["recipe"], "learning_rate": float("nan")}},
            r"recipe\.learning_rate is nan; it must be a finite number",
        ),
        ({"recipe": {**content["recipe"], "seed": 2**32}}, r"seed is 4294967296; it must be less than 4294967296"),
        ({"data": {**content["data"], "patch": 64}}, r"data\.patch is 64; it must be a list"),
        ({"data": {**content["data"], "patch": [64]}}, r"lacks data\.patch\[1\]; add it"),
        ({"network": {**content["network"], "taps": [-1, 2, 3, 4]}}, r"four different blocks, from 0, in ascending"),
        ({"format": 99}, r"has the format 99, of a newer dinounet"),
    ]:
        edited(**{**content, **changes})
        with pytest.raises(ConfigError, match=message):
            read_plan(path)
