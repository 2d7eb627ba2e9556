"""Regions and the ignore label, from the dataset to the metrics."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from PIL import Image
from sklearn.metrics import f1_score

import dinounet
from datasets import describe, write_png_dataset
from dinounet.data.arrays import to_classes, to_targets
from dinounet.data.cache import build_cache
from dinounet.data.dataset import read_dataset
from dinounet.data.patches import PatchDataset
from dinounet.distributed import DistributedContext
from dinounet.errors import ConfigError, DataError
from dinounet.evaluation.evaluate import evaluate_folders
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.reporting.case_images import make_pictures
from dinounet.schema.labels import IGNORED, Labels, Region
from dinounet.schema.plan import DataPlan, Plan, read_plan
from dinounet.schema.recipe import Recipe
from dinounet.training.step import make_loss
from dinounet.training.validation import validate
from networks import planned

REGIONS = {"background": 0, "whole": [1, 2], "square": 2}
IGNORE = {"background": 0, "disc": 1, "square": 2, "ignore": 3}


def dataset_of(root: Path, labels: dict, order: list | None = None, ignored: bool = False) -> Path:
    """The pictures with other labels; if asked, a rectangle of every mask is ignored."""
    data = write_png_dataset(root)
    describe(data, ".png", labels=labels)
    path = data / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ({"regions_class_order": order} if order else {})))
    for mask in [*(data / "labelsTr").iterdir(), *(data / "labelsTs").iterdir()] if ignored else []:
        pixels = np.array(Image.open(mask))
        pixels[:, 50:] = labels["ignore"]
        Image.fromarray(pixels).save(mask)
    return data


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regions and an ignore label."""
    return dataset_of(tmp_path_factory.mktemp("data") / "both", {**REGIONS, "ignore": 3}, [1, 2], ignored=True)


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> DataPlan:
    return plan_data(read_dataset(dataset_of(tmp_path_factory.mktemp("data") / "regions", REGIONS, [1, 2])), (64, 64))


@pytest.fixture(scope="module")
def ignoring(tmp_path_factory: pytest.TempPathFactory) -> DataPlan:
    return plan_data(read_dataset(dataset_of(tmp_path_factory.mktemp("data") / "x", IGNORE, ignored=True)), (64, 64))


