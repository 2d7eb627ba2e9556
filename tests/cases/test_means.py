"""A mean says what it rests on: cases that have the class, false alarms, and what all background would score.

Numbers by hand, by MONAI (`DiceMetric`, which gives NaN where the truth is empty) and by SciPy's bootstrap.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from PIL import Image
from scipy.stats import bootstrap

import dinounet
from dinounet.cli.main import main
from dinounet.data.layouts import Case
from dinounet.evaluation.evaluate import evaluate_cases
from dinounet.evaluation.means import read_metrics
from dinounet.evaluation.postprocessing_search import choose
from dinounet.reporting.report import write_report
from dinounet.schema.labels import Labels

LABELS = "background=0,a=1,b=2,c=3"
HELD = [(), (), (), (), (), (1,), (1, 2, 3), (1, 2, 3), (1, 2, 3)]
"""Classes of nine slices: five hold none, one holds one, three hold all."""


def slices() -> list[np.ndarray]:
    found = []
    for classes in HELD:
        truth = np.zeros((48, 48), np.uint8)
        for number in classes:
            truth[10 * number : 10 * number + 8, 8:30] = number
        found.append(truth)
    return found


def write(folder: Path, masks: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"s{index}.png")
    return folder


def off(mask: np.ndarray, by: int) -> np.ndarray:
    """Shifted, as a network that finds the classes but not quite."""
    return np.roll(mask, by, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Slices that mostly lack the classes: a prediction of nothing; one that finds all, with false alarms of each class
    in every slice without any; and one that finds all and has no false alarm."""
    root, truth = tmp_path_factory.mktemp("slices"), slices()
    noisy = [off(mask, 3) for mask in truth]
    for mask in noisy:
        if not mask.any():
            mask[:2, :5], mask[5:7, :5], mask[:2, 10:15] = 1, 2, 3
    return {
        "truth": write(root / "truth", truth),
        "nothing": write(root / "nothing", [np.zeros_like(mask) for mask in truth]),
        "noisy": write(root / "noisy", noisy),
        "good": write(root / "good", [off(mask, 3) for mask in truth]),
    }


def monai_dice(predicted: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    """(cases, classes), NaN where the truth lacks the class."""
    metric = DiceMetric(include_background=True, reduction="none", ignore_empty=True)
    one_hot = [
        torch.tensor(np.stack([[mask == n for n in (1, 2, 3)] for mask in masks])) for masks in (predicted, truth)
    ]
    return metric(*one_hot).numpy().astype(np.float64)


def test_a_prediction_of_nothing_is_called_so(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folders["nothing"]), str(folders["truth"]), "--labels", LABELS]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert round(told["dice"], 3) == 0.630  # 17 of 27 pairs are rightly empty
    assert (told["dice_where_present"], round(told["floor"], 3)) == (0, 0.630)
    assert (told["present"], told["absent"], told["false_alarms"]) == (10, 17, 0)
    assert "not clearly above what an all-background prediction would score" in told["text"]
    assert "0.630 against 0.630" in told["text"]
    stored = json.loads((folders["nothing"] / "metrics.json").read_text())
    assert stored["format"] == 4
    a = stored["basis"]["a"]
    assert (a["present"], a["absent"], a["floor"], a["above_floor"]) == (4, 5, pytest.approx(5 / 9), 0)
    assert a["mean_where_present"]["dice"] == 0 and a["false_alarm_volume"] is None


