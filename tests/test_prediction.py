"""Folders of images: views and runs averaged, extra outputs, going on, sharing, and what is no image to segment."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

import dinounet
from datasets import write_nifti_dataset, write_png_dataset
from dinounet.backbones.frozen import build_backbone
from dinounet.data.arrays import VIEWS
from dinounet.data.dataset import read_dataset
from dinounet.data.geometry import Geometry, Volume
from dinounet.data.lazy_volume import LazyRows, open_image
from dinounet.errors import ConfigError, DataError, Interrupted, UserError
from dinounet.inference import inputs
from dinounet.inference.outputs import Outputs, allocated
from dinounet.inference.postprocessing import OutputOptions
from dinounet.inference.predictor import Predictor, Settings
from dinounet.inference.tiling import prefetch
from dinounet.inference.torch_backend import TorchBackend
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_run
from networks import planned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_png_dataset(tmp_path_factory.mktemp("png") / "pictures")


@pytest.fixture(scope="module")
def runs(png: Path) -> Path:
    """A folder of two runs of tiny networks on one backbone, with different seeds of what is trained."""
    folder = png.parent / "runs"
    folder.mkdir()
    network = planned(num_classes=3)
    weights = png.parent / "backbone.safetensors"
    save_file(build_backbone(network).vit.state_dict(), weights)
    for seed in (0, 1):
        plan = Plan(plan_data(read_dataset(png), (64, 64)), network, Recipe(steps=2, augmentation="none", seed=seed))
        write_json(png.parent / "plan.json", plan)
        chosen = {"plan": png.parent / "plan.json", "weights": str(weights), "device": "cpu", "report": False}
        dinounet.train(png, folder / f"run_{seed}", **chosen)
    return folder


@pytest.fixture(scope="module")
def run(runs: Path) -> Path:
    return runs / "run_0"


@pytest.fixture
def picture(png: Path) -> np.ndarray:
    return np.asarray(Image.open(png / "imagesTs" / "case_6_0000.png"))


class Slope(torch.nn.Module):
    """Answers with the image and how far a pixel is from the left and the top of its tile: no mirrored copy agrees."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        height, width = tiles.shape[-2:]
        from_left = torch.linspace(0, 1, width).expand(height, width)
        from_top = torch.linspace(0, 1, height)[:, None].expand(height, width)
        return torch.stack([tiles[:, 0], tiles[:, 0] * from_left + from_top**2, from_left.expand_as(tiles[:, 0])], 1)


def slope(run: Path, **settings: object) -> Predictor:
    plan = read_run(run).plan
    return Predictor(TorchBackend([Slope()], "cpu", "fp32"), plan, None, Settings(**settings))


@pytest.mark.parametrize(("tta", "copies"), [("none", 1), ("flip", 4), ("full", 8)])
def test_views_are_all_symmetries_and_put_back(tta: str, copies: int) -> None:
    tile = torch.arange(12.0).view(1, 3, 4)
    seen = [view.see(tile) for view in VIEWS[tta]]
    assert len({(tuple(one.shape), tuple(one.flatten().tolist())) for one in seen}) == copies
    for view, one in zip(VIEWS[tta], seen, strict=True):
        assert torch.equal(view.put_back(one), tile)


@pytest.mark.parametrize("tta", ["flip", "full"])
@pytest.mark.parametrize("size", [(64, 64), (50, 40)])
def test_what_mirrored_copies_answer_is_averaged(tta: str, size: tuple[int, int], run: Path) -> None:
    image = np.random.RandomState(0).normal(size=size).astype(np.float32)
    found = slope(run, tta=tta).predict_proba(image)
    normalised = torch.from_numpy((image - image.mean()) / image.std())[None, None]
    turns = [(0, False), (0, True), (2, False), (2, True)]  # of the square: half turns and mirrors
    turns += [(1, False), (1, True), (3, False), (3, True)] if tta == "full" else []
    total = torch.zeros(1, 3, *size)
    for quarters, mirror in turns:  # by other means than ours
        seen = torch.rot90(normalised.flip(-1) if mirror else normalised, quarters, (-2, -1))
        back = torch.rot90(Slope()(seen), -quarters, (-2, -1))
        total += back.flip(-1) if mirror else back
    expected = (total / len(turns)).softmax(1)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)  # found is in half precision


