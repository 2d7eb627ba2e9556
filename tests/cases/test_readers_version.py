"""What was made when files were read otherwise is made anew, or told of: caches, plans, runs, bundles."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
from PIL import Image

import dinounet
from datasets import picture
from dinounet.data import cache
from dinounet.data.dataset import read_dataset
from dinounet.errors import DataError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan, read_plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_run
from dinounet.training import session
from networks import planned

pytestmark = pytest.mark.slow

OLD = "with files as version 1 of our readers gave them, and this is version 2: some files have another spacing"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "pictures"
    for seed in range(3):
        for folder, pixels in zip(("images", "masks"), picture((40, 48), seed), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{seed}.png")
    return root


def told_by(verb: Callable[[], Any]) -> list[str]:
    """What a verb says of how files were read."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        verb()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    return [line["text"] for line in lines if line["event"] == "readers"]


class Story(NamedTuple):
    """Of a run that was trained by a plan of an older version."""

    plan: Path
    run: Path
    told: list[str]


@pytest.fixture(scope="module")
def story(data: Path) -> Story:
    plan, run = data.parent / "plan.json", data.parent / "run"
    recipe = Recipe(steps=1, augmentation="none", batch_size=1)
    write_json(plan, Plan(plan_data(read_dataset(data), (32, 32)), planned(num_classes=3), recipe))
    content = json.loads(plan.read_text())
    assert content["data"].pop("readers") == 2
    plan.write_text(json.dumps(content))
    told = told_by(
        lambda: dinounet.train(data, run, plan=plan, weights="random", device="cpu", report=False, fold="all")
    )
    return Story(plan, run, told)


def test_a_plan_of_another_reading_is_told_of_and_noted(story: Story) -> None:
    assert read_plan(story.plan).data.readers == 1
    (sentence,) = story.told
    assert sentence.startswith(f"{story.plan} was decided {OLD}")
    record = read_run(story.run)
    assert (record.notes, record.readers) == ((sentence,), 2)


def test_going_on_with_a_run_of_another_reading_is_told_and_noted(
    story: Story, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((story.run / "run.json").read_text())
    del content["readers"], content["notes"]  # as an older version began it
    run, trained = tmp_path / "run", []
    run.mkdir()
    (run / "run.json").write_text(json.dumps({**content, "status": "interrupted"}))
    monkeypatch.setattr(session, "fit", lambda network, record, *_, **__: trained.append(record) or record)
    (sentence,) = told_by(lambda: dinounet.train(data, run, resume=True, report=False))
    assert sentence.startswith(f"{run} was started {OLD}")
    assert trained[0].notes == (sentence,)
    made = {path.name for path in (run / "cache").glob("*-*")}
    assert made == {path.name for path in (story.run / "cache").glob("*-*")}  # by this version


def test_predicting_by_a_run_or_bundle_of_another_reading_is_told(story: Story, tmp_path: Path) -> None:
    (sentence,) = told_by(lambda: dinounet.load(story.run))
    assert sentence.startswith(f"{story.run} was planned {OLD}")
    dinounet.export([story.run], tmp_path / "bundle")
    (sentence,) = told_by(lambda: dinounet.load(tmp_path / "bundle"))
    assert sentence.startswith(f"{tmp_path / 'bundle'} was planned {OLD}")


def test_slices_of_another_reading_are_made_anew(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_dataset(data)
    decided = plan_data(dataset)
    before = cache.build_cache(dataset.cases[:1], decided, tmp_path)
    monkeypatch.setattr(cache, "READERS", 1)
    (other,) = cache.build_cache(dataset.cases[:1], decided, tmp_path)
    assert other.folder != before[0].folder
    assert cache.build_cache(dataset.cases[:1], replace(decided, readers=7), tmp_path)[0].folder == other.folder


def test_sheared_images_are_predicted_on_their_voxels(story: Story, tmp_path: Path) -> None:
    sheared = np.array([[0.8, 0, 0.9, -32], [0, 0.8, 0, -30], [0, 0, 3.0, -40], [0, 0, 0, 1]])
    scan = tmp_path / "new" / "b.nii.gz"
    scan.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.stack([picture((40, 36), seed)[0] for seed in (1, 2)], -1), sheared), scan)
    (mask,) = dinounet.predict(story.run, [scan.parent], tmp_path / "out", uncertainty=True)
    for path in (mask, *(tmp_path / "out" / "uncertainty").iterdir()):
        np.testing.assert_allclose(nibabel.load(path).affine, sheared, rtol=1e-6)
        assert nibabel.load(path).shape == (40, 36, 2)
    np.testing.assert_array_equal(np.asarray(nibabel.load(mask).dataobj).T, dinounet.load(story.run).predict(scan))
    with pytest.raises(
        DataError, match=r"b\.nii\.gz is sheared: .* which \.nrrd can't store; predict it with --format"
    ):
        dinounet.predict(story.run, [scan.parent], tmp_path / "nrrd", format=".nrrd")