def test_dataset_json_tells_regions_and_ignore_label(both: Path, tmp_path: Path) -> None:
    dataset = read_dataset(both)
    assert dataset.labels.classes == {"background": 0, "label 1": 1, "square": 2}
    assert dataset.labels.regions == (Region("whole", (1, 2), 1), Region("square", (2,), 2))
    assert dataset.labels.ignore == 3
    plan = Plan(plan_data(dataset), planned(num_classes=2), Recipe())
    pixels = [np.asarray(Image.open(path)) for path in (both / "labelsTr").iterdir()]
    counts = {name: sum((p == label).sum() for p in pixels) for name, label in dataset.labels.classes.items()}
    assert plan.data.fingerprint.label_pixels == counts | {"ignore": 6 * 72 * 30}
    write_json(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    with pytest.raises(ConfigError, match="num_classes is 3 but data names 2 regions"):
        Plan(plan.data, planned(num_classes=3), Recipe())


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"background": 0, "whole": [1, 2]}, None, "regions whole and regions_class_order None, which must be a list"),
        (REGIONS, [1], "must be a list of one number for each"),
        (REGIONS, [1, 1], r"square is written as 1, which must be one of its own labels \[2\]"),
        ({"background": 0, "whole": [1, 3]}, [1], "without gaps, ignore last"),
        ({"background": 0, "whole": [0, 1]}, [1], "without the background"),
        ({"background": 0, "disc": 1, "ignore": 1}, None, "1 is the ignore label and a class too"),
        ({"background": 0, "ignore": 1, "disc": 2}, None, "ignore last"),
        ({"background": 0, "disc": "one"}, None, "disc = 'one' among its labels"),
    ],
)
def test_labels_that_contradict_each_other_are_told(tmp_path: Path, labels: dict, order: list, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_dataset(dataset_of(tmp_path / "data", labels, order))
    assert "dataset.json" in str(error.value)


def test_plain_masks_may_name_an_ignore_label(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((40, 40), np.uint8)
    mask[5:10], mask[30:] = 7, 255
    image = np.where(mask == 7, 50, 200).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    dataset = read_dataset(tmp_path, {"background": 0, "lesion": 7, "ignore": 255})
    assert (dataset.labels.classes, dataset.labels.ignore) == ({"background": 0, "lesion": 7}, 255)
    plan = plan_data(dataset)
    assert plan.channels[0].intensities.mean == 50  # nothing from ignored pixels
    (case,) = build_cache(dataset.cases, plan, tmp_path / "cache")
    assert np.unique(case.mask).tolist() == [0, 1, IGNORED]
    assert list(case.places) == [1]
    # also patches from anywhere lie on what somebody has judged, as in nnU-Net: nothing else teaches anything
    patches = PatchDataset([case], (4, 4), batch_size=1, foreground_fraction=0.0, augmentation="none", seed=0)
    centres = [patches._centre(case, on_foreground=False) for _ in range(200)]
    assert all(case.mask[centre] != IGNORED for centre in centres)
    assert len(set(centres)) > 10
    with pytest.raises(ConfigError, match="one class at least"):
        read_dataset(tmp_path, {"background": 0, "ignore": 255})


def test_targets_and_classes_by_hand(regions: DataPlan) -> None:
    mask = torch.tensor([[[0, 1, 2]]])
    target, known = to_targets(mask, regions)
    assert target.tolist() == [[[[0, 1, 1]], [[0, 0, 1]]]]
    assert known.all()
    logits = torch.tensor([[[[-1.0, 2.0, 2.0, -1.0]], [[-1.0, -3.0, 1.0, 1.0]]]])
    assert to_classes(logits, regions).tolist() == [[[0, 1, 2, 2]]]  # the later region lies over the earlier one


def test_loss_of_regions_is_monais_dice_plus_binary_cross_entropy(regions: DataPlan) -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 2, 8, 8), torch.randint(0, 3, (2, 8, 8))
    target = torch.stack([mask > 0, mask == 2], 1).float()
    dice = DiceLoss(sigmoid=True, batch=True)(logits, target)
    expected = dice + F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(make_loss(regions)(logits, mask), expected)


def test_loss_with_an_ignored_rectangle_is_the_loss_of_the_rest(ignoring: DataPlan) -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    rest = make_loss()(logits[..., :5], mask[..., :5])
    mask[..., 5:] = IGNORED
    torch.testing.assert_close(make_loss(ignoring)(logits, mask), rest)


def test_regions_and_ignored_pixels_go_together(both: Path, regions: DataPlan) -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 2, 8, 8), torch.randint(0, 3, (2, 8, 8))
    rest = make_loss(regions)(logits[..., :5], mask[..., :5])
    mask[..., 5:] = IGNORED
    torch.testing.assert_close(make_loss(plan_data(read_dataset(both)))(logits, mask), rest)


def test_a_batch_without_a_known_pixel_teaches_nothing(both: Path, ignoring: DataPlan) -> None:
    for plan, outputs in ((ignoring, 3), (plan_data(read_dataset(both)), 2)):
        logits = torch.randn(2, outputs, 8, 8, requires_grad=True)
        loss = make_loss(plan)(logits, torch.full((2, 8, 8), IGNORED))
        loss.backward()
        assert loss.item() == 0
        assert not logits.grad.any() and logits.grad.isfinite().all()