def test_means_where_present_are_monai_s_and_false_alarms_by_hand(folders: dict[str, Path]) -> None:
    metrics = dinounet.evaluate(folders["noisy"], folders["truth"], labels=LABELS)
    truth = [np.asarray(Image.open(folders["truth"] / f"s{index}.png")) for index in range(9)]
    noisy = [np.asarray(Image.open(folders["noisy"] / f"s{index}.png")) for index in range(9)]
    oracle = monai_dice(noisy, truth)
    assert np.isnan(oracle).sum() == 17
    for index, basis in enumerate(metrics.basis.values()):
        assert basis.mean_where_present is not None
        assert basis.mean_where_present.dice == pytest.approx(np.nanmean(oracle[:, index]))
    overall = metrics.basis_over_classes
    assert overall.mean_where_present is not None
    # over classes, each of the three weighs the same
    assert overall.mean_where_present.dice == pytest.approx(np.nanmean(oracle, axis=0).mean())
    a = metrics.basis["a"]
    assert (a.false_alarms, a.absent, a.false_alarm_volume) == (5, 5, 10)  # of 2 x 5 pixels
    b = metrics.basis["b"]
    assert (b.false_alarms, b.absent) == (5, 6)
    # Dice above the floor, paired by case: what the class gains where it is, less 1 for each false alarm
    expected = np.nan_to_num(oracle)
    expected[:5] = -1
    assert overall.above_floor == pytest.approx(expected.mean())
    assert overall.floor == pytest.approx(17 / 27)
    assert metrics.mean_over_cases_and_classes.dice == pytest.approx(overall.floor + overall.above_floor)
    by_case = expected.mean(axis=1)
    interval = bootstrap((by_case,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    assert overall.above_floor_interval == pytest.approx(
        tuple(interval.confidence_interval), abs=0.3 * by_case.std() / 3
    )


def test_the_interval_where_present_is_of_those_cases(tmp_path: Path) -> None:
    shifts = [0, 1, 2, 3, 4, 5, 6, 7] * 3
    truth = [off(slices()[-1] * (index % 3 > 0), 0) for index in range(24)]
    predicted = [off(mask, shift) for mask, shift in zip(truth, shifts, strict=True)]
    metrics = dinounet.evaluate(write(tmp_path / "p", predicted), write(tmp_path / "t", truth), labels=LABELS)
    dices = monai_dice(predicted, truth)[:, 0]
    there = dices[~np.isnan(dices)]
    assert metrics.basis["a"].present == len(there) == 16
    found = metrics.basis["a"].mean_where_present
    interval = bootstrap((there,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    assert found.intervals["dice"] == pytest.approx(tuple(interval.confidence_interval), abs=0.2 * there.std() / 4)


@pytest.mark.slow
def test_compare_tells_who_wins_on_which_mean(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", str(folders["noisy"]), str(folders["nothing"]), "--truth", str(folders["truth"])]
    assert main([*words, "--labels", LABELS]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    # by the policy's mean the prediction of nothing wins: false alarms cost more than finding everything gains
    dices = [model["mean_over_cases_and_classes"]["dice"] for model in told["models"]]
    assert dices[1] > dices[0]
    assert (told["highest"], told["highest_where_present"]) == (["nothing"], ["noisy"])
    assert "nothing is not clearly above what an all-background prediction would score" in told["text"]
    lost = told["models"][1]["differences_where_present"]["a"]["dice"]
    assert (lost["wins"], lost["ties"], lost["losses"]) == (0, 0, 4)
    assert lost["mean"] == pytest.approx(-told["models"][0]["basis"]["a"]["mean_where_present"]["dice"])


def test_only_classes_that_are_not_clearly_above_are_named(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--labels", LABELS, "-o", str(tmp_path / "metrics.json")]
    assert main(["evaluate", str(folders["good"]), str(folders["truth"]), *words]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["warning"] is None
    assert "An all-background prediction would score 0.630 (difference +0." in told["text"]
    # a is found in all five slices, b is found in one of five and a false alarm in another
    truth = [slices()[-1]] * 5 + [slices()[0]] * 5
    predicted = [mask * (mask != 2) if 0 < index < 5 else mask.copy() for index, mask in enumerate(truth)]
    predicted[9][40:44, 2:5] = 2
    given = [str(write(tmp_path / name, masks)) for name, masks in (("p", predicted), ("t", truth))]
    assert main(["evaluate", *given, *words]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["warning"].endswith("on the same cases in b (Dice 0.500 against 0.500).")


def test_of_few_cases_it_can_t_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = [slices()[-1], slices()[0]]
    predicted = write(tmp_path / "p", [off(mask, 2) for mask in truth])
    assert main(["evaluate", str(predicted), str(write(tmp_path / "t", truth)), "--labels", LABELS]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["warning"] is None and "Too few cases have a class (1) to tell how clearly" in told["text"]


def test_the_report_says_it_at_its_top(folders: dict[str, Path], tmp_path: Path) -> None:
    metrics = dinounet.evaluate(folders["nothing"], folders["truth"], labels=LABELS)
    write_report(tmp_path / "report.html", title="Nothing", metrics=metrics)
    page = (tmp_path / "report.html").read_text()
    note = page.index("This result is not clearly above what an all-background prediction would score")
    assert note < page.index("<main>")
    assert "Dice of an all-background prediction" in page and "Cases that have it" in page


def test_metrics_of_format_2_are_read_with_what_their_cases_tell(folders: dict[str, Path], tmp_path: Path) -> None:
    metrics = dinounet.evaluate(folders["noisy"], folders["truth"], tmp_path / "new.json", labels=LABELS)
    old = json.loads((tmp_path / "new.json").read_text())
    for key in ("basis", "basis_over_classes", "by", "groups", "left_out"):
        del old[key]
    for case in old["cases"]:
        del case["group"], case["pooled"]
    flat = {"labels": old["labels"].pop("classes"), **old["labels"]}
    (tmp_path / "old.json").write_text(json.dumps({**old, **flat, "format": 2}))
    assert read_metrics(tmp_path / "old.json") == metrics


def test_a_class_can_be_left_out_of_the_mean_with_a_word(folders: dict[str, Path]) -> None:
    known = Labels({"background": 0, "a": 1, "b": 2, "c": 3})
    names = [f"s{index}" for index in range(9)]
    cases = [Case(name, (), folders["truth"] / f"{name}.png") for name in names]
    predicted = {name: folders["noisy"] / f"{name}.png" for name in names}
    metrics = evaluate_cases(cases, predicted, known, left_out={"a": "no training pixel in this fold"})
    both = [metrics.mean_over_cases[name].dice for name in "bc"]
    assert metrics.mean_over_cases_and_classes.dice == pytest.approx(sum(both) / 2)
    assert metrics.basis_over_classes.false_alarms == 10 and metrics.basis["a"].false_alarms == 5
    assert metrics.mean_over_cases["a"].dice == pytest.approx(metrics.basis["a"].floor + metrics.basis["a"].above_floor)


@pytest.mark.slow
def test_evaluate_and_compare_leave_the_same_class_out(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What no training case of one model held, for both models."""
    for name, absent in {"noisy": ["a"], "good": []}.items():
        shutil.copytree(folders[name], tmp_path / name)
        record = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}, "absent_classes": absent}
        (tmp_path / name / "prediction.json").write_text(json.dumps(record))
    alone = dinounet.evaluate(tmp_path / "noisy", folders["truth"])
    assert list(alone.left_out) == ["a"]
    for order in (("noisy", "good"), ("good", "noisy")):
        found = dinounet.compare([tmp_path / name for name in order], folders["truth"])
        models = {model.name: model for model in found.models}
        assert models["noisy"].mean_over_cases_and_classes == alone.mean_over_cases_and_classes
        b, c = (models["good"].mean_over_cases[name].dice for name in "bc")
        assert models["good"].mean_over_cases_and_classes.dice == pytest.approx((b + c) / 2)
        assert found.left_out == {"a": "no training case of noisy has a pixel of it"}
    told = " ".join(capsys.readouterr().out.split())
    assert "Not in the means over classes, of any model: a (no training case of noisy has a pixel of it)." in told

    for name in ("noisy", "good"):  # each lacks what the other has
        path = tmp_path / name / "prediction.json"
        absent = ["a"] if name == "noisy" else ["b", "c"]
        path.write_text(json.dumps({**json.loads(path.read_text()), "absent_classes": absent}))
    assert dinounet.compare([tmp_path / "noisy", tmp_path / "good"], folders["truth"]).left_out == {}


def test_postprocessing_that_would_leave_nothing_is_not_chosen(tmp_path: Path) -> None:
    """Specks everywhere, and no lesion found: without them the slices that lack the lesion score 1."""
    truth = [np.zeros((40, 40), np.uint8) for _ in range(9)]
    for mask in truth[:3]:
        mask[5:15, 5:15] = 1
    predicted = [np.zeros_like(mask) for mask in truth]
    for mask in predicted:
        mask[30, 30] = 1
    write(tmp_path / "t", truth), write(tmp_path / "p", predicted)
    names = [f"s{index}" for index in range(9)]
    cases = [Case(name, (), tmp_path / "t" / f"{name}.png") for name in names]
    files = {name: tmp_path / "p" / f"{name}.png" for name in names}
    assert not choose(cases, files, Labels({"background": 0, "lesion": 1})).does_something
