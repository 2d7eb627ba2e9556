"""The demo: its dataset, its fall-back to random weights, and the way through it."""

import json
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

import dinounet
from dinounet import pipeline as demonstration
from dinounet.data.dataset import read_dataset
from dinounet.errors import Interrupted, WeightsError
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import read_run
from test_training import ctrl_c_at

SHORT = Recipe(steps=2, batch_size=1, eval_interval=2, augmentation="none")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "Dataset152_ICBM"
    demonstration.write_demo_dataset(folder)
    return folder


def slices_of(path: Path) -> set[int]:
    """Which of the template's axial slices a slab holds, by its place in space."""
    slab, template = nibabel.load(path), load_mni152_template(resolution=1)
    first = np.linalg.inv(template.affine) @ slab.affine @ (0, 0, 0, 1)
    return {round(first[2]) + z for z in range(slab.shape[2])}


@pytest.mark.slow
def test_slabs_lie_where_the_template_has_them_with_its_labels(dataset: Path) -> None:
    template = load_mni152_template(resolution=1)
    grey, white = (
        np.asarray(load(resolution=1).dataobj) for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    for path in sorted((dataset / "labelsTs").iterdir()):
        image, mask = nibabel.load(dataset / "imagesTs" / path.name.replace(".nii", "_0000.nii")), nibabel.load(path)
        inside = np.s_[:, :, min(slices_of(path)) : max(slices_of(path)) + 1]
        np.testing.assert_allclose(np.asarray(image.dataobj), 1000 * np.asarray(template.dataobj)[inside], rtol=1e-4)
        np.testing.assert_allclose(image.affine[:3, :3], template.affine[:3, :3])
        labels = np.asarray(mask.dataobj)
        assert (grey[inside][labels == 1] >= 0.5).all()
        assert (white[inside][labels == 2] >= 0.5).all()
        assert set(np.unique(labels)) == {0, 1, 2}


@pytest.mark.slow
def test_no_two_slabs_touch(dataset: Path) -> None:
    slabs = {path.name: slices_of(path) for folder in ("labelsTr", "labelsTs") for path in (dataset / folder).iterdir()}
    assert len(slabs) == 11
    ordered = sorted(slabs.values(), key=min)
    assert all(min(after) - max(before) == 1 + 2 for before, after in pairwise(ordered))
    assert len(read_dataset(dataset).cases) == 8


@pytest.mark.slow
def test_the_demo_falls_back_says_so_and_goes_on_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(name: str, weights: str) -> Path | None:
        if weights == "hub":
            raise WeightsError("the Hub is far away")
        return None

    monkeypatch.setattr(demonstration, "find_weights", unreachable)
    monkeypatch.setattr(demonstration.train_demo, "__defaults__", (SHORT,))
    folder = tmp_path / "demo"
    told = rf"stopped after step 1 of 2; go on with: dinounet demo -o {folder} --resume"
    with ctrl_c_at(1), pytest.raises(Interrupted, match=told):
        dinounet.demo(output=folder)
    page = dinounet.demo(output=folder, resume=True)

    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["weights"] for line in told if line["event"] == "weights"] == ["random"]
    record = read_run(folder / "run")
    assert record.backbone.weights == "random"
    assert "could not be reached" in record.notes[0]
    html = page.read_text()
    assert html.index("could not be reached") < html.index("mean foreground Dice")
    assert all(case in html for case in ("slab_01", "slab_05", "slab_09"))


@pytest.mark.slow
def test_other_weights_are_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"mine\.safetensors does not exist; download the weights of dinov3_vits16"):
        dinounet.demo(output=tmp_path / "demo", weights="mine.safetensors")
