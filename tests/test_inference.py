"""Tiles, the predictor, and folders of files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.inferers import sliding_window_inference
from PIL import Image

import dinounet
from datasets import describe, picture, volume, write_nifti_dataset, write_png_dataset
from dinounet.data.arrays import tile_starts
from dinounet.data.dataset import read_dataset
from dinounet.data.lazy_volume import LazyVolume
from dinounet.errors import DataError, UserError, WeightsError
from dinounet.inference.tiling import GaussianTileMerger, StreamingResizer, gaussian, make_grid
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from networks import planned

NETWORK = planned(num_classes=3)


def trained(data: Path, folder: Path) -> Path:
    """A run of a tiny network."""
    plan = Plan(plan_data(read_dataset(data), (64, 64)), NETWORK, Recipe(steps=3, augmentation="none"))
    write_json(folder / "plan.json", plan)
    return dinounet.train(data, folder / "run", plan=folder / "plan.json", weights="random", device="cpu", report=False)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_png_dataset(tmp_path_factory.mktemp("png") / "pictures")


@pytest.fixture(scope="module")
def png_run(png: Path) -> Path:
    return trained(png, png.parent)


@pytest.fixture(scope="module")
def nifti_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nifti")
    return trained(write_nifti_dataset(folder / "volumes"), folder)


@pytest.mark.parametrize(("length", "tile"), [(512, 512), (513, 512), (700, 512), (1096, 512), (64, 32), (100, 7)])
def test_tiles_cover_everything_evenly_at_half_a_tile_or_less(length: int, tile: int) -> None:
    starts = tile_starts(length, tile)
    steps = np.diff(starts)
    assert (starts[0], starts[-1]) == (0, length - tile)
    assert (steps <= np.ceil(tile / 2)).all()
    assert len(starts) == 1 or steps.max() - steps.min() <= 1


def joined(
    slice: torch.Tensor, patch: tuple[int, int], network: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Logits of a slice (C, H, W) from its tiles, in strips."""
    grid = make_grid(tuple(slice.shape[-2:]), patch)
    canvas, strips = GaussianTileMerger(grid), []
    for row in grid.rows:
        for column in grid.columns:
            tile = slice[None, :, row : row + grid.tile[0], column : column + grid.tile[1]]
            for first, rows in canvas.add(row, column, network(tile)):
                assert first == sum(strip.shape[-2] for strip in strips)
                strips.append(rows)
    return torch.cat(strips, dim=-2)[0]


def test_tiles_join_to_what_monai_joins_them_to() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 3, 9, padding=4)
    slice = torch.randn(2, 96, 128)  # starts and steps are whole here, so both tile alike
    with torch.no_grad():
        ours = joined(slice, (64, 64), layer)
        theirs = sliding_window_inference(slice[None], (64, 64), 2, layer, overlap=0.5, mode="gaussian")[0]
    # MONAI lifts weights below 1/1000, which shows where only the far ends of Gaussians overlap: along the border
    torch.testing.assert_close(ours[..., 24:72, 24:104], theirs[..., 24:72, 24:104], atol=2e-2, rtol=0)
    # deviation 8: the end is 31.5 from the middle, the brightest pixel 0.5
    assert gaussian(64)[0].item() == pytest.approx(np.exp((-(31.5**2) + 0.5**2) / 8**2 / 2))


@pytest.mark.parametrize("size", [(70, 95), (32, 48), (20, 95), (33, 30), (200, 48)])
def test_a_pointwise_network_does_not_notice_the_tiles(size: tuple[int, int]) -> None:
    slice = torch.randn(1, *size)
    found = joined(slice, (32, 48), lambda tile: torch.cat([tile, tile**2], dim=1))
    torch.testing.assert_close(found, torch.cat([slice, slice**2]))