def test_probabilities_of_several_runs_are_averaged_and_entropy_is_theirs(runs: Path, picture: np.ndarray) -> None:
    each = [dinounet.load(runs / name).predict_proba(picture).astype(np.float64) for name in ("run_0", "run_1")]
    both = dinounet.load([runs / "run_0", runs / "run_1"])
    mean = both.predict_proba(picture).astype(np.float64)
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1e-3)
    assert np.abs(each[0] - each[1]).max() > 0.01
    np.testing.assert_array_equal(dinounet.load(runs).predict_proba(picture), mean)  # a folder of runs
    assert both.networks[0].backbone is both.networks[1].backbone
    volume = Volume(picture[None, None].astype(np.float32), None, Path("picture"))
    found = both.segment_volume(volume, OutputOptions(uncertainty=True))
    from scipy.stats import entropy

    np.testing.assert_allclose(found.entropy[0], entropy(mean, axis=0) / np.log(3), atol=3e-3)
    expected = np.mean([entropy(one, axis=0) for one in each], axis=0) / np.log(3)
    np.testing.assert_allclose(found.disagreement[0], found.entropy[0] - expected, atol=3e-3)
    alone = dinounet.load(runs / "run_0", tta="flip").segment_volume(volume, OutputOptions(uncertainty=True))
    assert alone.disagreement is not None  # between mirrored copies
    assert dinounet.load(runs / "run_0").segment_volume(volume, OutputOptions(uncertainty=True)).disagreement is None


def test_runs_that_see_images_differently_do_not_predict_together(runs: Path, tmp_path: Path, png: Path) -> None:
    plan = json.loads((runs / "run_0" / "plan.json").read_text())
    plan["data"]["patch"] = [32, 64]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    dinounet.train(png, tmp_path / "other", plan=tmp_path / "plan.json", weights="random", device="cpu", report=False)
    with pytest.raises(
        ConfigError, match=r"other and .*run_0 can't predict together: their plans differ in data\.patch"
    ):
        dinounet.load([runs / "run_0", tmp_path / "other"])
    with pytest.raises(DataError, match="there is a duplicate run"):
        dinounet.load([runs / "run_0", runs / "run_0"])


def of_volumes(predictor: Predictor) -> Predictor:
    """The predictor as if its run had been trained on volumes."""
    data = predictor.plan.data
    seen = replace(data.fingerprint, largest_shape=(64, *data.fingerprint.largest_shape[1:]))
    predictor.plan = replace(predictor.plan, data=replace(data, fingerprint=seen))
    return predictor


@pytest.mark.parametrize("size", [(200, 150), (64, 64), (30, 100)])
@pytest.mark.parametrize("batch", [1, 3, "auto"])
def test_batches_and_neighbours_change_nothing(size: tuple[int, int], batch: int | str, runs: Path) -> None:
    random = np.random.RandomState(0)
    stack = random.normal(size=(1, 3, *size)).astype(np.float32)
    stack = (stack - stack.mean()) / stack.std()
    together = of_volumes(dinounet.load(runs / "run_0", batch=batch, precision="fp32")).predict_proba(stack)
    single = dinounet.load(runs / "run_0", batch=1, precision="fp32")
    plan = single.plan.data
    single.plan = replace(single.plan, data=replace(plan, channels=(replace(plan.channels[0], normalisation="none"),)))
    for index in range(3):
        np.testing.assert_allclose(together[:, index], single.predict_proba(stack[0, index]), atol=2e-3)


def test_a_smaller_step_has_more_tiles(run: Path) -> None:
    seen: list[int] = []
    predictor = slope(run, step=0.25, batch=1)
    predictor.networks[0].register_forward_hook(lambda _, tiles, __: seen.append(len(tiles[0])))
    predictor.predict(np.random.RandomState(0).normal(size=(64, 128)).astype(np.float32))
    assert len(seen) == 5  # (128 - 64) / (64 * 0.25) + 1
    for wrong in ({"step": 0}, {"step": 1.5}, {"tta": "mirror"}, {"batch": 0}):
        with pytest.raises(
            UserError, match=r"must be more than 0|must be none or flip or full|auto or a number from 1"
        ):
            dinounet.load(run, **wrong)


def test_arrays_tensors_and_pictures_are_the_same_image(run: Path, picture: np.ndarray) -> None:
    predictor = dinounet.load(run)
    expected = predictor.predict(picture)
    for image in (
        torch.from_numpy(picture.copy()),
        torch.from_numpy(picture.copy()).double(),
        Image.fromarray(picture),
    ):
        np.testing.assert_array_equal(predictor.predict(image), expected)
    for wrong, message in (
        (Image.fromarray(np.stack([picture] * 3, -1)), r"the picture has 3 channels, but 1 are expected \(MR\)"),
        (Image.fromarray(picture).convert("P"), "the picture has a palette; convert it"),
        (np.array(["a"]), "an image can't be an array of <U1; give an array of integers or floats"),
        (7, "an image can't be a int; give a path"),
        (np.zeros((0, 5)), r"the array has shape \(0, 5\)"),
    ):
        with pytest.raises(DataError, match=message):
            predictor.predict(wrong)


