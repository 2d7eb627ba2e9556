"""An array means one thing: what a plan can't mean is refused, and where two readings fit its axes are named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dinounet
from datasets import write_png_dataset
from dinounet.data.dataset import read_dataset
from dinounet.errors import UserError
from dinounet.inference.predictor import Predictor
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import DataPlan
from untrained import write_run

H, W = 40, 50


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    """Of flat images and of volumes, of one channel and of three."""
    root = tmp_path_factory.mktemp("arrays")
    made = {}
    for name, channels in {"grey": 1, "rgb": 3}.items():
        folder = write_png_dataset(root / name, cases=1, size=(H, W), channels=channels)
        data = plan_data(read_dataset(folder), (32, 32))
        data = replace(
            data, channels=tuple(replace(one, normalisation="zscore", imagenet=None) for one in data.channels)
        )
        made[name] = dinounet.load(write_run(root / f"{name}_run", data), device="cpu")
        run = write_run(root / f"{name}_volumes", of_volumes(data))
        made[f"{name} volumes"] = dinounet.load(run, device="cpu")
    return made


def of_volumes(data: DataPlan) -> DataPlan:
    return replace(data, fingerprint=replace(data.fingerprint, largest_shape=(5, H, W)))


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


REFUSED: list[tuple[str, tuple[int, ...], str | None, str]] = [
    (
        "rgb",
        (3, 3, H, W),
        None,
        "would be a volume, (C, Z, Y, X), but the run was trained on flat images; predict one im",
    ),
    ("rgb", (3, 2, H, W), None, "would be a volume"),
    ("rgb", (3, 2, H, W), "CZYX", "would be a volume"),
    (
        "rgb",
        (2, 3, H, W),
        None,
        "2 channels, but 3 are expected (R, G, B): its shape (2, 3, 40, 50) is taken for (C, Z, Y, X",
    ),
    ("rgb", (2, 3, H, W), None, "if these are several images, predict one after another"),
    ("rgb", (1, 3, H, W), None, "if these are several images, predict one after another"),
    ("rgb", (H, W, 3), None, "if the channels are its last axis, give axes='HWC'"),
    ("grey", (H, W, 1), None, "if the channel is its last axis, give axes='HWC'"),
    ("grey", (H, W, 3), None, "if its last axis, as in axes='HWC', is colours, make one channel of them, (H, W)"),
    ("rgb", (H, W), None, "1 channels, but 3 are expected"),
    ("rgb", (4, H, W), None, "give an array of (3, H, W)"),
    ("grey", (5, H, W), None, "if these are several images, predict one after another"),
    ("grey", (1, 5, H, W), None, "would be a volume"),
    ("grey", (5, H, W), "ZHW", "would be a volume"),
    ("grey volumes", (5, H, W), None, "if these are slices, give axes='ZYX'"),
    ("grey volumes", (5, 1, H, W), None, "if these are slices, give axes='ZCYX'"),
    ("rgb volumes", (3, 3, H, W), None, "may be (C, Z, H, W) or (Z, C, H, W); name its axes, as in axes='CZYX'"),
    ("rgb volumes", (5, H, W, 3), None, "if the channels are its last axis, give axes='ZYXC'"),
    ("grey", (H, W), "CHW", "the array has 2 axes, (40, 50); name each of them"),
    ("grey", (H, W), "HH", "name each axis of the array once"),
    ("grey", (H, W), "HC", "name each axis of the array once"),
    ("grey", (1, 1, H, W), "NCHW", "name each axis of the array once"),
    ("grey", (1, H, W), "", "name each axis of the array once"),
    ("grey", (1, 1, 1, H, W), None, "give (H, W), (C, H, W) or (C, Z, H, W)"),
    ("grey", (), None, "give (H, W), (C, H, W) or (C, Z, H, W)"),
    ("grey", (0, W), None, "give (H, W), (C, H, W) or (C, Z, H, W)"),
]


@pytest.mark.parametrize(("name", "shape", "axes", "told"), REFUSED)
def test_what_a_plan_can_not_mean_is_refused(
    predictors: dict[str, Predictor], name: str, shape: tuple[int, ...], axes: str | None, told: str
) -> None:
    for call in (predictors[name].predict, predictors[name].predict_proba):
        with pytest.raises(UserError) as stop:
            call(numbers(*shape), **({} if axes is None else {"axes": axes}))
        assert told in str(stop.value) and "\n" not in str(stop.value)


def test_three_images_one_by_one_are_not_a_volume(predictors: dict[str, Predictor]) -> None:
    """76 % of the pixels of an array of three images were right when it was read as a volume."""
    batch, rgb = numbers(3, 3, H, W), predictors["rgb"]
    each = [rgb.predict(image) for image in batch]
    assert [mask.shape for mask in each] == [(H, W)] * 3
    as_volume = predictors["rgb volumes"].predict(batch, axes="CZHW")
    assert (np.stack(each) != as_volume).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "axes", "usual", "result"),
    [
        ("rgb", (H, W, 3), "HWC", (2, 0, 1), (H, W)),
        ("rgb", (H, W, 3), "yxc", (2, 0, 1), (H, W)),
        ("rgb", (3, W, H), "CWH", (0, 2, 1), (H, W)),
        ("grey", (W, H), "WH", (1, 0), (H, W)),
        ("grey", (H, W, 1), "HWC", (2, 0, 1), (H, W)),
        ("rgb volumes", (3, 5, H, W), "CZYX", (0, 1, 2, 3), (5, H, W)),
        ("rgb volumes", (5, 3, H, W), "ZCYX", (1, 0, 2, 3), (5, H, W)),
        ("rgb volumes", (H, W, 5, 3), "YXZC", (3, 2, 0, 1), (5, H, W)),
    ],
)
def test_named_axes_are_put_in_order(
    predictors: dict[str, Predictor], name: str, shape: tuple[int, ...], axes: str, usual: Any, result: Any
) -> None:
    image, predictor = numbers(*shape), predictors[name]
    found = predictor.predict(image, axes=axes)
    assert found.shape == result
    np.testing.assert_array_equal(found, predictor.predict(image.transpose(usual)))
    assert predictor.predict_proba(image, axes=axes).shape == (3, *result)


def test_a_volume_of_one_channel_may_name_its_slices(predictors: dict[str, Predictor]) -> None:
    image, predictor = numbers(5, H, W), predictors["grey volumes"]
    found = predictor.predict(image, axes="ZYX")
    np.testing.assert_array_equal(found, predictor.predict(image[None]))
    np.testing.assert_array_equal(predictor.predict(image.T, axes="XYZ"), found)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            [[0, 1], [2, 3]],
            "a list of list is not an image; give a list of one path per channel, or one array, as numpy.asarray",
        ),
        ([], "an empty list is not an image"),
        ((), "an empty list is not an image"),
        ([np.zeros((4, 4))], "a list of ndarray is not an image"),
        (["a.png", None], "a list of NoneType is not an image"),
        (None, "an image can't be a NoneType"),
        (b"a.png", "an image can't be a bytes"),
        ({"image": 1}, "an image can't be a dict"),
        (np.zeros((4, 4), object), "an image can't be an array of object"),
        (np.zeros((4, 4), complex), "an image can't be an array of complex128"),
        (np.zeros((4, 4), "datetime64[s]"), "an image can't be an array of datetime64"),
        (torch.zeros(4, 4, dtype=torch.complex64), "an image can't be an array of complex64"),
        (torch.zeros(4, 4).to_sparse(), "the tensor can't be read as numbers"),
        (torch.zeros(4, 4, device="meta"), "the tensor can't be read as numbers"),
        (np.ma.masked_equal(np.eye(4), 1), "the array has masked pixels; fill them with numbers"),
        (np.full((4, 4), 1e300), "16 pixels that are NaN or infinite"),
        (torch.full((4, 4), torch.nan, dtype=torch.bfloat16), "16 pixels that are NaN or infinite"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "the picture holds 16 pixels that are NaN or infinite"),
        (Image.new("CMYK", (4, 4)), "the picture has its colours in CMYK; convert it to RGB"),
        (Image.new("RGB", (4, 4)), r"the picture has 3 channels, but 1 are expected (MR)"),
    ],
)
def test_what_is_no_image_is_told(predictors: dict[str, Predictor], given: Any, told: str) -> None:
    with pytest.raises(UserError) as stop:
        predictors["grey"].predict(given)
    assert told in str(stop.value) and "\n" not in str(stop.value)


def test_a_picture_that_is_closed_or_cut_off_is_told(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    Image.fromarray(numbers(H, W)).save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with Image.open(tmp_path / "b.png") as cut:
        for picture in (closed, cut):
            with pytest.raises(UserError, match="the picture can't be read"):
                predictors["grey"].predict(picture)


def test_axes_of_a_file_are_the_files_own(predictors: dict[str, Predictor], tmp_path: Path) -> None:
    Image.fromarray(numbers(H, W)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        for given in (tmp_path / "a.png", [tmp_path / "a.png"], picture):
            with pytest.raises(UserError, match="axes is for arrays only, since files and pictures define"):
                predictors["grey"].predict(given, axes="HW")


@pytest.mark.slow
def test_the_same_numbers_in_any_form_have_the_same_mask(predictors: dict[str, Predictor]) -> None:
    image, predictor = numbers(H, W), predictors["grey"]
    expected = predictor.predict(image)
    assert len(np.unique(expected)) == 3
    read_only = image.copy()
    read_only.flags.writeable = False
    wide = np.zeros((H, 2 * W), np.uint8)
    wide[:, ::2] = image
    forms: list[Any] = [
        image[None], image[None, None][0], read_only, wide[:, ::2], np.asfortranarray(image), image[::-1][::-1],
        *(image.astype(kind) for kind in ("u2", ">u2", ">i4", "i8", "u8", "f2", ">f4", "f8", ">f8", "longdouble")),
        torch.from_numpy(image), torch.from_numpy(image).bfloat16(), torch.from_numpy(image).half(),
        torch.from_numpy(image.astype(np.float32)).requires_grad_(), torch.from_numpy(image.T.copy()).T,
        Image.fromarray(image), Image.fromarray(image.astype(np.uint16)), Image.fromarray(image.astype(np.int32)),
        Image.fromarray(image.astype(np.float32)), np.ma.array(image),
        Image.merge("LA", (Image.fromarray(image), Image.new("L", (W, H), 255))),
    ]  # fmt: skip
    for form in forms:
        kind = getattr(form, "dtype", getattr(form, "mode", None))
        np.testing.assert_array_equal(predictor.predict(form), expected, err_msg=f"{type(form)} of {kind}")
    black_and_white = image > 127
    bits = predictor.predict(black_and_white)
    np.testing.assert_array_equal(bits, predictor.predict(black_and_white.astype(np.uint8)))
    np.testing.assert_array_equal(bits, predictor.predict(Image.fromarray(black_and_white)))


def test_eight_bits_where_hounsfield_units_are_wanted_are_refused_in_arrays_too(
    predictors: dict[str, Predictor], tmp_path: Path
) -> None:
    data = predictors["grey"].plan.data
    ct = replace(data, channels=(replace(data.channels[0], name="CT", normalisation="ct"),))
    predictor = dinounet.load(write_run(tmp_path / "run", ct), device="cpu")
    for grey in (numbers(H, W), torch.from_numpy(numbers(H, W)), Image.fromarray(numbers(H, W))):
        with pytest.raises(UserError, match="holds grey levels of 8 bits, but the run was trained on CT in Hounsfield"):
            predictor.predict(grey)
    assert predictor.predict(numbers(H, W).astype(np.int16)).shape == (H, W)
