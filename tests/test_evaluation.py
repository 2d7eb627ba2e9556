"""Metrics against MONAI, SciPy and numbers worked out by hand, and what is refused."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from rich.console import Console
from scipy import ndimage
from scipy.stats import bootstrap
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from datasets import volume
from dinounet.cli.main import main
from dinounet.errors import ConfigError, DataError
from dinounet.evaluation.evaluate import evaluate_folders, find_masks
from dinounet.evaluation.means import describe_bootstrap, intervals_of_means, read_metrics
from dinounet.evaluation.metrics import POLICY, measure, write_number
from dinounet.reporting.tables import print_table

LABELS = {"background": 0, "grey": 1, "white": 2}


def disc(center: tuple[int, int], radius: int, size: tuple[int, int] = (64, 80)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2


def blob(seed: int, shape: tuple[int, ...], share: float = 0.2) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.RandomState(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 1 - share)


def measure_hd95(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> float:
    return measure(truth, prediction, spacing).hd95


def monai_hd95(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> float:
    from monai.metrics import compute_hausdorff_distance

    pair = prediction[None, None], truth[None, None]
    return compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing).item()


def scipy_hd95(truth: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> float:
    """By distance transform on the whole grid: for every voxel of a surface the way to the other surface."""
    a, b = (mask & ~ndimage.binary_erosion(mask) for mask in (truth, prediction))
    ways = [ndimage.distance_transform_edt(~other, sampling=spacing)[own] for own, other in ((a, b), (b, a))]
    return max(np.percentile(way, 95) for way in ways)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1.0, 2.5])
def test_hd95_of_two_discs_is_their_distance(step):
    a, b = disc((32, 30), 10), disc((32, 38), 10)
    found = measure_hd95(a, b, (step, step))
    assert found == pytest.approx(8.0 * step, abs=0.1)
    assert found == pytest.approx(monai_hd95(a, b, (step, step)))


def test_hd95_of_two_bars_by_hand():
    # bars one pixel high are all surface; of 20 pixels 17 are common and 3 stick out, by 1, 2 and 3 pixels; the 95th
    # percentile has rank 0.95 * 19 = 18.05, just after the 2
    a, b = np.zeros((2, 5, 30), bool)
    a[2, 4:24] = b[2, 7:27] = True
    assert measure_hd95(a, b, (1.0, 1.0)) == pytest.approx(2.05)
    assert measure_hd95(a, b, (7.0, 0.1)) == pytest.approx(0.205)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((40, 50), (1.0, 1.0)), ((40, 50), (0.4, 1.7)), ((14, 30, 26), (3.0, 0.7, 1.1))]
)
@pytest.mark.parametrize("seed", range(3))
def test_hd95_equals_the_distance_transform(shape, spacing, seed):
    truth, prediction = blob(seed, shape), blob(seed + 100, shape, share=0.1)
    assert truth[0].any() or truth[-1].any()  # the border is touched
    found = measure_hd95(truth, prediction, spacing)
    assert found == pytest.approx(scipy_hd95(truth, prediction, spacing), rel=1e-5)
    assert found == pytest.approx(monai_hd95(truth, prediction, spacing), rel=1e-5)
    assert found == pytest.approx(measure_hd95(prediction, truth, spacing))


def test_beyond_the_border_is_outside():
    a, b = np.zeros((2, 20, 20), bool)
    a[:6, :6] = b[:6, 3:9] = True
    inside = [np.pad(mask, 5) for mask in (a, b)]
    assert measure_hd95(a, b, (1.0, 1.0)) == pytest.approx(measure_hd95(*inside, (1.0, 1.0))) == pytest.approx(3.0)
    full = np.ones((20, 20), bool)  # its surface is the image's border, from which the small one's is far
    assert measure_hd95(full, disc((10, 10), 2, (20, 20)), (1.0, 1.0)) == pytest.approx(
        scipy_hd95(full, disc((10, 10), 2, (20, 20)), (1.0, 1.0)), rel=1e-5
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_flat(axis):
    # as a volume every pixel of a slice would be surface, and the discs' distance nearly 0
    a, b = disc((32, 30), 25), disc((32, 31), 22)
    flat = measure_hd95(a, b, (0.5, 2.0))
    spacing = np.insert([0.5, 2.0], axis, 9.0)
    assert measure_hd95(np.expand_dims(a, axis), np.expand_dims(b, axis), spacing) == pytest.approx(flat)
    assert flat == pytest.approx(scipy_hd95(a, b, (0.5, 2.0)), rel=1e-5)
    assert flat != pytest.approx(monai_hd95(a[None], b[None], (9.0, 0.5, 2.0)))


@pytest.mark.parametrize(
    ("shape", "spacing"), [((40, 50), (1.0, 1.0)), ((40, 50), (0.4, 1.7)), ((14, 30, 26), (3.0, 0.7, 1.1))]
)
@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_monai_and_overlap_scikit_learn(shape, spacing, seed):
    import torch
    from monai.metrics import compute_average_surface_distance, compute_surface_dice

    truth, prediction = blob(seed, shape), blob(seed + 100, shape, share=0.1)
    assert (truth | prediction)[0].any() and (truth | prediction)[-1].any()  # the border is touched
    found = measure(truth, prediction, spacing, tolerance=1.3)
    pair = [torch.tensor(mask[None, None]) for mask in (prediction, truth)]
    how = {"include_background": True, "spacing": spacing}
    assert found.hd95 == pytest.approx(monai_hd95(truth, prediction, spacing), rel=1e-5)
    assert found.assd == pytest.approx(compute_average_surface_distance(*pair, symmetric=True, **how).item(), rel=1e-5)
    assert found.nsd == pytest.approx(compute_surface_dice(*pair, class_thresholds=[1.3], **how).item(), rel=1e-5)
    assert 0 < found.nsd < 1
    flat = truth.ravel(), prediction.ravel()
    assert found.dice == pytest.approx(f1_score(*flat))
    assert found.iou == pytest.approx(jaccard_score(*flat))
    assert found.precision == pytest.approx(precision_score(*flat))
    assert found.recall == pytest.approx(recall_score(*flat))


def test_all_measures_of_two_bars_by_hand():
    # of 20 pixels each 17 are common; on either side 3 stick out, by 1, 2 and 3 pixels
    a, b = np.zeros((2, 5, 30), bool)
    a[2, 4:24] = b[2, 7:27] = True
    b[2, 26] = False  # found: 19, sticking out by 1 and 2
    found = measure(a, b, (1.0, 1.0), tolerance=1.0, voxel=0.5)
    assert found.dice == pytest.approx(2 * 17 / 39) and found.iou == pytest.approx(17 / 22)
    assert (found.precision, found.recall) == pytest.approx((17 / 19, 17 / 20))
    assert found.assd == pytest.approx((1 + 2 + 3 + 1 + 2) / 39)
    assert found.nsd == pytest.approx((39 - 3) / 39)  # beyond the tolerance lie the 2 and the 3, and the 2
    assert measure(a, b, (1.0, 1.0), tolerance=2.0).nsd == pytest.approx((39 - 1) / 39)
    assert found.volume_difference == -0.5


def test_a_spacing_s_last_digits_decide_nothing():
    a, b = disc((32, 30), 10), disc((32, 31), 10)
    step = float(np.float32(0.1))  # 0.10000000149, as NIfTI keeps it
    assert measure(a, b, (step, step), tolerance=0.1).nsd == measure(a, b, (1.0, 1.0)).nsd == 1


def test_policy_of_empty_masks():
    full, empty = disc((5, 5), 2, (30, 40)), np.zeros((30, 40), bool)
    nothing = measure(empty, empty, (1.0, 1.0))
    assert (nothing.dice, nothing.iou, nothing.nsd, nothing.precision, nothing.recall) == (1, 1, 1, 1, 1)
    assert (nothing.hd95, nothing.assd, nothing.volume_difference) == (0, 0, 0)
    for pair, difference in (((full, empty), -full.sum()), ((empty, full), full.sum())):
        found = measure(*pair, (2.0, 0.5), voxel=1.0)
        assert (found.dice, found.iou, found.nsd, found.precision, found.recall) == (0, 0, 0, 0, 0)
        assert found.hd95 == found.assd == pytest.approx(math.hypot(60, 20))
        assert found.volume_difference == difference
        assert measure_hd95(*(mask[None] for mask in pair), (8.0, 2.0, 0.5)) == pytest.approx(math.hypot(60, 20))
        thick = [np.stack([mask] * 3) for mask in pair]
        assert measure_hd95(*thick, (8.0, 2.0, 0.5)) == pytest.approx(math.hypot(24, 60, 20))


@pytest.mark.parametrize("cases", [2, 5, 60])
def test_intervals_equal_scipy_s_percentile_bootstrap(cases):
    numbers = np.random.default_rng(1).gamma(2, size=(cases, 2, 3))
    found = np.array(intervals_of_means(numbers))
    expected = bootstrap(
        (numbers,), np.mean, axis=0, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    spread = numbers.std(axis=0) / math.sqrt(cases)
    assert (abs(found[..., 0] - expected.low) < 0.15 * spread).all()
    assert (abs(found[..., 1] - expected.high) < 0.15 * spread).all()
    assert intervals_of_means(numbers[:1]) == [[None] * 3] * 2
    same = intervals_of_means(np.full((cases, 1, 1), 0.25))[0][0]
    assert same == pytest.approx((0.25, 0.25))


# folders


def three_cases(root: Path, ending: str = ".png") -> tuple[Path, Path]:
    """Case a is right, b is off by two columns, c misses class 2."""
    grey, white = disc((20, 20), 8), disc((40, 50), 10)
    right = np.where(white, 2, grey.astype(np.uint8)).astype(np.uint8)
    folders = root / "predictions", root / "truth"
    for folder in folders:
        folder.mkdir()
    for case, predicted in (("a", right), ("b", np.roll(right, 2, 1)), ("c", right * (right == 1))):
        write(folders[0] / (case + ending), predicted)
        write(folders[1] / (case + ending), right)
    return folders


def write(path: Path, mask: np.ndarray, spacing: tuple[float, ...] = (0.5, 2.0, 3.0)) -> None:
    if path.name.endswith(".png"):
        Image.fromarray(mask).save(path)
    else:
        sitk.WriteImage(volume(mask[None] if mask.ndim == 2 else mask, spacing), str(path))


def test_folders_and_the_file_they_give(tmp_path):
    predictions, truth = three_cases(tmp_path)
    done = []
    metrics = evaluate_folders(predictions, truth, LABELS, tmp_path / "metrics.json", on_case=done.append)
    assert done == ["a", "b", "c"]
    a, b, c = metrics.cases
    diagonal = math.hypot(64, 80)
    assert (a.dice, a.hd95, a.unit) == (1.0, 0.0, "px")
    assert b.classes["grey"].hd95 == pytest.approx(2.0)
    assert (c.classes["white"].dice, c.classes["white"].empty) == (0.0, "prediction")
    assert c.classes["white"].hd95 == pytest.approx(diagonal)
    assert c.classes["grey"].empty is None
    white = metrics.mean_over_cases["white"]
    assert white.dice == pytest.approx((1 + b.classes["white"].dice + 0) / 3)
    assert white.hd95 == pytest.approx((0 + 2 + diagonal) / 3)
    assert metrics.mean_over_cases_and_classes.dice == pytest.approx((a.dice + b.dice + c.dice) / 3)
    assert metrics.mean_over_cases_and_classes.hd95 == pytest.approx((a.hd95 + b.hd95 + c.hd95) / 3)
    assert (metrics.empties["white"].prediction, metrics.empties["grey"].prediction) == (1, 0)
    for name in ("iou", "nsd", "assd", "precision", "volume_difference"):
        by_hand = [getattr(case.classes["white"], name) for case in metrics.cases]
        assert getattr(white, name) == pytest.approx(sum(by_hand) / 3)
        assert min(by_hand) <= white.intervals[name][0] <= getattr(white, name) <= white.intervals[name][1]
    # over cases: of all resamples of three, those of c alone, (1/3)^3 of all, are beyond the 2.5 %
    low, high = metrics.mean_over_cases_and_classes.intervals["dice"]
    assert (low, high) == pytest.approx((c.dice, 1.0))
    assert [case.case for case in metrics.worst_first] == ["c", "b", "a"]
    assert read_metrics(tmp_path / "metrics.json") == metrics
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert (
        content["bootstrap"] == describe_bootstrap("cases")
        and content["tolerance"] == 1.0
        and content["calibration"] is None
    )
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [
        (case, name) for case in "abc" for name in ("grey", "white")
    ]
    assert float(rows[2]["nsd"]) == b.classes["grey"].nsd and (rows[2]["unit"], rows[2]["volume_unit"]) == ("px", "px")
    assert [row["empty"] for row in rows] == ["", "", "", "", "", "prediction"]
    assert content["policy"] == POLICY and content["cases"][2]["classes"]["white"]["empty"] == "prediction"


def test_a_changed_metrics_file_is_refused(tmp_path):
    evaluate_folders(*three_cases(tmp_path), LABELS, tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    for change, words in (
        (lambda new: new.update(format=1), "has the format 1, which this dinounet can't read"),
        (lambda new: new["cases"][0].update(unit="mm"), "their units the same"),
        (lambda new: new["cases"][0]["classes"]["grey"].update(dize=1), "did you mean 'dice'"),
        (lambda new: new["cases"][0]["classes"]["grey"].update(empty="all"), "empty"),
    ):
        new = json.loads(json.dumps(content))
        change(new)
        (tmp_path / "new.json").write_text(json.dumps(new))
        with pytest.raises(ConfigError, match=words):
            read_metrics(tmp_path / "new.json")


def test_volumes_are_measured_in_mm_in_all_three_directions(tmp_path):
    for folder in ("predictions", "truth"):
        (tmp_path / folder).mkdir()
    truth, prediction = (blob(seed, (12, 30, 26)).astype(np.uint8) for seed in (1, 2))
    write(tmp_path / "truth" / "v.nii.gz", truth)
    write(tmp_path / "predictions" / "v.mha", prediction)
    case = evaluate_folders(tmp_path / "predictions", tmp_path / "truth", {"background": 0, "x": 1}).cases[0]
    assert case.unit == "mm"
    expected = scipy_hd95(truth == 1, prediction == 1, (3.0, 2.0, 0.5))
    assert case.classes["x"].hd95 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("mask", "ending", "unit", "step"),
    [
        (np.ones((3, 10, 10), np.uint8), ".nii.gz", "ml", 0.5 * 2 * 3 / 1000),
        (np.ones((1, 10, 10), np.uint8), ".mha", "ml", 0.5 * 2 * 3 / 1000),
        (np.ones((10, 10), np.uint8), ".mha", "mm2", 0.5 * 2),
        (np.ones((10, 10), np.uint8), ".png", "px", 1),
    ],
)
def test_volumes_have_the_unit_that_is_known(tmp_path, mask, ending, unit, step):
    for folder, wanted in (("truth", mask), ("predictions", mask * (np.arange(10) < 7))):
        (tmp_path / folder).mkdir()
        if unit == "mm2":
            flat = sitk.GetImageFromArray(wanted)
            flat.SetSpacing((0.5, 2.0))
            sitk.WriteImage(flat, str(tmp_path / folder / f"v{ending}"))
        else:
            write(tmp_path / folder / f"v{ending}", wanted)
    metrics = evaluate_folders(tmp_path / "predictions", tmp_path / "truth", {"background": 0, "x": 1})
    found = metrics.cases[0].classes["x"].volume_difference
    assert (metrics.volume_unit, found) == (unit, pytest.approx(-0.3 * mask.size * step))
    assert metrics.mean_over_cases["x"].intervals["dice"] is None  # of one case


def test_beside_their_record_only_masks_directly_in_the_folder_count(tmp_path):
    predictions, truth = three_cases(tmp_path)
    for folder in ("overlays", "uncertainty"):
        (predictions / folder).mkdir()
        write(predictions / folder / "a.png", np.zeros((64, 80), np.uint8))
    assert "overlays_a" in find_masks(predictions)
    (predictions / "prediction.json").write_text("{}")
    assert list(find_masks(predictions)) == ["a", "b", "c"]
    assert len(evaluate_folders(predictions, truth, LABELS).cases) == 3


def test_the_command_tells_means_and_leaves_two_files(tmp_path, capsys):
    predictions, truth = three_cases(tmp_path)
    words = ["evaluate", str(predictions), str(truth), "--labels", "background=0,grey=1,white=2", "--tolerance", "2.5"]
    assert main([*words, "-o", str(tmp_path / "new" / "m.json")]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    metrics = read_metrics(tmp_path / "new" / "m.json")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["m.csv", "m.json"]
    assert told["nsd"] == metrics.mean_over_cases_and_classes.nsd
    assert (told["tolerance"], told["unit"], told["cases"]) == (metrics.tolerance, "px", 3) == (2.5, "px", 3)
    assert told["empties"] == {"both": 0, "truth": 0, "prediction": 1}
    assert metrics.cases[1].classes["grey"].nsd == 1  # off by two columns


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tolerance", "0"], "the tolerance is 0.0; it must be above 0"),
        (["--tolerance", "-1"], "the tolerance is -1.0; it must be above 0"),
        (["--tolerance", "nan"], "the tolerance is nan; it must be above 0"),
        (["-o", "{}/m.csv"], "m.csv is where the table goes; name the JSON file with -o"),
    ],
)
def test_wrong_flags_leave_nothing(tmp_path, capsys, more, message):
    predictions, truth = three_cases(tmp_path)
    words = ["evaluate", str(predictions), str(truth), "--labels", "background=0,grey=1,white=2"]
    assert main([*words, *(word.format(tmp_path) for word in more)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.png", "a.png", "b.png", "b.png", "c.png", "c.png"]


def test_nan_in_a_mask_of_floats_is_refused(tmp_path):
    predictions, truth = three_cases(tmp_path, ".nii.gz")
    broken = np.ones((64, 80), np.float32)
    broken[3, 3] = np.nan
    write(predictions / "b.nii.gz", broken)
    with pytest.raises(DataError, match=r"predictions/b\.nii\.gz holds 1 pixels that are NaN"):
        evaluate_folders(predictions, truth, LABELS)


def test_all_that_is_wrong_is_told_together(tmp_path):
    predictions, truth = three_cases(tmp_path)
    (predictions / "a.png").unlink()
    write(predictions / "z.png", np.zeros((64, 80), np.uint8))
    write(predictions / "b.png", np.zeros((64, 81), np.uint8))
    write(truth / "c.png", np.full((64, 80), 7, np.uint8))
    (predictions / "plan.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        evaluate_folders(predictions, truth, LABELS, tmp_path / "metrics.json")
    for words in (
        f"{predictions} lacks masks of cases in {truth}: a;",
        f"{predictions} holds masks of cases that {truth} lacks: z;",
        f"{predictions / 'b.png'} is 1 x 64 x 81 but {truth / 'b.png'} is 1 x 64 x 80",
        f"{truth / 'c.png'} holds the values 7 but the labels are background=0, grey=1, white=2",
    ):
        assert words in str(caught.value)
    assert not (tmp_path / "metrics.json").exists()


def test_at_most_ten_are_named(tmp_path):
    predictions, truth = three_cases(tmp_path)
    for index in range(12):
        write(truth / f"more_{index:02d}.png", np.zeros((64, 80), np.uint8))
    with pytest.raises(DataError, match="more_09; and 2 more; predict them too") as caught:
        evaluate_folders(predictions, truth, LABELS)
    assert "more_10" not in str(caught.value)


def test_one_wrong_value_in_a_prediction(tmp_path):
    predictions, truth = three_cases(tmp_path)
    with pytest.raises(
        DataError, match=r"predictions/a\.png holds the values 2 but the labels are background=0, grey=1;"
    ):
        evaluate_folders(predictions, truth, {"background": 0, "grey": 1})


def test_other_places_in_space_are_refused(tmp_path):
    predictions, truth = three_cases(tmp_path, ".nii.gz")
    write(predictions / "b.nii.gz", np.zeros((64, 80), np.uint8), (0.6, 2.0, 3.0))
    with pytest.raises(DataError, match=r"predictions/b\.nii\.gz and .*truth/b\.nii\.gz differ in spacing"):
        evaluate_folders(predictions, truth, LABELS)


def test_millimetres_and_pixels_have_no_mean(tmp_path):
    predictions, truth = three_cases(tmp_path)
    for folder in (predictions, truth):
        write(folder / "m.nrrd", np.ones((64, 80), np.uint8))
    with pytest.raises(DataError, match=r"mixes masks without a spacing \(a; b; c\) and volumes in mm \(m\)"):
        evaluate_folders(predictions, truth, LABELS)


def test_folders_that_hold_nothing_or_too_much(tmp_path):
    predictions, truth = three_cases(tmp_path)
    with pytest.raises(DataError, match="no class but background"):
        evaluate_folders(predictions, truth, {"background": 0})
    with pytest.raises(DataError, match="is not a folder"):
        evaluate_folders(tmp_path / "elsewhere", truth, LABELS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match=r"empty holds no masks"):
        evaluate_folders(predictions, tmp_path / "empty", LABELS)
    write(predictions / "a.nii.gz", np.zeros((64, 80), np.uint8))
    with pytest.raises(DataError, match=r"more than one mask of a case: a\.nii\.gz and a\.png"):
        evaluate_folders(predictions, truth, LABELS)
    (predictions / "a.nii.gz").unlink()
    (predictions / "b.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"predictions/b\.png can't be read as an image"):
        evaluate_folders(predictions, truth, LABELS)


def test_the_table_names_what_it_shows(tmp_path):
    predictions, truth = three_cases(tmp_path)
    for folder in (predictions, truth):
        (folder / "a.png").rename(folder / "[red]a.png")
    text = io.StringIO()
    print_table(evaluate_folders(predictions, truth, LABELS), Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in text.getvalue()
    assert any("[red]a" in line and "1.000" in line and "0.00" in line for line in lines)
    assert any("white" in line and "0.000" in line and "102.45" in line and "missed" in line for line in lines)
    assert any("grey, mean over 3 cases" in line and "Dice" in line for line in lines)
    assert any("mean over cases and classes" in line for line in lines)
    flowing = " ".join(text.getvalue().split())
    assert POLICY in flowing and describe_bootstrap("cases") in flowing and "HD95 (px)" in flowing
    assert "within 1 px of the other" in flowing
    assert "missed entirely (only the prediction is empty): 1" in flowing


@pytest.mark.parametrize(
    ("name", "number", "text"),
    [
        ("hd95", 0.0009, "0.00090"), ("hd95", 0.0, "0.00"), ("hd95", 102.449, "102.45"), ("hd95", 0.25, "0.25"),
        ("assd", 2.5e-7, "2.5e-07"), ("volume_difference", -0.0123, "-0.012"), ("volume_difference", 1e-17, "0.00"),
        ("dice", 0.81236, "0.812"), ("dice", 0.00042, "0.0004"), ("dice", 0.0, "0.000"), ("dice", 0.9996, "1.000"),
    ],
)  # fmt: skip
def test_small_numbers_keep_their_significant_digits(name, number, text):
    assert write_number(name, number) == text
    assert float(text) == pytest.approx(number, rel=0.05, abs=1e-12)
