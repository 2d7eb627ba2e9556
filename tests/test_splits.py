"""Folds, groups and the held-out test list: what is learned from, what is watched, and what nobody sees."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from sklearn.model_selection import KFold

import dinounet
from datasets import describe, volume, write_nifti_dataset, write_png_dataset
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.data.layouts import Case
from dinounet.data.splits import hold_out, make_splits, read_test_list, split_cases
from dinounet.errors import ConfigError, DataError, UserError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan, read_plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import RunRecord, read_run
from dinounet.training import session
from networks import planned
from test_training import ctrl_c_at


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight flat images of four patients, each image of one grey of its own."""
    rows = ["image,mask,group"]
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 1
    for index in range(8):
        image = np.full((64, 64), 10 * (index + 1), np.uint8)
        image[0, 0] = 0  # images of one value alone are refused
        Image.fromarray(image).save(tmp_path / f"eye{index}.png")
        Image.fromarray(mask).save(tmp_path / f"eye{index}_mask.png")
        rows.append(f"eye{index}.png,eye{index}_mask.png,patient {index // 2}")
    (tmp_path / "eyes.csv").write_text("\n".join(rows))
    return tmp_path / "eyes.csv"


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Six volumes of four slices, each volume of one grey of its own."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "volumes" / folder).mkdir(parents=True)
    mask = np.zeros((4, 64, 64), np.uint8)
    mask[:, 20:40, 20:40] = 1
    for index in range(6):
        image = np.full(mask.shape, 10 * (index + 1), np.uint8)
        image[0, 0, 0] = 0
        sitk.WriteImage(volume(image), str(tmp_path / "volumes" / "imagesTr" / f"case_{index}_0000.nii.gz"))
        sitk.WriteImage(volume(mask), str(tmp_path / "volumes" / "labelsTr" / f"case_{index}.nii.gz"))
    describe(tmp_path / "volumes", ".nii.gz", ("noNorm",), {"background": 0, "square": 1})
    return tmp_path / "volumes"


def write_plan(data: Path, path: Path, test: tuple[str, ...] = (), **recipe: object) -> Path:
    """A plan with a tiny network that takes pixels as they are."""
    found = plan_data(read_dataset(data, test=test), (64, 64))
    recipe = Recipe(**{"steps": 2, "augmentation": "none", "warmup": 0, "eval_interval": 2, **recipe})
    write_json(path, Plan(found, planned(num_classes=len(found.labels.classes)), recipe))
    content = json.loads(path.read_text())
    for channel in content["data"]["channels"]:
        channel["normalisation"] = "none"
    path.write_text(json.dumps(content))
    return path


def train(data: Path, run: Path, plan: Path, **changes: object) -> RunRecord:
    dinounet.train(data, run, plan=plan, weights="random", device="cpu", precision="fp32", **changes)
    return read_run(run)


@pytest.mark.parametrize("count", [2, 4, 5, 13, 31])
def test_folds_are_those_of_scikit_learn_and_so_nnunets(count: int) -> None:
    names = [f"case_{i:02d}" for i in range(count)]
    folds = KFold(n_splits=min(5, count), shuffle=True, random_state=12345).split(names)
    expected = tuple((tuple(np.array(names)[a]), tuple(np.array(names)[b])) for a, b in folds)
    assert make_splits(names[::-1]) == expected


def test_splits_of_the_dataset_come_first(png: Path) -> None:
    split = {"train": ["case_0", "case_1"], "val": ["case_5"]}
    (png / "splits_final.json").write_text(json.dumps([split]))
    assert read_dataset(png).splits == ((("case_0", "case_1"), ("case_5",)),)
    assert read_dataset(png, test=["case_1"]).splits == ((("case_0",), ("case_5",)),)
    with pytest.raises(DataError, match="fold 0 with no case to train on"):
        read_dataset(png, test=["case_0", "case_1"])


def test_a_group_is_never_on_both_sides() -> None:
    cases = [Case(f"slice_{index:03d}", (), None, f"patient {index % 17}") for index in range(100)]
    folds = split_cases(cases)
    assert len(folds) == 5
    group_of = {case.name: case.group for case in cases}
    for training, validation in folds:
        assert not {group_of[name] for name in training} & {group_of[name] for name in validation}
        assert sorted(training + validation) == [case.name for case in cases]
    assert sorted(name for _, validation in folds for name in validation) == [case.name for case in cases]


def test_without_groups_the_folds_are_those_of_cases_and_few_groups_give_few_folds() -> None:
    names = [f"case {index}" for index in range(12)]
    assert split_cases([Case(name, ()) for name in names]) == make_splits(names)
    assert len(split_cases([Case(name, (), None, name[-1]) for name in names[:3]])) == 3
    assert split_cases([Case(name, (), None, "one") for name in names]) == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "volumes"])
