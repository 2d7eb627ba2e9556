"""What is written beside a mask never changes the mask, and what changes it keeps a folder from holding both."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

import dinounet
from datasets import volume, write_png_dataset
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.data.preprocessing import measure_channels
from dinounet.errors import ConfigError
from dinounet.inference.predictor import Predictor
from dinounet.planning.data_plan import plan_data
from dinounet.schema.labels import Region
from dinounet.schema.plan import DataPlan
from untrained import write_run

OUTPUTS = [
    ["--uncertainty"],
    ["--format", ".nrrd"],
    ["--probabilities", "--uncertainty", "--overlay"],
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, two of regions, and images larger than a tile."""
    root = tmp_path_factory.mktemp("beside")
    data = plan_data(read_dataset(write_png_dataset(root / "pictures", cases=2, size=(40, 48))), (32, 32))
    regions = (Region("all", (1, 2), 1), Region("square", (2,), 2))
    of_regions = replace(data, labels=replace(data.labels, regions=regions))
    for seed in (0, 1):
        write_run(root / "runs" / str(seed), data, seed=seed)
        write_run(root / "regions" / str(seed), of_regions, seed=seed)
    (root / "images").mkdir()
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 255, (40, 50)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def data(place: Path) -> DataPlan:
    return dinounet.load(place / "runs" / "0", device="cpu").plan.data


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    """By other readers than ours."""
    found = {path.stem: np.asarray(Image.open(path)) for path in folder.glob("*.png")}
    for path in [*folder.glob("*.nii.gz"), *folder.glob("*.nrrd")]:
        found[path.name.partition(".")[0]] = np.squeeze(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "tta"),
    [
        ("runs/0", "none"),
        ("runs/0", "flip"),
        ("runs/0", "full"),
        ("runs", "flip"),
        ("regions/0", "flip"),
        ("regions", "none"),
    ],
)
def test_no_output_beside_a_mask_changes_it(place: Path, tmp_path: Path, model: str, tta: str) -> None:
    words = ["predict", str(place / model), str(place / "images" / "a.png"), "--device", "cpu", "--tta", tta]
    assert main([*words, "-o", str(tmp_path / "alone")]) == 0
    alone = masks_in(tmp_path / "alone")
    assert len(alone) == 1 and len(np.unique(alone["a"])) == 3
    tried = OUTPUTS if (model, tta) == ("runs/0", "flip") else OUTPUTS[-1:]
    for number, more in enumerate(tried):
        assert main([*words, "-o", str(tmp_path / str(number)), *more]) == 0
        beside = masks_in(tmp_path / str(number))
        assert beside.keys() == alone.keys()
        for name, mask in alone.items():
            np.testing.assert_array_equal(beside[name], mask, err_msg=f"{name} with {more}")


def test_the_mask_is_of_the_mean_of_logits_as_nnunets(place: Path, tmp_path: Path) -> None:
    """By PyTorch's own flips of an image that is one tile; and probabilities are the same beside uncertainty."""
    pixels = np.random.default_rng(5).integers(0, 255, (32, 32)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    network = dinounet.load(place / "runs" / "0", device="cpu", precision="fp32").networks[0]
    image = torch.from_numpy((pixels - pixels.mean()) / pixels.std()).float()[None, None]
    with torch.inference_mode():
        logits = [network(image.flip(axes)).flip(axes)[0] for axes in ((), (-2,), (-1,), (-2, -1))]
    mean = torch.stack(logits).mean(0)
    other = torch.stack(logits).softmax(1).mean(0)  # which --uncertainty took for the mask
    assert (mean.argmax(0) != other.argmax(0)).any()
    words = ["predict", str(place / "runs" / "0"), str(tmp_path / "a.png"), "--device", "cpu", "--tta", "flip"]
    words += ["--precision", "fp32", "--probabilities"]
    clear = (mean.sort(0).values[-1] - mean.sort(0).values[-2] > 1e-2).numpy()
    found = []
    for more in ([], ["--uncertainty"]):
        out = tmp_path / f"out{len(more)}"
        assert main([*words, "-o", str(out), *more]) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(out / "a.png"))[clear], mean.argmax(0).numpy()[clear])
        found.append(np.load(out / "probabilities" / "a.npz")["probabilities"])
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0][:, 0], mean.softmax(0).numpy(), atol=2e-3)


class InNumpy:
    """An engine whose logits are NumPy's, as onnxruntime's are."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.networks, self.device, self.precision = engine.networks, engine.device, engine.precision

    def to_device(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def forward(self, network: Any, tiles: np.ndarray) -> np.ndarray:
        return self.engine.forward(network, self.engine.to_device(np.ascontiguousarray(tiles))).numpy()

    def is_out_of_memory(self, error: Exception) -> bool:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("model", ["runs/0", "runs", "regions"])
def test_the_same_holds_where_logits_are_numpys(place: Path, model: str) -> None:
    from dinounet.inference.postprocessing import OutputOptions

    found = dinounet.load(place / model, device="cpu", tta="flip")
    predictor = Predictor(InNumpy(found.engine), found.plan, None, found.settings)
    image = predictor.read([place / "images" / "a.png"])
    alone = predictor.segment_volume(image)
    both = predictor.segment_volume(image, OutputOptions(probabilities=True, uncertainty=True))
    np.testing.assert_array_equal(both.labels, alone.labels)
    np.testing.assert_array_equal(alone.labels, found.segment_volume(image).labels)
    assert both.disagreement is not None and both.disagreement.max() > 0.01


def test_a_volume_that_is_read_plane_by_plane_has_the_same_mask(
    place: Path, data: DataPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mean and deviation are sums: they must be the same to the bit, also where a plane is more than one block."""
    monkeypatch.setattr("dinounet.data.preprocessing.BLOCK", 1000)
    run = write_run(tmp_path / "run", replace(data, file_ending=".nii.gz", spacing=None))
    array = np.random.default_rng(0).normal(1e4, 1, (5, 70, 90)).astype(np.float32)
    sitk.WriteImage(volume(array), str(tmp_path / "scan.nii.gz"))
    predictor = dinounet.load(run, device="cpu")
    whole = predictor.read([tmp_path / "scan.nii.gz"])
    channels = predictor.plan.data.channels
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"available": 1}))
    stored = predictor.read([tmp_path / "scan.nii.gz"])
    assert isinstance(whole.array, np.ndarray) and not isinstance(stored.array, np.ndarray)
    assert measure_channels(stored, channels) == measure_channels(whole, channels)