@pytest.mark.parametrize("wanted", [(70, 95), (700, 95), (31, 20), (1, 1), (97, 300)])
def test_strips_are_enlarged_as_the_whole_would_be(wanted: tuple[int, int]) -> None:
    whole = torch.randn(2, 3, 70, 95)
    enlarger, strips = StreamingResizer((70, 95), wanted), []
    for first, last in ((0, 16), (16, 17), (17, 60), (60, 70)):
        for start, rows in enlarger.add(first, whole[..., first:last, :]):
            assert start == sum(strip.shape[-2] for strip in strips)
            strips.append(rows)
    expected = torch.nn.functional.interpolate(whole, size=wanted, mode="bilinear", align_corners=False)
    torch.testing.assert_close(torch.cat(strips, dim=-2), expected, atol=5e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_two_line_api_takes_files_and_arrays(png: Path, png_run: Path) -> None:
    path = png / "imagesTs" / "case_6_0000.png"
    predictor = dinounet.load(png_run)
    mask = predictor.predict(path)
    pixels = np.asarray(Image.open(path))
    assert (mask.shape, mask.dtype) == (pixels.shape, np.uint8)
    np.testing.assert_array_equal(predictor.predict(pixels), mask)
    np.testing.assert_array_equal(predictor.predict(pixels[None]), mask)
    np.testing.assert_array_equal(predictor.predict([str(path)]), mask)
    np.testing.assert_array_equal(predictor.predict(pixels[None, None]), mask[None])
    assert predictor.labels == {"background": 0, "disc": 1, "square": 2}


@pytest.mark.slow
def test_a_volume_that_stays_in_its_file_is_predicted_the_same(
    nifti_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = nifti_run.parent / "volumes" / "imagesTr" / "case_0_0000.nii.gz"
    predictor = dinounet.load(nifti_run, device="cpu")
    whole = predictor.predict(scan)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"available": 1}))
    assert isinstance(predictor.read([scan]).array, LazyVolume)
    np.testing.assert_array_equal(predictor.predict(scan), whole)


@pytest.mark.slow
def test_two_channels_from_files_and_folders_and_every_path_as_a_string(tmp_path: Path) -> None:
    data = write_nifti_dataset(tmp_path / "volumes")
    for path in list((data / "imagesTr").iterdir()):
        (data / "imagesTr" / path.name.replace("_0000", "_0001")).write_bytes(path.read_bytes())
    describe(data, ".nii.gz", channels=("T1", "T2"))
    network = planned(num_classes=3, in_channels=2)
    plan = Plan(plan_data(read_dataset(data), (64, 64)), network, Recipe(steps=1, augmentation="none"))
    write_json(tmp_path / "plan.json", plan)
    run = dinounet.train(
        str(data), str(tmp_path / "run"), plan=str(tmp_path / "plan.json"), weights="random", report=False
    )
    files = sorted(str(path) for path in (data / "imagesTr").glob("case_0_*"))
    dinounet.predict(str(run), files, str(tmp_path / "a"))
    dinounet.predict(str(run), [str(data / "imagesTr")], str(tmp_path / "b"))
    assert (tmp_path / "a" / "case_0.nii.gz").read_bytes() == (tmp_path / "b" / "case_0.nii.gz").read_bytes()
    metrics = dinounet.evaluate(str(tmp_path / "b"), str(data / "labelsTr"))
    page = dinounet.report(
        str(tmp_path / "b"),
        str(data / "labelsTr"),
        str(tmp_path / "r.html"),
        images=str(data / "imagesTr"),
        run=str(run),
    )
    assert len(metrics.cases) == 4
    assert page.exists()


@pytest.mark.slow
def test_slices_along_another_axis_are_predicted_like_flat_arrays(tmp_path: Path) -> None:
    data = write_nifti_dataset(tmp_path / "volumes", spacing=(3.0, 0.8, 0.7))  # x is the coarsest
    predictor = dinounet.load(trained(data, tmp_path))
    assert predictor.plan.data.slice_axis == 2
    volume = np.random.RandomState(0).normal(size=(1, 40, 50, 1)).astype(np.float32)
    np.testing.assert_array_equal(predictor.predict(volume)[..., 0], predictor.predict(volume[..., 0]))


@pytest.mark.slow
def test_a_new_process_predicts_the_same(png: Path, png_run: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "dinounet", "predict", str(png_run), str(png / "imagesTs")]
    done = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["masks"] == 2
    ours = dinounet.load(png_run).predict(png / "imagesTs" / "case_7_0000.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "case_7.png")), ours)


@pytest.mark.slow
def test_a_prediction_lies_on_the_images_grid_also_at_another_spacing(nifti_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    array = np.stack([picture((50, 61), seed)[0] for seed in range(5)]).astype(np.int16)
    image = volume(array, spacing=(1.1, 0.9, 4.0))
    sitk.WriteImage(image, str(tmp_path / "images" / "new_0000.nii.gz"))
    dinounet.predict(nifti_run, [tmp_path / "images"], tmp_path / "out")
    mask = sitk.ReadImage(str(tmp_path / "out" / "new.nii.gz"))
    assert mask.GetSize() == image.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, get)(), getattr(image, get)(), atol=1e-5)
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["labels"]["classes"]["square"] == 2
    assert len(record["models"][0]["sha256"]) == 64