def test_what_is_watched_or_held_out_is_never_learned_from(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the greys that reach the network of a real fit, which tell the cases apart."""
    data: Path = request.getfixturevalue(kind)
    test = ("patient 1",) if kind == "table" else ("case_2",)
    plan = write_plan(data, tmp_path / "plan.json", test, steps=20, eval_interval=20, batch_size=2)
    seen: dict[bool, set[int]] = defaultdict(set)
    build = session.build_planned

    def build_watched(*arguments: object) -> torch.nn.Module:
        network = build(*arguments)
        network.register_forward_pre_hook(lambda it, given: seen[it.training].update(given[0].unique().int().tolist()))
        return network

    monkeypatch.setattr(session, "build_planned", build_watched)
    record = train(data, tmp_path / "run", plan, fold=1)
    cases = {case.name: case.group or case.name for case in read_dataset(data).cases}
    grey = {name: 10 * (index + 1) for index, name in enumerate(sorted(cases))}
    assert seen[True] - {0} == {grey[name] for name in record.data.training_cases}
    assert seen[False] - {0} <= {grey[name] for name in record.data.validation_cases}
    parts = [record.data.training_cases, record.data.validation_cases, record.data.test_cases]
    assert all(parts)
    assert sorted(sum(parts, ())) == sorted(cases)
    owners = [{cases[name] for name in part} for part in parts]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert owners[2] == set(test)


@pytest.mark.slow
def test_all_cases_are_learned_from_and_none_is_watched(
    png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(png, tmp_path / "plan.json")
    record = train(png, tmp_path / "run", plan, fold="all")
    assert (record.fold, len(record.data.training_cases), record.data.validation_cases) == ("all", 6, ())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["fold"] == "all"
    assert "folds" not in {json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()}
    assert train(png, tmp_path / "first", plan).fold == 0


@pytest.mark.slow
def test_few_cases_make_few_folds_and_that_is_told(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_png_dataset(tmp_path / "few", cases=3)
    record = train(few, tmp_path / "run", write_plan(few, tmp_path / "plan.json"), fold=2)
    assert "few has 3 cases, so there are 3 folds and not 5" in capsys.readouterr().out
    assert (len(record.data.training_cases), len(record.data.validation_cases)) == (2, 1)
    train(table, tmp_path / "eyes run", write_plan(table, tmp_path / "eyes.json"))
    assert "eyes has 4 groups of cases, so there are 4 folds and not 5" in capsys.readouterr().out


@pytest.mark.slow
def test_a_single_case_is_all_trained_on_but_has_no_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_nifti_dataset(tmp_path / "one", cases=1)
    plan = write_plan(data, tmp_path / "plan.json")
    with pytest.raises(ConfigError, match=r"one has one case, .* can't be split; train on it, .* by --fold all"):
        train(data, tmp_path / "run", plan, fold=0)
    record = train(data, tmp_path / "run", plan)
    assert "all of it is trained on, without validation" in capsys.readouterr().out
    assert (record.fold, record.data.training_cases, record.data.validation_cases) == ("all", ("case_0",), ())


def test_a_test_list_names_cases_or_groups(tmp_path: Path) -> None:
    cases = [Case(f"eye{index}", (), None, f"p{index // 2}") for index in range(6)]
    path = tmp_path / "test.txt"
    path.write_text("\ufeff# from the other hospital\n\np1  # both eyes\r\neye0\neye1\n", encoding="utf-8")
    left, held_out = hold_out(cases, read_test_list(path))
    assert [case.name for case in left] == ["eye4", "eye5"]
    assert [case.name for case in held_out] == ["eye0", "eye1", "eye2", "eye3"]
    assert hold_out(cases, ()) == (tuple(cases), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eye7\npp2", r"it names eye7, which is no case and no group \(did you mean eye\d\?\); it names pp2, .*p2\?"),
        ("eye2", r"it tears the group p1 apart, of which it leaves eye3 \(name the group\); correct it"),
        ("p0\np1\np2", "holds out all 6 cases; leave some to train on"),
        ("# nobody\n\n", r"test\.txt names no case; write the name of a case or group on each line"),
        (b"\xff\xfe\x00", r"test\.txt is not text in UTF-8"),
        (None, r"test\.txt can't be read \(No such file or directory\); give --test a text file"),
    ],
)
def test_a_wrong_test_list_is_answered(text: str | bytes | None, message: str, tmp_path: Path) -> None:
    cases = [Case(f"eye{index}", (), None, f"p{index // 2}") for index in range(6)]
    path = tmp_path / "test.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        hold_out(cases, read_test_list(path))


@pytest.mark.slow
def test_what_is_held_out_is_not_looked_at_for_the_plan(
    png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.txt").write_text("case_1\ncase_4\n")
    (png / "imagesTr" / "case_4_0000.png").write_text("not even an image")
    words = ["plan", str(png), "--test", str(tmp_path / "test.txt"), "-o", str(tmp_path / "plan.json")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "held out" in told
    assert "2 cases: case_1; case_4" in told
    plan = read_plan(tmp_path / "plan.json")
    assert plan.data.test_cases == ("case_1", "case_4")
    assert plan.data.fingerprint.cases == 4


@pytest.mark.slow
def test_plans_and_interrupted_runs_remember_what_is_held_out(png: Path, tmp_path: Path) -> None:
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, name in zip(lists, ("case_1", "case_2"), strict=True):
        path.write_text(name)
    plan = write_plan(png, tmp_path / "plan.json", ("case_1",))
    with pytest.raises(
        ConfigError, match="the plan holds out case_1, and not what --test names; make a new plan with that"
    ):
        train(png, tmp_path / "run", plan, test=lists[1])
    with pytest.raises(ConfigError, match="the plan holds out no case, and not what --test names"):
        train(png, tmp_path / "run", write_plan(png, tmp_path / "other.json"), test=lists[0])
    assert not (tmp_path / "run").exists()

    with ctrl_c_at(1), pytest.raises(UserError, match="--resume"):
        train(png, tmp_path / "run", plan, fold=0)
    for name, value in {"test": lists[1], "fold": 1}.items():
        with pytest.raises(ConfigError, match=f"was started with another {name}"):
            dinounet.train(png, tmp_path / "run", resume=True, **{name: value})
    again = dict(resume=True, fold=0, test=lists[0], report=False)
    dinounet.train(png, tmp_path / "run", **again)
    assert read_run(tmp_path / "run").data.test_cases == ("case_1",)
