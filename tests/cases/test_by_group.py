"""Slices scored by patient: pixels pooled, intervals over patients; numbers by scikit-learn, MONAI and by hand."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from monai.metrics import compute_hausdorff_distance
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

import dinounet
from dinounet.cli.main import main
from dinounet.errors import ConfigError
from dinounet.evaluation.means import read_metrics
from dinounet.evaluation.metrics import measure
from dinounet.reporting.report import write_report
from dinounet.schema.metrics import CaseMetrics, Metrics

LABELS = "background=0,a=1,b=2"
PATIENTS = {"p1": 4, "p2": 3, "p3": 5, "p4": 2, "p5": 1, "p6": 3}


def patients() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Truth and prediction of slices named <patient>_<slice>, of which some lack a class in either or both."""
    random, found = np.random.default_rng(3), {}
    for patient, slices in PATIENTS.items():
        for index in range(slices):
            pair = np.zeros((2, 40, 50), np.uint8)
            for label, place in ((1, 5), (2, 22)):
                height, shift = random.integers(0, 14), random.integers(-2, 3)
                pair[0, place : place + height, 10:30] = label
                if random.random() > 0.2:
                    pair[1, place : place + height + int(random.integers(0, 2)), 10 + shift : 30 + shift] = label
            found[f"{patient}_{index}"] = pair[0], pair[1]
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Predictions by case; the truth in a folder a patient; a table of cases and patients."""
    root = tmp_path_factory.mktemp("patients")
    (root / "predictions").mkdir()
    rows = ["case;group;scanner"]
    for case, (truth, prediction) in patients().items():
        patient, index = case.split("_")
        (root / "truth" / patient).mkdir(parents=True, exist_ok=True)
        Image.fromarray(truth).save(root / "truth" / patient / f"{index}.png")
        Image.fromarray(prediction).save(root / "predictions" / f"{case}.png")
        rows.append(f"{case};{patient};x")
    (root / "groups.csv").write_text("\n".join([*rows, "elsewhere;p9;y"]) + "\n")
    return root / "predictions", root / "truth", root / "groups.csv"


def metrics_without_groups(metrics: Metrics) -> list[CaseMetrics]:
    return [replace(case, group=None) for case in metrics.cases]


def pooled(label: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """All pixels of each patient."""
    together: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for case, (truth, prediction) in patients().items():
        together.setdefault(case.split("_")[0], []).append(((truth == label).ravel(), (prediction == label).ravel()))
    return {name: tuple(np.concatenate(side) for side in zip(*pairs, strict=True)) for name, pairs in together.items()}


def test_overlap_is_of_all_pixels_of_a_patient(folders: tuple[Path, Path, Path]) -> None:
    predictions, truth, table = folders
    metrics = dinounet.evaluate(predictions, truth, labels=LABELS, by="group", groups=table)
    assert [group.case for group in metrics.groups] == list(PATIENTS)
    assert [len(group.pooled) for group in metrics.groups] == list(PATIENTS.values())
    dices = []
    for label, name in ((1, "a"), (2, "b")):
        oracle = pooled(label)
        for group in metrics.groups:
            found, (true, predicted) = group.classes[name], oracle[group.case]
            how = {"zero_division": 1.0 if not true.any() and not predicted.any() else 0.0}
            assert found.dice == pytest.approx(f1_score(true, predicted, **how))
            assert found.iou == pytest.approx(jaccard_score(true, predicted, **how))
            assert found.precision == pytest.approx(precision_score(true, predicted, **how))
            assert found.recall == pytest.approx(recall_score(true, predicted, **how))
            assert found.volume_difference == int(predicted.sum()) - int(true.sum())
            dices.append(found.dice)
    assert metrics.mean_over_cases_and_classes.dice == pytest.approx(np.mean(dices))
    by_case = dinounet.evaluate(predictions, truth, labels=LABELS)
    assert by_case.groups == () and by_case.cases == tuple(metrics_without_groups(metrics))
    assert by_case.mean_over_cases_and_classes.dice != pytest.approx(
        metrics.mean_over_cases_and_classes.dice, abs=0.005
    )


def test_distances_of_a_patient_are_those_of_all_slices(tmp_path: Path) -> None:
    """Two slices far from each other in one image are the same as the two apart, but for the policy's diagonal."""
    truth, prediction = np.zeros((2, 2, 30, 30), np.uint8)
    truth[0, 5:15, 5:15], truth[1, 8:20, 8:12] = 1, 1
    prediction[0, 5:15, 7:17], prediction[1, 9:21, 9:12] = 1, 1
    for folder, masks in (("t", truth), ("p", prediction)):
        (tmp_path / folder).mkdir()
        for index, mask in enumerate(masks):
            Image.fromarray(mask).save(tmp_path / folder / f"s{index}.png")
    (tmp_path / "groups.csv").write_text("case,group\ns0,x\ns1,x\n")
    (group,) = dinounet.evaluate(
        tmp_path / "p", tmp_path / "t", labels="background=0,a=1", by="group", groups=tmp_path / "groups.csv"
    ).groups
    beside = [
        np.concatenate([masks[0], np.zeros((30, 500), np.uint8), masks[1]], axis=1) == 1
        for masks in (truth, prediction)
    ]
    expected = measure(*beside, (1.0, 1.0))
    found = group.classes["a"]
    assert found.hd95 == pytest.approx(
        compute_hausdorff_distance(
            beside[1][None, None], beside[0][None, None], include_background=True, percentile=95
        ).item()
    )
    assert (found.assd, found.nsd) == pytest.approx((expected.assd, expected.nsd))


