"""The statistics of a dataset: in bounded memory, each case weighing the same, and of what the network gets."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from sklearn.decomposition import PCA

from dinounet.data.arrays import SAMPLES, SAMPLES_A_CASE, Reservoir, Samples
from dinounet.data.dataset import read_dataset
from dinounet.data.images import read_image
from dinounet.data.preprocessing import image_to_slices
from dinounet.planning.data_plan import plan_data

LABELS = {"background": 0, "disc": 1}


@pytest.mark.slow
def test_ten_thousand_images_in_colours_take_less_than_200_mb() -> None:
    random = np.random.default_rng(0)
    cases = [random.integers(0, 256, (SAMPLES_A_CASE, 3), np.uint8) for _ in range(10)]
    samples = Samples()
    tracemalloc.start()
    for number in range(10_000):
        samples.foreground.add(cases[number % 10].copy())
    (chosen,) = samples.foreground.chosen()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6
    assert chosen.shape == (SAMPLES, 3)
    np.testing.assert_allclose(chosen.mean(0), np.concatenate(cases).mean(0), rtol=2e-3)


def test_of_many_cases_each_weighs_the_same_and_of_few_all_is_kept_in_order() -> None:
    few = Reservoir(5000)
    for case in range(50):
        few.add(np.full(100, case), np.arange(100))
    cases, numbers = few.chosen()
    assert np.array_equal(cases, np.repeat(np.arange(50), 100))
    assert np.array_equal(numbers, np.tile(np.arange(100), 50))
    many = Reservoir(5000)
    for case in range(1000):
        many.add(np.full(100, case), np.arange(100))
    cases, numbers = many.chosen()
    assert len(cases) == 5000
    assert len(set(zip(cases.tolist(), numbers.tolist(), strict=True))) == 5000
    counts = np.bincount(cases // 100, minlength=10)  # a hundred cases together, early and late ones
    assert abs(counts - 500).max() < 5 * np.sqrt(500 * 0.9)


def write_dataset(root: Path, channels: int) -> Path:
    """Volumes of correlated channels of very different scales, none of them centred."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rows, columns = np.mgrid[:100, :90]
    disc = ((rows - 50) ** 2 + (columns - 45) ** 2 < 30**2).astype(np.uint8)
    mixing = np.random.default_rng(9).normal(size=(channels, channels))
    scales, shifts = np.array([300.0, 0.5, 40.0, 5.0])[:channels], np.array([-200.0, 3.0, 1000.0, 0.0])[:channels]
    for case in range(3):
        noise = np.random.default_rng(case).normal(size=(channels, 100, 90)) + 2 * disc
        stacked = np.einsum("cd,dyx->cyx", mixing, noise) * scales[:, None, None] + shifts[:, None, None] * (case + 1)
        image = np.moveaxis(stacked, 0, -1).astype(np.float32)[None]
        sitk.WriteImage(sitk.GetImageFromArray(image, isVector=True), str(root / f"images/{case}.mha"))
        sitk.WriteImage(sitk.GetImageFromArray(disc[None]), str(root / f"masks/{case}.mha"))
    return root


@pytest.mark.parametrize(
    "names", [("CT", "noNorm", "rescale_to_0_1", "T1"), ("T1", "T2"), ("noNorm", "CT")], ids=" ".join
)
def test_the_mixtures_are_principal_components_of_what_the_network_gets(names: tuple[str, ...], tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", len(names))
    plan = plan_data(read_dataset(data, LABELS, names))
    pixels = np.concatenate(
        [image_to_slices(read_image([path]), plan)[0] for path in sorted((data / "images").iterdir())], 2
    )
    pixels = pixels.reshape(len(names), -1)
    expected = PCA(min(3, len(names)), whiten=True).fit(pixels.T)
    theirs = expected.components_ / np.sqrt(expected.explained_variance_)[:, None]
    ours = np.array(plan.channel_projection)[: len(theirs)]
    strong = expected.explained_variance_ > 0.01 * expected.explained_variance_[0]
    assert strong[0]
    for mine, other in zip(ours[strong], theirs[strong], strict=True):
        across = (mine - np.sign(mine @ other) * other) @ np.cov(pixels)
        assert np.linalg.norm(across) < 0.05 * np.linalg.norm(other @ np.cov(pixels))
    np.testing.assert_allclose((ours[strong] @ pixels).std(1), 1, rtol=0.03)
