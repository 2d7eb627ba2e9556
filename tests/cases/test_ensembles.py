"""Networks that predict together are matched by the names of their classes, or refused in a sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinounet
from datasets import write_png_dataset
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError
from dinounet.planning.data_plan import plan_data
from dinounet.schema.labels import Labels, Region
from dinounet.schema.plan import DataPlan
from untrained import write_run

SQUARE_FIRST = {"background": 0, "square": 2, "disc": 1}
OTHER_NUMBERS = {"background": 0, "square": 1, "disc": 2}
REGIONS = (Region("all", (1, 2), 1), Region("square", (2,), 2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataPlan:
    """Whose classes are background, disc (1) and square (2)."""
    folder = write_png_dataset(tmp_path_factory.mktemp("ensembles") / "pictures", cases=1, size=(40, 48))
    return plan_data(read_dataset(folder), (32, 32))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def relabelled(data: DataPlan, labels: dict[str, int], regions: tuple[Region, ...] | None = None) -> DataPlan:
    return replace(data, labels=Labels(labels, regions))


def proba(run: Path, image: Path) -> np.ndarray:
    return dinounet.load(run, device="cpu").predict_proba(image).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [SQUARE_FIRST, OTHER_NUMBERS])
def test_classes_are_averaged_by_name(data: DataPlan, image: Path, tmp_path: Path, labels: dict[str, int]) -> None:
    first = write_run(tmp_path / "first", data, seed=0)
    second = write_run(tmp_path / "second", relabelled(data, labels), seed=1)
    mean = (proba(first, image) + proba(second, image)[[0, 2, 1]]) / 2  # background, square, disc: by hand
    both = dinounet.load([first, second], device="cpu")
    np.testing.assert_allclose(both.predict_proba(image), mean, atol=1e-3)
    clear = np.sort(mean, 0)[-1] - np.sort(mean, 0)[-2] > 5e-3
    found = both.predict(image)
    np.testing.assert_array_equal(found[clear], mean.argmax(0)[clear])
    assert len(np.unique(found)) == 3
    assert main(["predict", str(first), str(image), "-o", str(tmp_path / "o"), "--also", str(second)]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o" / "a.png")), found)
    assert both.labels == {"background": 0, "disc": 1, "square": 2}
    turned = dinounet.load([second, first], device="cpu")
    assert turned.labels == labels
    numbers = np.array([0, labels["disc"], labels["square"]], np.uint8)
    np.testing.assert_array_equal(turned.predict(image)[clear], numbers[found][clear])


def test_regions_are_averaged_by_name(data: DataPlan, image: Path, tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", relabelled(data, data.labels.classes, REGIONS), seed=0)
    turned = (Region("square", (1,), 1), Region("all", (1, 2), 2))
    second = write_run(tmp_path / "second", relabelled(data, OTHER_NUMBERS, turned), seed=1)
    mean = (proba(first, image) + proba(second, image)[::-1]) / 2
    both = dinounet.load([first, second], device="cpu")
    np.testing.assert_allclose(both.predict_proba(image), mean, atol=1e-3)


def test_what_can_not_be_matched_is_refused(data: DataPlan, image: Path, tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", data)
    of_regions = write_run(tmp_path / "regions", relabelled(data, data.labels.classes, REGIONS))
    fewer = (Region("all", (2,), 2), Region("square", (2,), 2))
    wrong = {
        write_run(tmp_path / "names", relabelled(data, {"background": 0, "disc": 1, "ring": 2})): first,
        write_run(tmp_path / "more", relabelled(data, data.labels.classes | {"ring": 3})): first,
        of_regions: first,
        write_run(tmp_path / "fewer", relabelled(data, data.labels.classes, fewer)): of_regions,
    }
    told = [
        r"outputs are \(background=0, disc=1, ring=2\) and \(background=0, disc=1, square=2\); train them by one plan",
        r"outputs are \(background=0, disc=1, square=2, ring=3\) and ",
        r"with regions \(all of disc, square; square of square\) and \(background=0, disc=1, square=2\);",
        r"with regions \(all of square; square of square\) and .* \(all of disc, square; square of square\)",
    ]
    for (other, beside), message in zip(wrong.items(), told, strict=True):
        with pytest.raises(ConfigError, match=message):
            dinounet.load([beside, other], device="cpu")


def test_channels_in_another_order_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_png_dataset(tmp_path / "rgb", cases=1, size=(40, 48), channels=3)
    data = plan_data(read_dataset(folder), (32, 32))
    data = replace(data, channels=tuple(replace(one, normalisation="zscore", imagenet=None) for one in data.channels))
    first = write_run(tmp_path / "first", data)
    second = write_run(tmp_path / "second", replace(data, channels=data.channels[::-1]))
    with pytest.raises(ConfigError, match="their channels are B, G, R and R, G, B; train them by one plan"):
        dinounet.load([first, second])


@pytest.mark.parametrize(
    ("format", "labels"), [("bundle", SQUARE_FIRST), ("onnx", SQUARE_FIRST), ("nnunet", OTHER_NUMBERS)]
)
@pytest.mark.slow
def test_what_tells_its_classes_once_holds_no_two_orders(
    data: DataPlan, tmp_path: Path, format: str, labels: dict[str, int]
) -> None:
    runs = [
        write_run(tmp_path / "runs" / "0", data, seed=0),
        write_run(tmp_path / "runs" / "1", relabelled(data, labels), seed=1),
    ]
    with pytest.raises(ConfigError, match="can't be exported together: they number their classes otherwise"):
        dinounet.export(runs, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_postprocessing_that_runs_agree_on_goes_by_name(data: DataPlan, image: Path, tmp_path: Path) -> None:
    """Of one run the disc is class 1, of the other class 2; both keep the disc's largest component."""
    first = write_run(tmp_path / "first", data, seed=0)
    second = write_run(tmp_path / "second", relabelled(data, OTHER_NUMBERS), seed=1)
    for run in (first, second):
        (run / "postprocessing.json").write_text('{"classes": {"disc": {"keep_largest": true}}}')
    plain = dinounet.load([first, second], device="cpu", postprocessing="none").predict(image)
    found = dinounet.load([first, second], device="cpu").predict(image)
    from scipy import ndimage

    components, count = ndimage.label(plain == 1, np.ones((3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    assert count > 1 and (found == 1).sum() == sizes.max() * (sizes == sizes.max()).sum()
    np.testing.assert_array_equal(found == 2, plain == 2)
