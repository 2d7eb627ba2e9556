"""Models side by side: paired differences by hand and by SciPy, what is known of their cost, and what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import bootstrap, wilcoxon

import dinounet
from dinounet.cli.main import main
from dinounet.errors import ConfigError, DataError
from dinounet.reporting.tables import print_comparison
from dinounet.schema.base import read_record
from dinounet.schema.comparison import Comparison

LABELS = "background=0,grey=1,white=2"
CASES = [f"case_{index}" for index in range(8)]


def models(root: Path) -> dict[str, Path]:
    """A truth, and three models: off by up to 5 columns, off by one less if at all, and like the first."""
    truth = np.zeros((40, 60), np.uint8)
    truth[10:30, 20:40], truth[15:25, 25:35] = 1, 2
    folders = {name: root / name for name in ("truth", "first", "second", "third")}
    for folder in folders.values():
        folder.mkdir()
    for index, case in enumerate(CASES):
        off = index % 6
        for name, shift in (("truth", 0), ("first", off), ("second", max(off - 1, 0)), ("third", off)):
            Image.fromarray(np.roll(truth, shift, 1)).save(folders[name] / f"{case}.png")
    return folders


@pytest.mark.slow
def test_differences_equal_scipy_s_and_wins_are_counted_by_case(tmp_path):
    folders = models(tmp_path)
    three = [folders[name] for name in ("first", "second", "third")]
    found = dinounet.compare(three, folders["truth"], tmp_path / "new" / "compare.json", labels=LABELS)
    assert read_record(Comparison, tmp_path / "new" / "compare.json", what="a comparison") == found
    first, second, third = found.models
    assert [model.name for model in found.models] == ["first", "second", "third"] and found.cases == tuple(CASES)

    metrics = [dinounet.evaluate(folder, folders["truth"], labels=LABELS) for folder in three]
    assert second.mean_over_cases == metrics[1].mean_over_cases
    assert second.mean_over_cases_and_classes == metrics[1].mean_over_cases_and_classes
    for name in ("dice", "hd95", "nsd"):
        a, b = (np.array([getattr(case.classes["white"], name) for case in one.cases]) for one in metrics[:2])
        one = second.differences["white"][name]
        assert one.mean == pytest.approx((b - a).mean())
        assert one.p == pytest.approx(wilcoxon(b, a).pvalue)
        interval = bootstrap(
            (b - a,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        assert one.interval == pytest.approx(tuple(interval), abs=0.2 * (b - a).std() / np.sqrt(8))
    # cases 0 and 6 are right in both models; HD95 is lower in the six others
    white = second.differences["white"]["hd95"]
    assert (white.wins, white.ties, white.losses, white.mean) == (6, 2, 0, pytest.approx(-6 / 8))
    over = second.differences_over_classes["dice"]
    a, b = (np.array([case.dice for case in one.cases]) for one in metrics[:2])
    assert (over.mean, over.p) == (pytest.approx((b - a).mean()), pytest.approx(wilcoxon(b, a).pvalue))

    assert first.differences is None and first.differences_over_classes is None
    same = third.differences["grey"]["dice"]
    assert (same.mean, same.p, same.interval, same.ties) == (0, 1, (0, 0), 8)

    back = dinounet.compare([folders["second"], folders["first"]], folders["truth"], labels=LABELS).models[1]
    white = back.differences["white"]["hd95"]
    assert (white.wins, white.ties, white.losses, white.mean) == (0, 2, 6, pytest.approx(6 / 8))


def test_volumes_too_large_are_as_bad_as_too_small(tmp_path):
    for name, columns in (("truth", 20), ("a", 26), ("b", 17)):
        (tmp_path / name).mkdir()
        mask = np.zeros((10, 40), np.uint8)
        mask[2:8, 5 : 5 + columns] = 1
        Image.fromarray(mask).save(tmp_path / name / "x.png")
    found = dinounet.compare([tmp_path / "a", tmp_path / "b"], tmp_path / "truth", labels="background=0,x=1")
    assert [model.mean_over_cases["x"].volume_difference for model in found.models] == [36, -18]
    one = found.models[1].differences["x"]["absolute_volume_difference"]
    assert (one.mean, one.wins, one.losses, one.interval, one.p) == (-18, 1, 0, None, 1)


@pytest.mark.slow
def test_what_is_known_of_training_and_prediction(tmp_path):
    folders = models(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"trained_parameters": 6_194_948, "seconds": 5400.5}))
    labels = {"background": 0, "grey": 1, "white": 2}
    records = {
        "first": {"labels": labels, "models": [{"run": str(tmp_path / "run")}] * 2, "seconds": 4.0, "images": 8},
        "second": {"labels": labels, "models": [{"run": str(tmp_path / name)} for name in ("run", "gone")]},
    }
    for name, record in records.items():
        (folders[name] / "prediction.json").write_text(json.dumps(record))
    found = dinounet.compare([folders["first"], folders["second"]], folders["truth"])
    known, unknown = (model.origin for model in found.models)
    assert (known.trained_parameters, known.training_seconds, known.seconds_per_image) == (
        2 * 6_194_948,
        2 * 5400.5,
        0.5,
    )  # of both folds
    assert (unknown.trained_parameters, unknown.training_seconds, unknown.seconds_per_image) == (None, None, None)
    text = io.StringIO()
    print_comparison(found, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in text.getvalue()
    assert any("first" in line and "12,389,896" in line and "3:00:01" in line and "0.50" in line for line in lines)
    assert any("second" in line and line.count("unknown") == 3 for line in lines)
    flowing = " ".join(text.getvalue().split())
    assert (
        "Wilcoxon" in flowing and "not corrected" in flowing and "6/2/0" in flowing and "difference to first" in flowing
    )

    other = dinounet.compare([folders["first"], folders["third"]], folders["truth"], labels=LABELS)
    text = io.StringIO()
    print_comparison(other, Console(file=text, width=80))
    assert "1, same" in text.getvalue() and "same: no case differs" in " ".join(text.getvalue().split())


def test_the_command_names_models_and_tells_a_line(tmp_path, capsys, monkeypatch):
    models(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["compare", "old=first", "second", "--truth", "truth", "--labels", LABELS, "--tolerance", "3"]
    assert main([*words, "-o", "compare.json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [model["name"] for model in told["models"]] == ["old", "second"] and told["tolerance"] == 3
    assert told["models"] == json.loads(Path("compare.json").read_text())["models"]
    assert "old 0." in told["text"] and "second 0." in told["text"] and "compare.json" in told["text"]


def test_other_cases_are_refused_with_who_lacks_which(tmp_path):
    folders = models(tmp_path)
    (folders["second"] / "case_1.png").unlink()
    (folders["third"] / "case_2.png").rename(folders["third"] / "z.png")
    with pytest.raises(DataError) as caught:
        dinounet.compare([folders[name] for name in ("first", "second", "third")], folders["truth"], labels=LABELS)
    for words in (
        f"{folders['second']} lacks masks of cases in {folders['truth']}: case_1;",
        f"{folders['third']} lacks masks of cases in {folders['truth']}: case_2;",
        f"{folders['third']} holds masks of cases that {folders['truth']} lacks: z;",
    ):
        assert words in str(caught.value)
    assert f"{folders['first']} lacks" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first"], "there is nothing to compare first; give two folders of predictions"),
        (["first", "./first"], "first and ./first are both named first; give them names"),
        (["first", "first=second"], "first and second are both named first; give them names"),
        (["first", "second="], "'second=' names no model and its folder; write NAME=FOLDER"),
        (["first", "nowhere"], "nowhere is not a folder"),
        (["first", "second", "--truth", "first/case_0.png"], "first/case_0.png is not a folder"),
        (["first", "second", "--tolerance", "0"], "the tolerance is 0.0; it must be above 0"),
        (["first", "second", "-o", "truth"], "truth is a folder; name a file with -o"),
        (["first", "empty"], "empty holds no masks"),
        (["first", "second", "--labels", "background=0,x=1"], "first/case_0.png holds the values 2 but"),
    ],
)
def test_what_can_t_be_compared_leaves_nothing(tmp_path, capsys, monkeypatch, words, message):
    models(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given = ["--truth", "truth"] if "--truth" not in words else []
    labels = ["--labels", LABELS] if "--labels" not in words else []
    output = ["-o", "compare.json"] if "-o" not in words else []
    assert main(["compare", *words, *given, *labels, *output]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_other_labels_are_refused(tmp_path):
    folders = models(tmp_path)
    for name, white in (("first", 2), ("second", 3)):
        record = {"labels": {"background": 0, "grey": 1, "white": white}}
        (folders[name] / "prediction.json").write_text(json.dumps(record))
    with pytest.raises(
        ConfigError, match=r"grey=1,white=2 but .*second of background=0,grey=1,white=3; compare models"
    ):
        dinounet.compare([folders["first"], folders["second"]], folders["truth"])
