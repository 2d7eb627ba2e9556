"""`dinounet train` alone: to a report on the cases that were kept from training."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL.ImageFile import ImageFile

import dinounet
from dinounet import pipeline as review
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import DataError, Interrupted
from dinounet.inference.folder import predict_folder
from dinounet.io import write_json
from dinounet.pipeline import read_prediction
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_run
from networks import planned

OPTIONS = {"weights": "random", "device": "cpu", "precision": "fp32"}


LISTENING: list[list[str]] = []
"""Lists that get what this process opens, as far as Python does it; a hook can't be taken away again."""
sys.addaudithook(lambda event, of: [paths.append(str(of[0])) for paths in LISTENING] if event == "open" else None)


@pytest.fixture
def plan_file(png: Path, tmp_path: Path) -> Path:
    recipe = Recipe(steps=2, eval_interval=2, warmup=0, augmentation="none")
    write_json(tmp_path / "tiny.json", Plan(plan_data(read_dataset(png), (64, 64)), planned(num_classes=3), recipe))
    return tmp_path / "tiny.json"


@pytest.mark.slow
def test_one_command_reaches_a_report_of_the_cases_kept_from_training(
    png: Path, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--plan", str(plan_file), "--weights", "random", "--device", "cpu", "--precision", "fp32"]
    decoded: Counter[str] = Counter()
    load = ImageFile.load

    def count(picture: ImageFile) -> Any:
        if picture.tile:  # else it is decoded already
            decoded[Path(str(picture.filename)).name] += 1
        return load(picture)

    monkeypatch.setattr(ImageFile, "load", count)
    LISTENING.append([])
    assert main(["train", str(png), *words]) == 0
    assert Counter(LISTENING.pop())[str(png / "dataset.json")] == 1
    run = tmp_path / "runs" / "pictures"
    watched = read_run(run).data.validation_cases
    assert len(watched) == 2
    for name in read_run(run).data.training_cases:
        assert decoded[f"{name}_0000.png"] == 1  # for its slices
    for name in watched:
        assert decoded[f"{name}_0000.png"] == 3  # and to predict and to show it
    masks = run / "validation"
    assert {path.stem for path in masks.glob("*.png")} == set(watched)
    assert not (run / "training").exists()
    # the same as by hand
    stored = json.loads((masks / "metrics.json").read_text())
    images = [png / "imagesTr" / f"{name}_0000.png" for name in watched]
    predicted = dinounet.predict(run, images, tmp_path / "again", precision="fp32")
    for path in predicted:
        assert path.read_bytes() == (masks / path.name).read_bytes()
    (tmp_path / "truth").mkdir()
    for name in watched:
        (tmp_path / "truth" / f"{name}.png").write_bytes((png / "labelsTr" / f"{name}.png").read_bytes())
    by_hand = dinounet.evaluate(tmp_path / "again", tmp_path / "truth")
    assert stored["mean_over_cases_and_classes"]["dice"] == by_hand.mean_over_cases_and_classes.dice
    result = read_run(run).results["validation"]
    assert (result.cases, result.dice, result.clearly_above_floor) == (
        2,
        by_hand.mean_over_cases_and_classes.dice,
        None,
    )
    assert result.dice_where_present == by_hand.basis_over_classes.mean_where_present.dice
    assert result.floor == by_hand.basis_over_classes.floor
    page = (run / "report.html").read_text()
    assert all(name in page for name in watched)
    assert review.NOTHING_KEPT not in page


@pytest.mark.slow
def test_held_out_cases_are_what_the_report_shows(png: Path, tmp_path: Path) -> None:
    (tmp_path / "held out.txt").write_text("case_1\ncase_4\n")
    plan = plan_data(read_dataset(png, test=["case_1", "case_4"]), (64, 64))
    write_json(tmp_path / "plan.json", Plan(plan, planned(num_classes=3), Recipe(steps=1, augmentation="none")))
    run = dinounet.train(png, tmp_path / "run", plan=tmp_path / "plan.json", test=tmp_path / "held out.txt", **OPTIONS)
    assert sorted(path.stem for path in (run / "test").glob("*.png")) == ["case_1", "case_4"]
    assert {path.stem for path in (run / "validation").glob("*.png")} == set(read_run(run).data.validation_cases)
    page = (run / "report.html").read_text()
    assert "test cases" in page
    assert "case_4" in page


@pytest.mark.slow
def test_where_no_case_was_kept_the_report_says_so(png: Path, plan_file: Path, tmp_path: Path) -> None:
    run = dinounet.train(png, tmp_path / "run", plan=plan_file, fold="all", **OPTIONS)
    assert len(list((run / "training").glob("*.png"))) == 6
    assert review.NOTHING_KEPT in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_review_that_was_interrupted_is_made_up_for(
    png: Path, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after_one(predictor: Any, cases: Any, *others: Any, **options: Any) -> None:
        predict_folder(predictor, cases[:1], *others, **options)
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(review, "predict_folder", stop_after_one)
        with pytest.raises(Interrupted, match="trained, but stopped before the report; go on with: dinounet"):
            dinounet.train(png, run, plan=plan_file, **OPTIONS)
    assert read_run(run).status == "finished"
    (first,) = (run / "validation").glob("*.png")
    made = first.stat().st_mtime_ns
    steps = (run / "log.jsonl").read_text()
    (run / ".partial-of-a-killed-review").mkdir()
    dinounet.train(png, run, resume=True)
    assert (run / "report.html").exists()
    assert first.stat().st_mtime_ns == made  # one mask was there already, and only the other one was lacking
    assert len(list((run / "validation").glob("*.png"))) == 2
    assert read_prediction(run / "validation").images == 2
    record = json.loads((run / "run.json").read_text())
    del record["results"]  # as of a run of before
    write_json(run / "run.json", record)
    assert read_run(run).results == {}
    assert not list(run.glob(".partial*"))
    assert (run / "log.jsonl").read_text() == steps  # nothing was trained again

    (run / "report.html").unlink()
    (png / "imagesTr" / f"{read_run(run).data.validation_cases[0]}_0000.png").rename(tmp_path / "gone.png")
    (png / "labelsTr" / f"{read_run(run).data.validation_cases[0]}.png").rename(tmp_path / "gone too.png")
    with pytest.raises(DataError, match=r"pictures lacks 1 of the validation cases of .*run; put them back"):
        dinounet.train(png, run, resume=True)
