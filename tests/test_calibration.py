"""Reliability and calibration error against scikit-learn and by hand, and files that are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve

from dinounet.errors import DataError
from dinounet.evaluation import metrics as calibration
from dinounet.evaluation.evaluate import evaluate_folders
from dinounet.schema.labels import Labels, Region

LABELS = {"background": 0, "grey": 1, "white": 2}


def folders(root: Path, truth: np.ndarray, probabilities: dict[str, np.ndarray]) -> tuple[Path, Path]:
    """Predictions and truth; the masks don't matter."""
    for folder in ("truth", "predictions/probabilities"):
        (root / folder).mkdir(parents=True)
    (root / "predictions" / "prediction.json").write_text("{}")
    for case, array in probabilities.items():
        for folder in ("truth", "predictions"):
            Image.fromarray(truth).save(root / folder / f"{case}.png")
        np.savez_compressed(root / "predictions" / "probabilities" / f"{case}.npz", probabilities=array)
    return root / "predictions", root / "truth"


def softmax(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    raised = np.exp(2 * np.random.default_rng(seed).normal(size=shape))
    return (raised / raised.sum(axis=0)).astype(np.float16)


def expected(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Accuracy and mean confidence of the bins that hold some, and the calibration error."""
    confidence, right = confidence.ravel().astype(np.float64), right.ravel()
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    counts = np.histogram(-confidence, -np.linspace(0, 1, 16)[::-1])[0][::-1]  # closed at their upper ends
    weights = counts[counts > 0] / len(right)
    return accuracy, mean, float((weights * abs(accuracy - mean)).sum())


@pytest.fixture(params=[1 << 22, 1000])
def _pieces(request, monkeypatch):
    """Files are read at once, and in pieces that end amid a row."""
    monkeypatch.setattr(calibration, "AT_ONCE", request.param)


@pytest.mark.usefixtures("_pieces")
def test_classes_equal_scikit_learn(tmp_path):
    truth = np.random.default_rng(3).integers(0, 3, (60, 70), np.uint8)
    probabilities = {case: softmax(seed, (3, 1, 60, 70)) for seed, case in enumerate("ab")}
    metrics = evaluate_folders(*folders(tmp_path, truth, probabilities), LABELS)
    found = metrics.calibration
    joined = np.concatenate([array[:, 0] for array in probabilities.values()], axis=1)
    accuracy, mean, ece = expected(joined.max(axis=0), joined.argmax(axis=0) == np.concatenate([truth, truth]))
    filled = [one for one in found.bins if one.count]
    assert len(found.bins) == 15 and found.count == 2 * 60 * 70 == sum(one.count for one in found.bins)
    assert [one.accuracy for one in filled] == pytest.approx(accuracy)
    assert [one.confidence for one in filled] == pytest.approx(mean)
    assert found.ece == pytest.approx(ece) and ece > 0.1
    assert found.bins[0].confidence is None  # of three classes one has a third at least


@pytest.mark.usefixtures("_pieces")
def test_regions_are_decisions_of_their_own_and_ignored_pixels_none(tmp_path):
    truth = np.random.default_rng(4).integers(0, 4, (50, 40), np.uint8)
    regions = Region("whole", (1, 2), 1), Region("core", (2,), 2)
    array = np.random.default_rng(5).uniform(size=(2, 1, 50, 40)).astype(np.float16)
    metrics = evaluate_folders(*folders(tmp_path, truth % 3, {"a": array}), Labels(LABELS, regions))
    is_it = np.stack([truth % 3 > 0, truth % 3 == 2])
    yes = array[:, 0] > 0.5
    probability = array[:, 0].astype(np.float64)
    accuracy, _, ece = expected(np.where(yes, probability, 1 - probability), yes == is_it)
    assert metrics.calibration.count == 2 * 50 * 40
    assert metrics.calibration.ece == pytest.approx(ece)
    assert [one.accuracy for one in metrics.calibration.bins if one.count] == pytest.approx(accuracy)
    Image.fromarray(truth).save(tmp_path / "truth" / "a.png")
    again = evaluate_folders(tmp_path / "predictions", tmp_path / "truth", Labels(LABELS, regions, 3))
    assert again.calibration.count == 2 * np.count_nonzero(truth != 3)


def test_a_calibration_error_by_hand(tmp_path):
    # three of four pixels are right, all with a confidence of 7/8
    truth = np.array([[1, 1, 1, 0]], np.uint8)
    array = np.stack([np.full((1, 1, 4), 1 / 8), np.full((1, 1, 4), 7 / 8)]).astype(np.float16)
    found = evaluate_folders(*folders(tmp_path, truth, {"a": array}), {"background": 0, "x": 1}).calibration
    assert found.ece == pytest.approx(1 / 8)
    (one,) = [one for one in found.bins if one.count]
    assert (one.low, one.high) == pytest.approx((13 / 15, 14 / 15))
    assert (one.count, one.confidence, one.accuracy) == (4, 7 / 8, 3 / 4)


GOOD = softmax(0, (3, 1, 20, 30))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "lacks the probabilities of a; predict them"),
        (lambda path: path.write_bytes(b"no archive"), "can't be read as probabilities"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "can't be read as probabilities"),
        (lambda path: flip(path, 1000), "can't be read as probabilities"),
        (lambda path: np.savez(path, other=GOOD), "can't be read as probabilities .*probabilities.npy"),
        (lambda path: np.savez(path, probabilities=GOOD[:2]), r"float16 of the shape \(2, 1, 20, 30\), but float16 of"),
        (lambda path: np.savez(path, probabilities=GOOD.astype(np.float32)), "holds float32"),
        (lambda path: np.savez(path, probabilities=np.array([{}], object)), "holds object"),
        (lambda path: np.savez(path, probabilities=GOOD * 3), "values that are not probabilities"),
        (lambda path: np.savez(path, probabilities=GOOD * np.float16(np.nan)), "values that are not probabilities"),
    ],
)
def test_probabilities_that_are_none_are_refused(tmp_path, damage, words):
    predictions, truth = folders(tmp_path, np.zeros((20, 30), np.uint8), {"a": GOOD})
    damage(predictions / "probabilities" / "a.npz")
    with pytest.raises(DataError, match=words):
        evaluate_folders(predictions, truth, LABELS, tmp_path / "metrics.json")
    assert not (tmp_path / "metrics.json").exists()


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