def test_extra_outputs_lie_in_folders_beside_the_masks(png: Path, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dinounet.predict(runs, [png / "imagesTs"], out, tta="flip", probabilities=True, uncertainty=True, overlay=True)
    masks = sorted(path.name for path in out.iterdir())
    assert masks == ["case_6.png", "case_7.png", "overlays", "prediction.json", "probabilities", "uncertainty"]
    with np.load(out / "probabilities" / "case_6.npz", allow_pickle=False) as file:
        probabilities = file["probabilities"]
    mask = np.asarray(Image.open(out / "case_6.png"))
    assert (probabilities.shape, probabilities.dtype) == ((3, 1, *mask.shape), np.float16)
    top = np.sort(probabilities.astype(np.float32), axis=0)
    clear = (top[-1] - top[-2])[0] > 2e-3
    np.testing.assert_array_equal(probabilities.argmax(0)[0][clear], mask[clear])
    for name in ("entropy", "disagreement"):
        values = tifffile.imread(out / "uncertainty" / f"case_6_{name}.tif")
        assert (values.shape, values.dtype) == (mask.shape, np.float32)
        assert 0 <= values.min() <= values.max() <= 1
    overlay = np.asarray(Image.open(out / "overlays" / "case_6.png"))
    assert overlay.shape == (*mask.shape, 3)
    record = json.loads((out / "prediction.json").read_text())
    assert (len(record["models"]), record["tta"], record["images"]) == (2, "flip", 2)
    assert record["seconds"] > 0
    metrics = dinounet.evaluate(out, png / "labelsTs")  # a folder of masks all the same
    assert [case.case for case in metrics.cases] == ["case_6", "case_7"]


def test_of_a_volume_they_lie_on_its_grid(tmp_path: Path) -> None:
    data = write_nifti_dataset(tmp_path / "volumes")
    plan = Plan(plan_data(read_dataset(data), (64, 64)), planned(num_classes=3), Recipe(steps=1, augmentation="none"))
    write_json(tmp_path / "plan.json", plan)
    run = dinounet.train(data, tmp_path / "run", plan=tmp_path / "plan.json", weights="random", report=False)
    scan = data / "imagesTr" / "case_0_0000.nii.gz"
    dinounet.predict(run, [scan], tmp_path / "out", probabilities=True, uncertainty=True, overlay=True)
    image = sitk.ReadImage(str(scan))
    entropy = sitk.ReadImage(str(tmp_path / "out" / "uncertainty" / "case_0_entropy.nii.gz"))
    assert entropy.GetPixelID() == sitk.sitkFloat32
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(entropy, get)(), getattr(image, get)(), atol=1e-5)
    with np.load(tmp_path / "out" / "probabilities" / "case_0.npz", allow_pickle=False) as file:
        assert file["probabilities"].shape == (3, *image.GetSize()[::-1])
    with Image.open(tmp_path / "out" / "overlays" / "case_0.png") as overlay:
        assert overlay.mode == "RGB"


def test_large_arrays_lie_on_the_disk_until_they_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinounet.inference.outputs.IN_MEMORY", 100)
    with allocated(tmp_path) as make:
        large, small = make((3, 2, 10, 10), np.float16), make((5,), np.float16)
        assert isinstance(large, np.memmap) and not isinstance(small, np.memmap)
        large[:] = np.random.RandomState(0).rand(*large.shape)
        from dinounet.data.layouts import Case

        Outputs(tmp_path, {"a": ".png"})._write_probabilities(Case("a", ()), large)
        kept = np.array(large)
    assert [path.name for path in tmp_path.iterdir()] == ["probabilities"]
    np.testing.assert_array_equal(np.load(tmp_path / "probabilities" / "a.npz")["probabilities"], kept)


def many(png: Path, folder: Path, count: int) -> Path:
    folder.mkdir()
    content = (png / "imagesTs" / "case_6_0000.png").read_bytes()
    for index in range(count):
        (folder / f"{index:05}.png").write_bytes(content)
    return folder