def test_the_truth_s_folders_are_groups_and_it_is_said_by_what(
    folders: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, truth, table = folders
    output = tmp_path / "metrics.json"
    (predictions / "metrics.json").unlink(missing_ok=True)  # which may know groups too
    words = ["evaluate", str(predictions), str(truth), "--labels", LABELS, "-o", str(output)]
    assert main([*words, "--by", "group"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["by"], told["groups"], told["cases"]) == ("group", 6, 18) and "Dice by group 0." in told["text"]
    by_table = dinounet.evaluate(predictions, truth, tmp_path / "again.json", labels=LABELS, by="group", groups=table)
    assert read_metrics(output) == by_table
    stored = json.loads(output.read_text())
    assert stored["by"] == "group" and "bootstrap over groups" in stored["bootstrap"]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["by"] for row in rows] == ["case"] * 36 + ["group"] * 12
    assert {row["group"] for row in rows[:8]} == {"p1"} and (rows[-1]["case"], rows[-1]["group"]) == ("", "p6")
    write_report(tmp_path / "report.html", title="By patient", metrics=by_table)
    page = (tmp_path / "report.html").read_text()
    assert "by group" in page and "Groups, worst first" in page and "18 cases are pooled in 6 groups" in page


def test_intervals_are_over_patients_where_they_are_known(folders: tuple[Path, Path, Path]) -> None:
    predictions, truth, table = folders
    alone = dinounet.evaluate(predictions, truth, labels=LABELS)
    known = dinounet.evaluate(predictions, truth, labels=LABELS, groups=table)
    assert known.mean_over_cases["a"].dice == alone.mean_over_cases["a"].dice
    # draw patients, with all their slices
    sums, counts = {}, {}
    for case in alone.cases:
        patient = case.case.split("_")[0]
        sums[patient] = sums.get(patient, 0.0) + case.classes["a"].dice
        counts[patient] = counts.get(patient, 0) + 1
    drawn = np.random.default_rng(9).integers(0, 6, (20_000, 6))
    by_patient, slices = np.array([sums[p] for p in PATIENTS]), np.array([counts[p] for p in PATIENTS])
    means = by_patient[drawn].sum(axis=1) / slices[drawn].sum(axis=1)
    assert known.mean_over_cases["a"].intervals["dice"] == pytest.approx(
        tuple(np.percentile(means, [2.5, 97.5])), abs=0.2 * means.std()
    )
    assert "over groups" in known.bootstrap and "over cases" in alone.bootstrap
    assert known.by == "case" and known.basis["a"].drawn == 6 and alone.basis["a"].drawn > 6


def test_a_run_s_own_groups_are_known_from_its_review(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """What a review leaves in `validation/` has its cases' groups, so that nobody needs to write a table."""
    predictions, _, table = folders
    for folder in ("truth", "validation"):
        (tmp_path / folder).mkdir()
    for case, (truth, _) in patients().items():
        Image.fromarray(truth).save(tmp_path / "truth" / f"{case}.png")
        shutil.copy(predictions / f"{case}.png", tmp_path / "validation")
    dinounet.evaluate(tmp_path / "validation", tmp_path / "truth", labels=LABELS, groups=table)
    found = dinounet.evaluate(tmp_path / "validation", tmp_path / "truth", labels=LABELS, by="group")
    assert [group.case for group in found.groups] == list(PATIENTS)


def test_who_told_the_groups_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier evaluation's go before the truth's folders; models that were told different ones have no pairs."""
    truth, first, second = (tmp_path / name for name in ("truth", "first", "second"))
    for name in ("x/1", "x/2", "y/1", "y/2"):
        for folder, place in ((truth, name), (first, name.replace("/", "_")), (second, name.replace("/", "_"))):
            path = folder / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
    labels = "background=0,a=1"

    def told() -> str:
        return " ".join(capsys.readouterr().out.split())

    dinounet.compare([first, second], truth, labels=labels, by="group")
    assert told().count(f"groups are the folders in {truth};") == 1
    dinounet.evaluate(first, truth, tmp_path / "metrics.json", labels=labels, by="group")
    assert f"groups are the folders in {truth};" in told()
    table = tmp_path / "groups.csv"
    table.write_text("case,group\nx_1,1\nx_2,2\ny_1,1\ny_2,2\n")
    dinounet.evaluate(first, truth, labels=labels, by="group", groups=table)
    assert "groups are" not in told()
    found = dinounet.evaluate(first, truth, tmp_path / "metrics.json", labels=labels, by="group")
    assert [group.case for group in found.groups] == ["1", "2"]
    assert f"groups are those that {first / 'metrics.json'} knows of an earlier evaluation" in told()
    with pytest.raises(ConfigError, match=r"the models' groups differ .*first.*the folders in .*give --groups"):
        dinounet.compare([first, second], truth, labels=labels, by="group")


def test_compare_by_group(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    predictions, truth, table = folders
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in predictions.glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) * (path.stem < "p4")).save(copy / path.name)
    found = dinounet.compare([predictions, copy], truth, labels=LABELS, by="group", groups=table)
    assert (found.by, found.groups, len(found.cases)) == ("group", tuple(PATIENTS), 18)
    one = found.models[1].differences["a"]["dice"]
    assert one.wins + one.ties + one.losses == 6 and one.ties >= 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "in no folder of their own; give --groups a CSV file with the columns case and group"),
        ("case,group\ns0,x\n", "has no group for s1"),
        ("case,group\ns0,x\ns1,\n", "line 3 says no group"),
        ("case,group\ns0,x\ns1,x\ns0,y\n", "line 4 puts s0 into y, another one into x"),
        ("image,mask\ns0,x\n", "its first line must name case and group"),
    ],
)
def test_what_says_no_groups_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: str | None, message: str
) -> None:
    for folder in ("t", "p"):
        (tmp_path / folder).mkdir()
        for index in range(2):
            Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / folder / f"s{index}.png")
    words = ["evaluate", str(tmp_path / "p"), str(tmp_path / "t"), "--labels", "background=0,a=1", "--by", "group"]
    if rows is not None:
        (tmp_path / "groups.csv").write_text(rows)
        words += ["--groups", str(tmp_path / "groups.csv")]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p" / "metrics.json").exists()