def test_a_spacing_that_makes_a_slice_of_terabytes_is_told(nifti_run: Path, tmp_path: Path) -> None:
    image = volume(np.zeros((2, 50, 61), np.int16), spacing=(1e6, 0.9, 4.0))
    sitk.WriteImage(image, str(tmp_path / "kilometres.nii.gz"))
    told = r"kilometres\.nii\.gz: its pixels are 0\.9 x 1e\+06 mm apart and the plan's are 0\.8 x 0\.7, for which"
    with pytest.raises(DataError, match=told):
        dinounet.predict(nifti_run, [tmp_path / "kilometres.nii.gz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_broken_file_does_not_keep_the_others_from_being_predicted(png: Path, png_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes((png / "imagesTs" / "case_6_0000.png").read_bytes())
    (tmp_path / "images" / "b.png").write_text("hello")
    with pytest.raises(DataError, match=r"1 of 2 images could not be predicted: .*b\.png can't be read as an image"):
        dinounet.predict(png_run, [tmp_path / "images"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "failed.json", "prediction.json"]
    assert "b.png" in json.loads((tmp_path / "out" / "failed.json").read_text())["b"]


def test_other_weights_than_it_was_trained_on_are_refused(png_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    backbone = dinounet.load(png_run).networks[0].backbone
    state = {key: tensor.clone() for key, tensor in backbone.vit.state_dict().items()}
    save_file(state, tmp_path / "same.safetensors")
    dinounet.load(png_run, weights=str(tmp_path / "same.safetensors"))
    state["norm.bias"] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"are not those that .* was trained on \(sha256 .*pass the right ones"):
        dinounet.load(png_run, weights=str(tmp_path / "other.safetensors"))


def test_wrong_inputs_are_answered(png: Path, png_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run: it holds no run\.json"):
        dinounet.load(tmp_path)
    with pytest.raises(DataError, match="missing does not exist"):
        dinounet.predict(png_run, [tmp_path / "missing"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no image in a known format \(\.nii\.gz"):
        dinounet.predict(png_run, [tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DataError, match="several images are named case_6; rename them"):
        dinounet.predict(png_run, [png / "imagesTs", png / "imagesTs" / "case_6_0000.png"], tmp_path / "out")
    with pytest.raises(UserError, match="exists already; give the predictions another name"):
        dinounet.predict(png_run, [png / "imagesTs"], png)
    with pytest.raises(DataError, match="no image is named; name images, or folders of them, after the run"):
        dinounet.predict(png_run, [], tmp_path / "out")
    (tmp_path / "broken.png").write_text("hello")
    with pytest.raises(DataError, match="1 of 1 images could not be predicted"):
        dinounet.predict(png_run, [tmp_path / "broken.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    predictor = dinounet.load(png_run)
    with pytest.raises(DataError, match=r"the array has 3 channels, but 1 are expected \(MR\)"):
        predictor.predict(np.zeros((3, 20, 20)))
    with pytest.raises(DataError, match="the array holds 400 pixels that are NaN or infinite"):
        predictor.predict(np.full((20, 20), np.nan))
    with pytest.raises(DataError, match=r"the array has shape \(5,\)"):
        predictor.predict(np.zeros(5))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (150, 90)])
def test_odd_sizes_are_predicted(size: tuple[int, int], png_run: Path) -> None:
    image = np.random.RandomState(0).randint(0, 255, size).astype(np.uint8)
    assert dinounet.load(png_run).predict(image).shape == size


def test_an_image_without_spacing_is_refused_where_spacing_counts(nifti_run: Path, png: Path) -> None:
    predictor = dinounet.load(nifti_run)
    with pytest.raises(
        DataError, match=r"does not state its pixel size in mm, but the run was trained at 0\.8 x 0\.7 mm"
    ):
        predictor.predict(png / "imagesTs" / "case_6_0000.png")
    assert predictor.predict(np.zeros((1, 2, 20, 30))).shape == (2, 20, 30)  # an array is taken to have it