def test_the_same_command_goes_on(png: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out = many(png, tmp_path / "images", 5), tmp_path / "out"
    write = Outputs.write

    def stop(self: Outputs, case: object, *rest: object) -> Path:
        if case.name == "00003":
            raise KeyboardInterrupt
        return write(self, case, *rest)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped; the same command goes on with"):
        patch.setattr(Outputs, "write", stop)
        dinounet.predict(run, [images], out)
    assert "00003.png" not in [path.name for path in out.glob("*.png")]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert len(dinounet.predict(run, [images], out)) == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.glob("*.png"))) == 5
    dinounet.predict(run, [images], out, overwrite=True)
    assert all(path.stat().st_mtime_ns > moment for path, moment in before.items())


def test_masks_that_were_made_otherwise_are_not_added_to(png: Path, runs: Path, tmp_path: Path) -> None:
    images, out = many(png, tmp_path / "images", 2), tmp_path / "out"
    dinounet.predict(runs / "run_0", [images / "00000.png"], out)
    with pytest.raises(
        ConfigError, match=r"holds masks that were predicted differently \(by .*run_0\); give another fol"
    ):
        dinounet.predict(runs / "run_1", [images], out)
    with pytest.raises(ConfigError, match=r"predicted differently \(tta none, and now flip\)"):
        dinounet.predict(runs / "run_0", [images], out, tta="flip")
    with pytest.raises(ConfigError, match=r"masks of other cases that were predicted differently .*: 00000\.png"):
        dinounet.predict(runs / "run_1", [images / "00001.png"], out, overwrite=True)
    dinounet.predict(runs / "run_1", [images], out, overwrite=True)
    assert json.loads((out / "prediction.json").read_text())["models"][0]["run"].endswith("run_1")


def test_what_fails_is_listed_and_tried_again(png: Path, run: Path, tmp_path: Path) -> None:
    images, out = many(png, tmp_path / "images", 30), tmp_path / "out"
    whole = (images / "00000.png").read_bytes()
    for index in range(12):
        (images / f"{index:05}.png").write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"12 of 30 images could not be predicted: .*; and 2 more$"):
        dinounet.predict(run, [images], out)
    assert len(json.loads((out / "failed.json").read_text())) == 12
    assert len(list(out.glob("*.png"))) == 18
    for index in range(12):
        (images / f"{index:05}.png").write_bytes(whole)
    dinounet.predict(run, [images], out)
    assert not (out / "failed.json").exists()
    assert len(list(out.glob("*.png"))) == 30


def test_processes_share_a_folder_and_one_of_them_tells_what_failed(png: Path, run: Path, tmp_path: Path) -> None:
    images, out = many(png, tmp_path / "images", 7), tmp_path / "out"
    (images / "00003.png").write_text("hello")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dinounet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "predict", str(run), str(images), "-o", str(out), "--device", "cpu"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("dinounet: 1 of 7 images could not be predicted") == 1
    assert len(list(out.glob("*.png"))) == 6
    assert list(json.loads((out / "failed.json").read_text())) == ["00003"]
    assert json.loads((out / "prediction.json").read_text())["images"] == 6
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert max(line["done"] for line in lines if line["event"] == "predicting") <= 7
    alone = dinounet.load(run, device="cpu").predict(images / "00000.png")
    np.testing.assert_array_equal(np.asarray(Image.open(out / "00005.png")), alone)


