"""A dataset taken through nnU-Net's own stages and through ours: what is measured, planned, prepared, trained, tiled.

`make test-nnunet` runs these; nnunetv2 needs an older timm than we allow, so it has an environment of its own.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed; `make test-nnunet` has it")

from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from dinounet.backbones.frozen import build_network
from dinounet.data.dataset import read_dataset
from dinounet.data.geometry import coarsest_axis
from dinounet.data.images import read_image
from dinounet.data.masks import read_truth
from dinounet.data.patches import enlarged, make_transform
from dinounet.data.preprocessing import image_to_slices, mask_to_slices
from dinounet.inference import tiling
from dinounet.inference.predictor import Predictor
from dinounet.inference.torch_backend import TorchBackend
from dinounet.planning.data_plan import plan_data
from dinounet.planning.planner import largest_batch
from dinounet.schema.network import plan_unet
from dinounet.schema.plan import DataPlan, Intensities, Plan
from dinounet.schema.recipe import IN_MEMORY, RECIPES, STEPS_AN_EPOCH
from dinounet.training.step import POLY_POWER, make_loss, make_optimizer
from nnunet_oracle import Oracle, run_nnunet

PATCH = (128, 112)
"""nnU-Net's choice for the dataset."""

STATISTICS = ("mean", "std", "percentile_00_5", "percentile_99_5")


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return run_nnunet(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture(scope="module")
def plan(oracle: Oracle) -> DataPlan:
    """Ours of the same dataset."""
    return plan_data(read_dataset(oracle.root))


def two_dimensional(oracle: Oracle) -> dict[str, Any]:
    return oracle.planner.plans["configurations"]["2d"]


def with_their_intensities(oracle: Oracle, plan: DataPlan) -> DataPlan:
    """Our plan with nnU-Net's statistics, which are of other draws."""
    measured = oracle.planner.dataset_fingerprint["foreground_intensity_properties_per_channel"]
    channels = tuple(
        replace(channel, intensities=Intensities(**{name: measured[str(index)][name] for name in STATISTICS}))
        for index, channel in enumerate(plan.channels)
    )
    return replace(plan, channels=channels)


def test_the_same_is_measured_of_the_intensities(oracle: Oracle, plan: DataPlan) -> None:
    for index, channel in enumerate(plan.channels):
        theirs = oracle.planner.dataset_fingerprint["foreground_intensity_properties_per_channel"][str(index)]
        # both draw from the foreground: nnU-Net 10^8 pixels in all (here 7 x 10^6), we 10^4 a case, so that a half
        # percentile of ours is between 0.45 and 0.55; the noise makes of that less than a fiftieth of the deviation
        for name in STATISTICS:
            assert getattr(channel.intensities, name) == pytest.approx(theirs[name], abs=0.02 * theirs["std"]), name


def test_the_same_is_planned_of_the_data(oracle: Oracle, plan: DataPlan) -> None:
    theirs = two_dimensional(oracle)
    assert plan.spacing == pytest.approx(theirs["spacing"])
    assert plan.slice_axis == oracle.planner.plans["transpose_forward"][0]
    names = {"ct": "CTNormalization", "zscore": "ZScoreNormalization", "none": "NoNormalization"}
    assert [names[channel.normalisation] for channel in plan.channels] == theirs["normalization_schemes"]
    assert theirs["use_mask_for_norm"] == [False] * 3
    assert theirs["batch_dice"]


@pytest.mark.parametrize("spacing", [(3, 1, 1), (1, 3, 1), (1, 1, 3), (1, 1, 1), (2, 1, 2), (1, 1.2, 1.1), (0.7, 5, 4)])
def test_volumes_are_cut_along_the_same_axis(
    spacing: tuple[float, ...], oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"spacings": [spacing] * 3, "shapes_after_crop": [(40, 200, 200)] * 3}
    monkeypatch.setattr(oracle.planner, "dataset_fingerprint", measured)
    assert coarsest_axis((40, 200, 200), spacing) == oracle.planner.determine_transpose()[0][0]


def test_images_and_masks_are_prepared_the_same(oracle: Oracle, plan: DataPlan) -> None:
    plan = with_their_intensities(oracle, plan)
    dataset = read_dataset(oracle.root)
    assert {case.name for case in dataset.cases} == oracle.preprocessed.keys()
    for case in dataset.cases:
        image, mask = oracle.preprocessed[case.name]
        ours = image_to_slices(read_image(case.images), plan)
        assert np.allclose(ours, image.swapaxes(0, 1), atol=1e-5)  # its spline is in float64, ours in float32
        assert np.array_equal(mask_to_slices(read_truth(case), plan), mask[0])


def test_the_same_cases_are_in_a_fold(oracle: Oracle) -> None:
    training, validation = oracle.trainer.do_split()
    assert read_dataset(oracle.root).splits[0] == (tuple(training), tuple(validation))


def test_the_papers_batch_is_the_planners(oracle: Oracle, plan: DataPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    estimates: dict[int, dict[str, float]] = {}

    def theirs(voxels: float, classes: int) -> int:
        labels = {"background": 0} | {f"class {label}": label for label in range(1, classes)}
        monkeypatch.setitem(oracle.planner.dataset_json, "labels", labels)
        spacing, shape = (1.0, 1.0), (512, 512)
        planned = oracle.planner.get_plans_for_configuration(
            spacing, shape, "2d", voxels, estimates.setdefault(classes, {})
        )
        assert tuple(planned["patch_size"]) == (512, 512)
        return planned["batch_size"]

    # as many as fit into memory: the published code's own planner finds one more than nnU-Net's, for up to 14 classes
    assert [theirs(1e12, classes) for classes in (2, 14)] == [IN_MEMORY - 1] * 2
    for cases, slices in [(100, 1), (10, 9), (1, 1), (70, 3), (40, 6)]:  # 5 % of the dataset is less
        seen = replace(plan.fingerprint, cases=cases, median_shape=(slices, 300, 200))
        ours = largest_batch(replace(plan, fingerprint=seen, patch=(512, 512)))
        assert ours == theirs(float(cases * slices * 512 * 512), 2)


@pytest.fixture(scope="module")
def networks(oracle: Oracle) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our U-Net with the weights of nnU-Net's, and nnU-Net's."""
    theirs, ours = oracle.trainer.network, build_network(plan_unet(PATCH, in_channels=3, num_classes=3))
    state, lowest = theirs.state_dict(), len(ours.config.widths) - 1
    names = {"head": f"decoder.seg_layers.{lowest - 1}"}
    blocks = {f"encoder.{depth}": f"encoder.stages.{depth}.0" for depth in range(lowest + 1)}
    for stage in range(lowest):
        blocks[f"decoder.{stage}.block"] = f"decoder.stages.{stage}"
        names[f"decoder.{stage}.up"] = f"decoder.transpconvs.{stage}"
        names[f"decoder.{stage}.head"] = f"decoder.seg_layers.{stage}"
    for block, their_block in blocks.items():
        for index in (0, 1):
            names[f"{block}.conv{index + 1}"] = f"{their_block}.convs.{index}.conv"
            names[f"{block}.norm{index + 1}"] = f"{their_block}.convs.{index}.norm"
    parts = {name: name.rpartition(".") for name in ours.state_dict()}
    ours.load_state_dict({name: state[f"{names[module]}.{part}"] for name, (module, _, part) in parts.items()})
    return ours, theirs


def test_a_unet_has_the_same_stages_initial_values_and_parameters(oracle: Oracle) -> None:
    config = plan_unet(PATCH, in_channels=3, num_classes=3)
    planned = two_dimensional(oracle)["architecture"]["arch_kwargs"]
    assert [list(stride) for stride in config.strides] == [list(stride) for stride in planned["strides"]]
    assert list(config.widths) == list(planned["features_per_stage"])

    torch.manual_seed(0)
    ours, theirs = build_network(config), oracle.trainer.network
    # ours lacks the lowest head, whose loss nnU-Net weighs with zero, and biases that instance norm takes out again
    unused = sum(parameter.numel() for parameter in theirs.decoder.seg_layers[0].parameters())
    convolutions = [theirs.encoder.stages, theirs.decoder.stages]
    biases = sum(part.conv.bias.numel() for parts in convolutions for part in parts.modules() if hasattr(part, "conv"))
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    assert count[0] == count[1] - unused - biases

    def spread(network: torch.nn.Module) -> list[tuple[Any, ...]]:
        """Shape and deviation of all tensors that are large enough for the deviation to be known to a few per cent."""
        return sorted((*p.shape, p.std().item()) for p in network.parameters() if p.numel() > 10_000)

    assert len(spread(ours)) == 18
    assert np.allclose(spread(ours), spread(theirs), rtol=0.03)


def test_a_unet_computes_the_same_at_every_scale(networks: tuple[torch.nn.Module, torch.nn.Module]) -> None:
    ours, theirs = networks
    image = torch.randn(2, 3, *PATCH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs.train()(image), ours.train()(image)
    assert [scale.shape for scale in found] == [scale.shape for scale in expected[:-1]]
    for scale, other in zip(found, expected, strict=False):
        assert torch.allclose(scale, other, atol=1e-4 * other.abs().max().item())  # ten layers of float32


def test_the_trainers_loss(oracle: Oracle) -> None:
    scales = oracle.trainer._get_deep_supervision_scales()
    random = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (2, *PATCH), generator=random)
    targets = DownsampleSegForDSTransform(scales)(segmentation=mask)["segmentation"]
    logits = [torch.randn(2, 3, *target.shape[1:], generator=random) for target in targets]
    theirs = oracle.trainer.loss(logits, [target[:, None] for target in targets])
    # ours is 1 - Dice; the network gives no logits at the lowest scale, whose weight is zero
    assert make_loss()(logits[:-1], mask).item() == pytest.approx(theirs.item() + 1, rel=1e-5)


def test_the_papers_recipe_is_the_trainers_where_it_is_not_its_own(oracle: Oracle) -> None:
    trainer, recipe = oracle.trainer, RECIPES["paper"]
    (theirs,), (ours,) = trainer.optimizer.param_groups, make_optimizer(trainer.network, recipe).param_groups
    assert type(trainer.optimizer) is torch.optim.SGD
    assert {name: theirs[name] for name in ("momentum", "nesterov", "weight_decay", "dampening")} == {
        name: ours[name] for name in ("momentum", "nesterov", "weight_decay", "dampening")
    }
    assert (trainer.initial_lr, recipe.learning_rate) == (1e-2, 1e-3)  # as published
    assert (trainer.num_epochs, recipe.length / STEPS_AN_EPOCH) == (1000, 200)  # as published
    assert trainer.num_iterations_per_epoch == STEPS_AN_EPOCH
    assert trainer.oversample_foreground_percent == recipe.foreground_fraction
    assert trainer.lr_scheduler.exponent == POLY_POWER


def their_transform(oracle: Oracle, patch: tuple[int, int]) -> tuple[Any, Any, Any]:
    """What the trainer does to patches, how far it turns them, and how large it cuts them."""
    configuration = oracle.trainer.configuration_manager.configuration
    before, configuration["patch_size"] = configuration["patch_size"], list(patch)
    turn, flat, cut, axes = oracle.trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    configuration["patch_size"] = before
    transform = oracle.trainer.get_training_transforms(patch, turn, None, axes, flat, use_mask_for_norm=[False] * 3)
    return transform, turn, cut


@pytest.mark.parametrize("patch", [(512, 512), (128, 112), (96, 144), (320, 192), (96, 320)])
def test_patches_are_turned_as_far_and_cut_larger(patch: tuple[int, int], oracle: Oracle) -> None:
    _, turn, cut = their_transform(oracle, patch)
    assert make_transform("nnunet", patch).transforms[0].rotation == pytest.approx(turn)
    assert all(ours > theirs for ours, theirs in zip(enlarged(patch, "nnunet"), cut, strict=True))  # on purpose


@pytest.mark.parametrize("patch", [(64, 64), (96, 48)])
def test_the_same_random_numbers_augment_the_same(patch: tuple[int, int], oracle: Oracle) -> None:
    ours, (theirs, _, _) = make_transform("nnunet", patch), their_transform(oracle, patch)
    cut = enlarged(patch, "nnunet")
    random = np.random.RandomState(0)
    image = torch.from_numpy(random.normal(size=(3, *cut)).cumsum(1).cumsum(2).astype(np.float32) / 30)
    mask = torch.zeros(1, *cut, dtype=torch.int16)
    mask[:, 10:-20, 20:-10], mask[:, 30:70, 40:60] = 1, 2
    changed = 0
    for seed in range(100):  # the rarest of the eight steps is done once in ten times
        results = []
        for transform in (ours, theirs):
            np.random.seed(seed)
            torch.manual_seed(seed)
            results.append(transform(image=image.clone(), segmentation=mask.clone()))
        a, b = results
        assert torch.allclose(a["image"], b["image"], atol=1e-3), seed  # it may blur by Fourier transform
        assert torch.equal(a["segmentation"], b["segmentation"]), seed
        changed += not torch.equal(a["image"], image[:, : patch[0], : patch[1]])
    assert changed > 70


def test_a_volume_is_segmented_the_same(
    oracle: Oracle,
    plan: DataPlan,
    networks: tuple[torch.nn.Module, torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the file to the mask, in tiles, by a network whose random weights make every rounding count."""
    ours, theirs = networks
    trainer, patch = oracle.trainer, (64, 48)
    configuration = trainer.plans_manager.get_configuration("2d")
    monkeypatch.setitem(configuration.configuration, "patch_size", list(patch))  # smaller, to have tiles
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    monkeypatch.setattr(theirs.decoder, "deep_supervision", False)
    predictor.manual_initialization(
        theirs, trainer.plans_manager, configuration, [theirs.state_dict()], trainer.dataset_json, "nnUNetTrainer", None
    )
    measured = replace(with_their_intensities(oracle, plan), patch=patch)
    segmenter = Predictor(TorchBackend([ours], "cpu", "fp32"), Plan(measured, ours.config, RECIPES["paper"]), None)
    case = read_dataset(oracle.root).cases[5]
    volume = read_image(case.images)
    image, properties = trainer.plans_manager.image_reader_writer_class().read_images([str(p) for p in case.images])
    expected = predictor.predict_single_npy_array(image, properties, None, None, False)
    assert min(np.bincount(expected.ravel(), minlength=3)) > 1000  # random weights do find everything somewhere
    assert (segmenter.predict_volume(volume) == expected).mean() > 0.98
    # that was our Gaussian, in the middle of a tile and not half a pixel beside it; by nnU-Net's only its sums in half
    # precision make a difference
    monkeypatch.setattr(
        tiling, "gaussian", lambda side: compute_gaussian((side,), dtype=torch.float32, device="cpu").numpy()
    )
    assert (segmenter.predict_volume(volume) == expected).mean() > 0.999