def test_validation_dice_is_scikit_learns_over_known_pixels(both: Path) -> None:
    torch.manual_seed(0)
    plan = Plan(plan_data(read_dataset(both)), planned(num_classes=2), Recipe())
    network, image = torch.nn.Conv2d(1, 2, 3, padding=1), torch.randn(2, 1, 16, 16)
    mask = torch.randint(0, 3, (2, 16, 16))
    mask[:, :4] = IGNORED
    numbers, _ = validate(DistributedContext("cpu", "fp32"), network, make_loss(plan.data), [(image, mask)], plan)
    found = numbers["validation_dice"]
    logits = network(image)
    classes = torch.where(logits[:, 1] > 0, 2, torch.where(logits[:, 0] > 0, 1, 0))[:, 4:].flatten()
    truth = mask[:, 4:].flatten()
    assert found["whole"] == pytest.approx(f1_score(truth > 0, classes > 0), abs=1e-5)
    assert found["square"] == pytest.approx(f1_score(truth == 2, classes == 2), abs=1e-5)


def test_evaluation_joins_regions_and_leaves_out_what_the_truth_ignores(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("predictions", "truth", "images")}
    truth = np.repeat(np.array([[0, 1, 1, 2, 3, 3]], np.uint8), 4, axis=0)
    predicted = np.repeat(np.array([[0, 0, 2, 2, 1, 0]], np.uint8), 4, axis=0)
    for name, pixels in (("predictions", predicted), ("truth", truth), ("images", truth)):
        folders[name].mkdir()
        Image.fromarray(pixels).save(folders[name] / "a.png")
    labels = {"background": 0, "label 1": 1, "square": 2}
    regions = (Region("whole", (1, 2), 1), Region("square", (2,), 2))
    pair = folders["predictions"], folders["truth"]
    metrics = evaluate_folders(*pair, Labels(labels, regions, 3))
    found = metrics.cases[0]
    assert found.classes["whole"].dice == pytest.approx(2 * 2 / (3 + 2))
    assert found.classes["square"].dice == pytest.approx(2 * 1 / (1 + 2))
    assert found.ignored_pixels == metrics.ignored_pixels == 8
    errors = make_pictures(metrics, **folders)[0].panels[3].text
    assert "4 pixels there, missed" in errors and "4 pixels taken for another class" in errors
    assert "predicted, not there" not in errors
    with pytest.raises(DataError, match=r"predictions/a\.png holds the values 3"):
        Image.fromarray(truth).save(folders["predictions"] / "a.png")
        evaluate_folders(*pair, Labels(labels, regions, 3))


@pytest.mark.slow
def test_from_training_to_report(both: Path, tmp_path: Path) -> None:
    recipe = Recipe(steps=4, eval_interval=2, warmup=1)
    write_json(tmp_path / "plan.json", Plan(plan_data(read_dataset(both), (64, 64)), planned(num_classes=2), recipe))
    run = dinounet.train(
        both, tmp_path / "run", plan=tmp_path / "plan.json", weights="random", device="cpu", report=False
    )
    watched = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if "validation_dice" in line]
    assert set(watched[-1]["validation_dice"]) <= {"whole", "square"}

    masks = tmp_path / "masks"
    for path in dinounet.predict(run, [both / "imagesTs"], masks):
        assert set(np.unique(Image.open(path))) <= {0, 1, 2}
    metrics = dinounet.evaluate(masks, both / "labelsTs")  # as prediction.json tells
    assert list(metrics.mean_over_cases) == ["whole", "square"]
    assert (metrics.labels.ignore, metrics.ignored_pixels) == (3, 2 * 72 * 30)
    (masks / "prediction.json").unlink()
    again = dinounet.evaluate(masks, both / "labelsTs")  # as dataset.json tells, which knows of no training
    assert (again.cases, again.mean_over_cases) == (metrics.cases, metrics.mean_over_cases)
    assert set(metrics.left_out) == {"square"}, "it lies where nobody has judged: no training case holds it"
    assert not again.left_out
    page = dinounet.report(masks, both / "labelsTs", tmp_path / "report.html", images=both / "imagesTs", run=run)
    assert "whole" in page.read_text()


def test_foreground_is_what_is_neither_background_nor_ignored() -> None:
    known = Labels({"background": 0, "lesion": 7}, None, 255)
    assert known.foreground == {"lesion": (7,)}
    assert known.with_ignore == {"background": 0, "lesion": 7, "ignore": 255}