def test_patterns_stand_for_what_they_fit(png: Path, run: Path, tmp_path: Path) -> None:
    images = many(png, tmp_path / "images", 3)
    assert len(dinounet.predict(run, [images / "0000[12].png"], tmp_path / "out")) == 2
    with pytest.raises(DataError, match=r"nothing matches .*\*\.tif; name images"):
        dinounet.predict(run, [images / "*.tif"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_masks_never_go_among_the_images(png: Path, run: Path, tmp_path: Path) -> None:
    images = many(png, tmp_path / "images", 1)
    for out in (images, images / "masks"):
        with pytest.raises(UserError, match=r"images.*; give the predictions a place outside of it with -o"):
            dinounet.predict(run, [images], out)
    assert [path.name for path in images.iterdir()] == ["00000.png"]


def test_another_kind_of_image_is_refused(run: Path) -> None:
    predictor = dinounet.load(run)
    plan = predictor.plan.data
    space = Geometry((1.0, 1.0, 1.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))

    def as_kind(name: str, rule: str, image: np.ndarray, modality: str | None = None) -> None:
        channel = replace(plan.channels[0], name=name, normalisation=rule, imagenet=(0.5, 0.2))
        predictor.plan = replace(predictor.plan, data=replace(plan, channels=(channel,)))
        predictor.predict_volume(Volume(image[None], space, Path("scan"), modality))

    grey = np.random.RandomState(0).randint(0, 255, (1, 20, 20))
    with pytest.raises(DataError, match="scan was taken by MR, but the run was trained on CT; use a run that"):
        as_kind("CT", "ct", grey.astype(np.int16), "MR")
    with pytest.raises(
        DataError, match="scan holds grey levels of 8 bits, but the run was trained on CT in Hounsfield"
    ):
        as_kind("CT", "ct", grey.astype(np.uint8))
    with pytest.raises(
        DataError, match=r"holds .* in the channel grey, but colours go from 0 to 255; convert it to 8 b"
    ):
        as_kind("grey", "rgb", grey.astype(np.uint16) * 257)
    as_kind("CT", "ct", grey.astype(np.int16), "CT")
    as_kind("anything", "zscore", grey.astype(np.uint16) * 257, "MR")


FLAT_TYPES = [
    ("a.png", np.uint8, 1), ("a.png", np.uint8, 3), ("a.png", np.uint16, 1), ("a.jpg", np.uint8, 3),
    ("a.tif", np.uint8, 3), ("a.tif", np.uint16, 3), ("a.tif", np.int16, 1), ("a.tif", np.float32, 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype", "channels"), FLAT_TYPES)
def test_rows_of_a_file_are_those_of_the_whole(name: str, dtype: type, channels: int, tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    pixels = random.randint(0, 250, (300, 70, channels) if channels > 1 else (300, 70)).astype(dtype)
    path = tmp_path / name
    if name.endswith(".tif"):
        tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib")
    else:
        Image.fromarray(pixels).save(path)
    whole, rows = open_image([path], 1 << 40).array, open_image([path], 0).array
    assert isinstance(rows, LazyRows)
    assert (rows.shape, rows.dtype) == (whole.shape, whole.dtype)
    for first, last in ((0, 64), (32, 96), (200, 264), (263, 300), (299, 400), (10, 20), (0, 300)):
        np.testing.assert_array_equal(rows[..., 0, first:last, :], whole[:, 0, first:last])


def test_what_is_not_plain_is_read_whole(tmp_path: Path) -> None:
    grey = np.random.RandomState(0).randint(0, 255, (20, 30)).astype(np.uint8)
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([grey, grey]))
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    Image.fromarray(grey).save(tmp_path / "a.bmp")
    for path in sorted(tmp_path.iterdir()):
        assert isinstance(open_image([path], 0).array, np.ndarray), path.name


def test_a_large_picture_is_predicted_from_its_file_as_from_memory(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.RandomState(0).randint(0, 255, (300, 200)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = dinounet.load(run).predict(tmp_path / "a.png")
    monkeypatch.setattr(inputs, "MOST_HELD", 0)
    predictor = dinounet.load(run)
    assert isinstance(predictor.read([tmp_path / "a.png"]).array, LazyRows)
    np.testing.assert_array_equal(predictor.predict(tmp_path / "a.png"), whole)
    cut = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DataError, match=r"a\.png can't be read as an image \(.*\); is it whole\?"):
        predictor.predict(tmp_path / "a.png")


def test_working_ahead_ends_with_its_user_and_passes_errors_on() -> None:
    made = []

    def numbers() -> object:
        for number in range(100):
            made.append(number)
            yield number
        raise ValueError("at the end")

    some = prefetch(numbers(), 2)
    assert [next(some) for _ in range(3)] == [0, 1, 2]
    some.close()
    assert len(made) <= 7
    with pytest.raises(ValueError, match="at the end"):
        list(prefetch(numbers(), 2))


def test_memory_that_runs_out_halves_the_batch(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = of_volumes(slope(run))
    sizes: list[int] = []

    def forward(self: Slope, tiles: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tiles))
        if len(tiles) > 5:
            raise torch.OutOfMemoryError
        return torch.stack([tiles[:, 0], -tiles[:, 0], tiles[:, 0] * 2], 1)

    image = np.random.RandomState(0).normal(size=(1, 64, 64, 64)).astype(np.float32)
    monkeypatch.setattr(Slope, "forward", forward)
    found = predictor.predict(image)
    assert max(sizes) == 64 and sorted({*sizes})[:1] == [4]
    np.testing.assert_array_equal(found, np.where(image[0] > image.mean(), 2, 1))
    monkeypatch.setattr(Slope, "forward", lambda self, tiles: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(UserError, match="1 tiles of 64 x 64 pixels don't fit into the memory of cpu"):
        predictor.predict(image)
