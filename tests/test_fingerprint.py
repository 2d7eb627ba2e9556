"""What is measured of the channels, and what follows: normalisation by name, and what the backbone sees of many."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from torchvision.transforms.functional import normalize

import dinounet
from datasets import LABELS, picture, write_png_dataset
from dinounet.data.dataset import read_dataset
from dinounet.data.images import read_image
from dinounet.data.preprocessing import image_to_slices
from dinounet.errors import ConfigError, DataError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data, principal_components
from dinounet.schema.plan import Plan, read_plan
from dinounet.schema.recipe import Recipe
from dinounet.schema.run import MODEL
from networks import planned

NAMED = ",".join(f"{name}={label}" for name, label in LABELS.items())


def write_pairs(root: Path, channels: int, scale: int = 1, dtype: type = np.uint8) -> Path:
    """Volumes of several channels with their masks."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for seed in range(3):
        image, mask = picture((64, 64), seed)
        noise = np.random.RandomState(seed).normal(0, 20, (channels, 64, 64))
        stacked = np.stack([image * (index + 1) / channels for index in range(channels)]) + noise
        pixels = stacked.clip(0, 255).astype(dtype) * scale
        pixels = np.moveaxis(pixels, 0, -1) if channels > 1 else pixels[0]
        sitk.WriteImage(sitk.GetImageFromArray(pixels[None], isVector=channels > 1), str(root / f"images/{seed}.mha"))
        sitk.WriteImage(sitk.GetImageFromArray(mask[None]), str(root / f"masks/{seed}.mha"))
    return root


def test_mixtures_are_principal_components_of_unit_variance() -> None:
    samples = np.random.RandomState(0).normal(size=(5, 5)) @ np.random.RandomState(1).normal(size=(5, 4000))
    samples -= samples.mean(1, keepdims=True)
    found = np.array(principal_components(samples))
    expected = PCA(3, whiten=True).fit(samples.T)
    theirs = expected.components_ / np.sqrt(expected.explained_variance_)[:, None]
    np.testing.assert_allclose(np.abs(found), np.abs(theirs), rtol=1e-6)
    assert (found.sum(1) >= 0).all()
    np.testing.assert_allclose((found @ samples).std(1), 1, rtol=1e-3)


def test_noise_is_not_raised_to_a_channel_and_two_channels_give_three_mixtures() -> None:
    base = np.random.RandomState(0).normal(size=10_000)
    nearly_equal = np.stack([base, base + 1e-3 * np.random.RandomState(1).normal(size=10_000)])
    first, second, third = np.array(principal_components(nearly_equal)) @ nearly_equal
    assert first.std() == pytest.approx(1, rel=1e-2)
    assert second.std() < 0.05
    np.testing.assert_array_equal(third, first)
    assert np.isfinite(principal_components(np.zeros((4, 100)))).all()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_every_number_of_channels_is_planned_trained_and_predicted(channels: int, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", channels)
    plan = plan_data(read_dataset(data, LABELS))
    assert (plan.channel_projection is None) == (channels in (1, 3))
    assert plan.fingerprint.smallest_shape == plan.fingerprint.largest_shape == (1, 64, 64)
    recipe = Recipe(steps=1, augmentation="none", batch_size=1)
    write_json(tmp_path / "plan.json", Plan(plan, planned(num_classes=3, in_channels=channels), recipe))
    run = dinounet.train(
        data,
        tmp_path / "run",
        plan=tmp_path / "plan.json",
        weights="random",
        device="cpu",
        labels=NAMED,
    )
    stored = load_file(run / MODEL).get("channel_projection")
    if channels in (1, 3):
        assert stored is None
    else:
        torch.testing.assert_close(stored, torch.tensor(plan.channel_projection))
    assert dinounet.load(run).predict(data / "images" / "0.mha").shape == (1, 64, 64)


def test_colours_get_imagenets_statistics_of_their_own(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 3)
    plan = plan_data(read_dataset(data, LABELS, ("rgb", "rgb", "rgb")))
    assert [channel.normalisation for channel in plan.channels] == ["rgb"] * 3
    image = read_image([data / "images" / "0.mha"])
    expected = normalize(
        torch.from_numpy(image.array[:, 0] / 255).float(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    np.testing.assert_allclose(image_to_slices(image, plan)[0], expected, rtol=1e-5, atol=1e-6)


def test_more_than_a_byte_is_no_colour(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 3, scale=16, dtype=np.uint16)
    with pytest.raises(DataError, match=r"0\.mha holds \d+ to \d+ in the channel rgb, but colours go from 0 to"):
        plan_data(read_dataset(data, LABELS, ("rgb", "rgb", "rgb")))


@pytest.mark.slow
def test_channels_are_named_on_the_command_line(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 1)
    dinounet.plan(data, output=tmp_path / "plan.json", channels="CT", labels=NAMED)
    assert read_plan(tmp_path / "plan.json").data.channels[0].normalisation == "ct"
    with pytest.raises(DataError, match=r"0\.mha has 1 channels, but 2 are expected \(T1, T2\)"):
        dinounet.plan(data, channels="T1,T2")
    with pytest.raises(ConfigError, match="--channels is 'T1,'; write a name for each channel"):
        dinounet.plan(data, channels="T1,")
    described = write_png_dataset(tmp_path / "described")
    with pytest.raises(ConfigError, match=r"dataset\.json names the channels; correct them there, or leave"):
        dinounet.plan(described, channels="T1")


def test_an_edited_projection_must_fit_the_channels(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 2)
    plan = plan_data(read_dataset(data, LABELS))
    write_json(tmp_path / "plan.json", Plan(plan, planned(num_classes=3, in_channels=2), Recipe()))
    content = json.loads((tmp_path / "plan.json").read_text())
    content["data"]["channel_projection"] = [[1, 0, 0]] * 3
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"data\.channel_projection must be three rows of 2 numbers"):
        read_plan(tmp_path / "plan.json")


def test_a_picture_in_colours_is_planned_by_its_statistics(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    image, mask = picture((64, 80), 0)
    Image.fromarray(np.stack([image, image // 2, image // 4], -1)).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    plan = plan_data(read_dataset(tmp_path, LABELS))
    means = [channel.intensities.mean for channel in plan.channels]
    foreground = image[mask > 0].astype(float)
    assert means[0] == pytest.approx(foreground.mean(), rel=0.02)
    assert means[1] == pytest.approx((image[mask > 0] // 2).mean(), rel=0.02)