def run_of(place: Path, tmp_path: Path, change: Any) -> Path:
    """The first run, whose record was changed by hand."""
    import shutil

    copied = Path(shutil.copytree(place / "runs" / "0", tmp_path / "edited"))
    record = json.loads((copied / "run.json").read_text())
    change(record["plan"])
    (copied / "run.json").write_text(json.dumps(record))
    return copied


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--tta", "flip"], "tta none, and now flip"),
        (["--step", "0.4"], "step 0.5, and now 0.4"),
        (["--precision", "bf16"], "precision fp32, and now bf16"),
        (["--postprocessing", "post.json"], "postprocessing none, and now disc: largest component kept"),
        (["--format", ".nii.gz"], "holds masks of the same images in another format (a.png)"),
        (["--also", "OTHER"], "by "),
    ],
)
def test_what_changes_a_mask_is_not_mixed_with_others(
    place: Path, tmp_path: Path, more: list[str], told: str, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("post.json").write_text('{"classes": {"disc": {"keep_largest": true}}}')
    more = [str(place / "runs" / "1") if word == "OTHER" else word for word in more]
    words = ["predict", str(place / "runs" / "0"), str(place / "images" / "a.png"), "-o", "out", "--device", "cpu"]
    assert main([*words, "--precision", "fp32"]) == 0
    before = Path("out", "a.png").read_bytes()
    capsys.readouterr()
    assert main([*words, *(["--precision", "fp32"] if "--precision" not in more else []), *more]) == 2
    message = capsys.readouterr().err
    assert told in message and message.count("\n") == 1
    assert Path("out", "a.png").read_bytes() == before
    assert main([*words, "--precision", "fp32", "--batch", "3", "--uncertainty"]) == 0  # which change none
    assert Path("out", "a.png").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["data"].update(patch=[24, 32]),
        lambda plan: plan["data"]["channels"][0].update(normalisation="rescale_to_0_1"),
    ],
)
@pytest.mark.slow
def test_an_edited_plan_is_another_prediction(place: Path, tmp_path: Path, change: Any) -> None:
    """The file of trained numbers is the same, and the masks are others."""
    image = place / "images" / "a.png"
    edited = run_of(place, tmp_path, change)
    first, other = (dinounet.load(run, device="cpu").predict(image) for run in (place / "runs" / "0", edited))
    assert (first != other).any()
    dinounet.predict(place / "runs" / "0", [image], tmp_path / "out", device="cpu")
    with pytest.raises(ConfigError, match=r"predicted differently \(another plan\); give another folder"):
        dinounet.predict(edited, [image], tmp_path / "out", device="cpu")


def test_a_bundle_goes_on_where_its_run_began(place: Path, tmp_path: Path) -> None:
    bundle = dinounet.export(place / "runs" / "0", tmp_path / "bundle")
    dinounet.predict(place / "runs" / "0", [place / "images" / "a.png"], tmp_path / "out", device="cpu")
    dinounet.predict(bundle, [place / "images"], tmp_path / "out", device="cpu")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("device", "cuda", "device cuda, and now cpu"),
        ("readers", 1, "readers of files 1, and now"),
        ("readers", None, "readers of files 1, and now"),  # a record of before it was written down
    ],
)
def test_a_folder_of_another_machine_or_reading_is_not_added_to(
    place: Path, tmp_path: Path, key: str, value: Any, told: str
) -> None:
    dinounet.predict(place / "runs" / "0", [place / "images" / "a.png"], tmp_path / "out", device="cpu")
    path = tmp_path / "out" / "prediction.json"
    record = json.loads(path.read_text())
    record = {name: held for name, held in record.items() if name != key} | ({} if value is None else {key: value})
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=told):
        dinounet.predict(place / "runs" / "0", [place / "images"], tmp_path / "out", device="cpu")


def test_a_mask_is_not_kept_for_another_image_of_the_same_name(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    shutil.copytree(place / "images", images)
    words = ["predict", str(place / "runs/0"), str(images), "-o", str(masks), "--device", "cpu"]
    assert main(words) == 0
    assert main(words) == 0, "the same command goes on"
    first = masks_in(masks)["a"]
    shutil.copy(images / "b.png", images / "a.png")
    assert main(words) == 2
    assert "images that have changed since, or of others of the same names (a)" in capsys.readouterr().err
    assert np.array_equal(masks_in(masks)["a"], first)
    assert main([*words, "--overwrite"]) == 0
    assert np.array_equal(masks_in(masks)["a"], masks_in(masks)["b"])
    assert main(words) == 0
