"""nnU-Net's own functions on the same arrays as ours: loss, schedule, folds, intensities, resampling, sampling, tiles.

`make test-nnunet` runs these; nnunetv2 needs an older timm than we allow, so it has an environment of its own.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed; `make test-nnunet` has it")

from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from datasets import describe, normalised, write_png_dataset
from dinounet.data.arrays import tile_starts, to_classes
from dinounet.data.cache import CachedCase, build_cache
from dinounet.data.dataset import read_dataset
from dinounet.data.geometry import Geometry, Volume
from dinounet.data.patches import PatchDataset
from dinounet.data.preprocessing import image_to_slices, mask_to_slices, resampled_size
from dinounet.data.splits import make_splits
from dinounet.inference.tiling import gaussian
from dinounet.planning.data_plan import plan_data
from dinounet.schema.labels import IGNORED, Labels, Region
from dinounet.schema.network import plan_unet
from dinounet.schema.plan import ChannelPlan, DataPlan, Intensities
from dinounet.schema.recipe import STEPS_AN_EPOCH, Recipe
from dinounet.training.step import learning_rate_at, make_loss

CONSTANT = 1.0
"""Our Dice loss is 1 - Dice and nnU-Net's is -Dice; the gradients are the same."""

REGIONS = (Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("edge", (3,), 3))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DataPlan:
    data = plan_data(read_dataset(write_png_dataset(tmp_path_factory.mktemp("pictures") / "data")))
    return replace(data, labels=Labels({"background": 0, "a": 1, "b": 2, "c": 3}))


def logits_and_mask(outputs: int, labels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, K, 48, 64), strong enough for some to be sure and wrong, and a mask of `labels` numbers."""
    random = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, outputs, 48, 64, generator=random)
    return logits.requires_grad_(), torch.randint(0, labels, (3, 48, 64), generator=random)


def assert_same_loss(ours: torch.Tensor, theirs: torch.Tensor, logits: torch.Tensor) -> None:
    """Values up to the constant, and gradients; both sum 10^4 float32, hence 1e-5."""
    assert ours.item() == pytest.approx(theirs.item() + CONSTANT, rel=1e-5)
    (a,), (b,) = torch.autograd.grad(ours, logits, retain_graph=True), torch.autograd.grad(theirs, logits)
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def dice_and_cross_entropy(ignore: int | None = None) -> DC_and_CE_loss:
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)


@pytest.mark.parametrize(("classes", "held"), [(2, 2), (4, 4), (4, 3), (4, 1)])  # the last two lack classes
def test_dice_and_cross_entropy(classes: int, held: int) -> None:
    logits, mask = logits_and_mask(classes, held)
    assert_same_loss(make_loss()(logits, mask), dice_and_cross_entropy()(logits, mask[:, None].float()), logits)


def test_deep_supervision_reads_the_same_pixels_with_the_same_weights() -> None:
    logits, mask = logits_and_mask(4, 4)
    scales = [logits, logits[..., ::2, ::2], logits[..., ::4, ::8]]
    targets = DownsampleSegForDSTransform([[1, 1], [0.5, 0.5], [0.25, 0.125]])(segmentation=mask)["segmentation"]
    weights = np.array([1, 0.5, 0.25]) / 1.75  # as its trainer makes them; test_nnunet_stages compares with that
    theirs = DeepSupervisionWrapper(dice_and_cross_entropy(), weights)
    assert_same_loss(make_loss()(scales, mask), theirs(scales, [target[:, None] for target in targets]), logits)


def test_ignored_pixels_count_for_nothing(plan: DataPlan) -> None:
    plan = replace(plan, labels=replace(plan.labels, ignore=9))
    for held in (5, 1):
        logits, mask = logits_and_mask(4, held)
        mask = mask if held > 1 else torch.full_like(mask, 4)  # and a batch that nobody judged
        theirs = dice_and_cross_entropy(ignore=4)(logits, mask[:, None].float())
        assert_same_loss(make_loss(plan)(logits, mask.where(mask != 4, torch.tensor(IGNORED))), theirs, logits)


@pytest.mark.parametrize("ignore", [False, True])
def test_regions(plan: DataPlan, ignore: bool) -> None:
    logits, mask = logits_and_mask(3, 5 if ignore else 4)
    regions = [region.labels for region in REGIONS] + ([4] if ignore else [])
    convert = ConvertSegmentationToRegionsTransform(regions=regions)
    target = torch.stack([convert(segmentation=one[None])["segmentation"] for one in mask])
    dice = {"batch_dice": True, "do_bg": True, "smooth": 1e-5, "ddp": False}
    loss = DC_and_BCE_loss({}, dice, use_ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
    # with an ignore label nnU-Net sums the cross-entropy over regions, and else takes the mean; ours always does
    loss.weight_ce = 1 / 3 if ignore else 1
    ours = make_loss(replace(plan, labels=replace(plan.labels, regions=REGIONS, ignore=9 if ignore else None)))
    masked = mask.where(mask != 4, torch.tensor(IGNORED)) if ignore else mask
    assert_same_loss(ours(logits, masked), loss(logits, target), logits)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_regions_are_written_in_the_same_order(plan: DataPlan, order: tuple[int, ...]) -> None:
    regions = tuple(Region(f"region {label}", (1, 2, 3), label) for label in order)
    manager = LabelManager({"background": 0} | {region.name: region.labels for region in regions}, list(order))
    logits, _ = logits_and_mask(3, 1)
    ours = to_classes(logits.detach(), replace(plan, labels=replace(plan.labels, regions=regions)))
    theirs = torch.stack([manager.convert_logits_to_segmentation(one) for one in logits.detach()])
    assert torch.equal(ours, theirs.long())


def test_poly_falls_once_an_epoch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = PolyLRScheduler(optimizer, 0.01, 200)
    recipe = Recipe(epochs=200, schedule="poly", warmup=0, learning_rate=0.01)
    for epoch in range(200):
        theirs.step(epoch)
        for step in (0, STEPS_AN_EPOCH - 1):
            assert learning_rate_at(epoch * STEPS_AN_EPOCH + step, recipe) == pytest.approx(theirs.get_last_lr()[0])


@pytest.mark.parametrize("cases", [5, 6, 11, 23, 100])
def test_folds(cases: int) -> None:
    names = [f"case_{(7 * index) % 101}" for index in range(cases)]
    ours = [{"train": list(training), "val": list(validation)} for training, validation in make_splits(names)]
    assert ours == generate_crossval_split(list(np.sort(names)), seed=12345, n_splits=5)


def test_fewer_cases_than_five_are_split_where_nnunet_refuses() -> None:
    names = ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="n_splits=5 greater than the number of samples"):
        generate_crossval_split(names)
    assert sorted(validation for _, validation in make_splits(names)) == [("a",), ("b",), ("c",), ("d",)]


CHANNEL = np.random.RandomState(0).normal(300, 80, (3, 40, 50)).astype(np.float32)
KNOWN = {"mean": 290.5, "std": 61.25, "percentile_00_5": 120.125, "percentile_99_5": 480.75}


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("CT", "ct"),
        ("noNorm", "none"),
        ("RGB_to_0_1", "rgb_to_0_1"),
        ("rescale_to_0_1", "rescale_to_0_1"),
        ("zscore", "zscore"),
        ("T1", "zscore"),
    ],
)
@pytest.mark.parametrize("channel", [CHANNEL, np.full_like(CHANNEL, 7.0), CHANNEL.clip(0, 255).round()])
def test_intensities(name: str, ours: str, channel: np.ndarray, tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path / "data", cases=1)
    describe(root, ".png", (name,))
    (planned,) = plan_data(read_dataset(root)).channels
    assert planned.normalisation == ours
    if ours == "rgb_to_0_1" and channel.max() > 255:
        return  # both refuse it
    theirs = get_normalization_scheme(name)(use_mask_for_norm=False, intensityproperties=KNOWN).run(channel.copy())
    result = normalised(channel, replace(planned, intensities=Intensities(**KNOWN)))
    assert result.dtype == theirs.dtype == np.float32
    # our moments are of double precision, theirs of single
    np.testing.assert_allclose(result, theirs, rtol=1e-5, atol=1e-5)


def test_a_border_of_zeros_stays_and_counts_as_the_published_code_has_it(plan: DataPlan) -> None:
    bordered = np.pad(CHANNEL, ((0, 0), (40, 40), (40, 40)))
    cropped, inside, _ = crop_to_nonzero(bordered[None], np.zeros_like(bordered, np.int8)[None])
    assert cropped.shape[1:] == CHANNEL.shape  # nnU-Net cuts it off, and looks at what is left
    scheme = get_normalization_scheme("MR")
    theirs = scheme(use_mask_for_norm=False, intensityproperties={}).run(bordered.copy())
    ours = normalised(bordered, ChannelPlan("MR", "zscore", Intensities(**KNOWN)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    masked = scheme(use_mask_for_norm=True, intensityproperties={}).run(cropped[0].copy(), inside[0])
    assert np.abs(masked - ours[:, 40:-40, 40:-40]).max() > 1


def at(array: np.ndarray, spacing: tuple[float, float, float]) -> Volume:
    """A volume with its spacing, z, y, x."""
    return Volume(array, Geometry(spacing[::-1], (0.0, 0.0, 0.0), tuple(np.eye(3).ravel())), Path("volume"))


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted"),
    [  # thick slices, which nnU-Net resamples one by one; a tie at every second border; up; a hair's breadth
        ((3, 60, 50), (5.0, 0.7, 0.9), (0.9, 0.62)),
        ((2, 64, 48), (9.0, 1.0, 1.0), (2.0, 2.0)),
        ((2, 40, 40), (9.0, 1.0, 1.0), (1.6, 1.6)),
        ((2, 33, 41), (9.0, 1.5, 1.5), (1.0, 0.5)),
        ((1, 515, 80), (9.0, 1.0, 1.0), (515 / 512, 1.0)),
        ((1, 300, 80), (9.0, 1.0, 1.0), (1.001, 1.0)),
    ],
)
def test_resampling(
    shape: tuple[int, ...], spacing: tuple[float, float, float], wanted: tuple[float, float], plan: DataPlan
) -> None:
    random = np.random.RandomState(1)
    image = random.normal(size=shape).astype(np.float32)
    blocks = np.kron(random.randint(0, 4, (shape[0], shape[1] // 4 + 1, shape[2] // 4 + 1)), np.ones((1, 4, 4), int))
    mask = blocks[:, : shape[1], : shape[2]]
    raw = replace(plan, channels=(replace(plan.channels[0], normalisation="none"),), spacing=wanted, slice_axis=0)
    target = (spacing[0], *wanted)
    size = compute_new_shape(shape, spacing, target)
    assert resampled_size(at(image, spacing), raw) == tuple(size[1:])
    theirs = resample_data_or_seg_to_shape(image[None], size, spacing, target, order=3, force_separate_z=None)
    ours = image_to_slices(at(image[None], spacing), raw)
    assert np.allclose(ours[:, 0], theirs[0], atol=1e-5)  # float32 here and float64 there
    seg = resample_data_or_seg_to_shape(
        mask[None].astype(np.int8), size, spacing, target, is_seg=True, order=1, force_separate_z=None
    )
    assert np.array_equal(mask_to_slices(at(mask, spacing), raw), seg[0])


def test_resampling_of_cubes_differs_by_what_overshoots_a_slice(plan: DataPlan) -> None:
    """nnU-Net resamples a volume of nearly equal spacings as one, which cuts overshoot at the volume's range."""
    image = np.random.RandomState(2).normal(size=(4, 30, 30)).astype(np.float32)
    raw = replace(plan, channels=(replace(plan.channels[0], normalisation="none"),), spacing=(0.6, 0.6), slice_axis=0)
    theirs = resample_data_or_seg_to_shape(
        image[None], (4, 50, 50), (1.0, 1.0, 1.0), (1.0, 0.6, 0.6), order=3, force_separate_z=None
    )[0]
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    ours = image_to_slices(at(image[None], (1.0, 1.0, 1.0)), raw)[:, 0]
    assert np.allclose(ours, theirs.clip(low, high), atol=1e-5)


@pytest.mark.parametrize("size", [(96, 40), (31, 17)])
def test_logits_return_to_the_images_size(size: tuple[int, int]) -> None:
    logits = torch.randn(4, 1, 48, 30, generator=torch.Generator().manual_seed(0))
    theirs = resample_data_or_seg_to_shape(logits, (1, *size), (9, 1, 1), (9, 1, 1), order=1, force_separate_z=None)
    ours = F.interpolate(logits[:, 0][None], size=size, mode="bilinear", align_corners=False)  # as the predictor does
    assert np.allclose(ours[0], theirs[:, 0], atol=1e-5)


@pytest.fixture(scope="module")
def dot(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, int], tuple[int, int]], CachedCase]:
    """A case with one pixel of foreground, whose image tells rows and columns, from 1; 0 is outside."""

    def make(size: tuple[int, int], place: tuple[int, int]) -> CachedCase:
        root = write_png_dataset(tmp_path_factory.mktemp("dot") / "data", cases=1, size=size)
        rows, columns = np.mgrid[1 : size[0] + 1, 1 : size[1] + 1].astype(np.uint8)
        mask = np.zeros(size, np.uint8)
        mask[place] = 1
        Image.fromarray(np.stack([rows, columns, rows], -1)).save(root / "imagesTr" / "case_0_0000.png")
        Image.fromarray(mask).save(root / "labelsTr" / "case_0.png")
        describe(root, ".png", ("noNorm",) * 3)
        dataset = read_dataset(root)
        (case,) = build_cache(dataset.cases, plan_data(dataset), root / "cache")
        return case

    return make


def windows(case: CachedCase, patch: tuple[int, int], count: int, **options: float) -> list[tuple[np.ndarray, bool]]:
    """Where our patches start, row and column, and whether they hold the foreground."""
    patches = PatchDataset(
        [case], patch, augmentation="none", seed=0, **{"batch_size": 1, "foreground_fraction": 1.0} | options
    )
    found = []
    for index in range(count):
        image, mask = patches[index]
        starts = [
            int((channel - 1 - torch.arange(side).reshape(shape))[channel > 0][0])
            for channel, side, shape in zip(image, patch, ((-1, 1), (1, -1)), strict=False)
        ]
        found.append((np.array(starts), bool(mask.any())))
    return found


def loader(patch: tuple[int, int]) -> SimpleNamespace:
    """What `get_bbox` reads of nnU-Net's loader."""
    known = {"need_to_pad": np.zeros(3, int), "patch_size": (1, *patch)}
    return SimpleNamespace(**known, has_ignore=False, annotated_classes_key=())


@pytest.mark.parametrize("size", [(100, 90), (40, 90), (40, 30)])
@pytest.mark.parametrize("place", [(0, 0), (3, 20), (20, 15), (39, 29)])
def test_a_patch_on_foreground_lies_at_the_same_place(
    size: tuple[int, int], place: tuple[int, int], dot: Callable[..., CachedCase]
) -> None:
    voxels = {1: np.array([[0, 0, *place]])}
    theirs, _ = nnUNetDataLoader.get_bbox(loader((48, 32)), np.array((1, *size)), True, voxels)
    ((ours, holds_it),) = windows(dot(size, place), (48, 32), 1)
    assert holds_it
    assert ours.tolist() == [int(start) for start in theirs[1:]]


def test_other_patches_lie_anywhere_inside(dot: Callable[..., CachedCase]) -> None:
    np.random.seed(0)
    size, patch = (60, 40), (48, 32)
    drawn = [nnUNetDataLoader.get_bbox(loader(patch), np.array((1, *size)), False, None)[0] for _ in range(2000)]
    theirs = Counter(tuple(int(start) for start in starts[1:]) for starts in drawn)
    ours = Counter(
        tuple(start.tolist()) for start, _ in windows(dot(size, (0, 0)), patch, 2000, foreground_fraction=0.0)
    )
    assert ours.keys() == theirs.keys()
    assert len(theirs) == 13 * 9
    assert max(ours.values()) < 45  # 17 expected of each; 45 is 7 deviations away


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.33, 0.5, 0.66, 1.0])
def test_the_same_patches_of_a_batch_are_on_foreground(share: float, dot: Callable[..., CachedCase]) -> None:
    case = dot((200, 200), (100, 100))
    for batch in (1, 2, 3, 5, 13, 50):
        known = SimpleNamespace(batch_size=batch, oversample_foreground_percent=share)
        theirs = [nnUNetDataLoader._oversample_last_XX_percent(known, index) for index in range(batch)]
        # a patch of one pixel holds the foreground pixel by chance once in 40,000
        ours = [
            holds_it for _, holds_it in windows(case, (1, 1), 2 * batch, batch_size=batch, foreground_fraction=share)
        ]
        assert ours == theirs * 2


def test_classes_are_drawn_evenly_however_rare(tmp_path: Path) -> None:
    root = write_png_dataset(tmp_path / "data", cases=1)
    mask = np.zeros((72, 80), np.uint8)
    mask[10:60], mask[0, 0] = 1, 2
    Image.fromarray(mask).save(root / "labelsTr" / "case_0.png")
    dataset = read_dataset(root)
    cases = build_cache(dataset.cases, plan_data(dataset), tmp_path / "cache")
    patches = PatchDataset(cases, (1, 1), batch_size=1, foreground_fraction=1.0, augmentation="none", seed=0)
    ours = Counter(int(patches[index][1]) for index in range(1000))
    voxels = {label: np.argwhere(mask[None, None] == label) for label in (1, 2)}
    np.random.seed(0)
    drawn = [nnUNetDataLoader.get_bbox(loader((1, 1)), np.array((1, 72, 80)), True, voxels)[0] for _ in range(1000)]
    theirs = Counter(int(mask[row, column]) for _, row, column in drawn)
    for counts in (ours, theirs):
        assert counts.keys() == {1, 2}
        assert counts[2] == pytest.approx(500, abs=80)  # five deviations of a fair coin


def test_tiles_start_at_the_same_places() -> None:
    for tile in (16, 17, 96, 112, 320, 512):
        for length in range(tile, 6 * tile, 1 if tile < 100 else 7):
            (theirs,) = compute_steps_for_sliding_window((length,), (tile,), 0.5)
            assert tile_starts(length, tile) == theirs, (length, tile)


@pytest.mark.parametrize("tile", [(65, 97), (64, 96), (512, 512)])
def test_tiles_are_weighed_by_the_same_gaussian_up_to_half_a_pixel(tile: tuple[int, int]) -> None:
    theirs = compute_gaussian(tile, dtype=torch.float64, device=torch.device("cpu"))
    ours = torch.from_numpy(np.outer(*map(gaussian, tile))).double()
    # its middle is the pixel at half the side: half a pixel beside the middle of an even side, where ours is; the
    # steepest slope of a Gaussian is 0.61 / deviation a pixel, and the deviation is an eighth of the side
    beside = sum(0.61 * 0.5 / (side / 8) for side in tile if side % 2 == 0)
    assert (ours - theirs).abs().max() <= 1.1 * beside + 1e-3
    if all(side % 2 for side in tile):
        assert torch.allclose(ours, theirs, rtol=0.05, atol=1e-4)  # scipy cuts the tail off


@pytest.mark.parametrize("seed", range(3))
def test_stages_of_a_unet_for_square_pixels(seed: int) -> None:
    for patch in np.random.RandomState(seed).randint(32, 600, (200, 2)).tolist():
        _, strides, kernels, _, _ = get_pool_and_conv_props((1.0, 1.0), patch, 4, 999999)
        config = plan_unet((patch[0], patch[1]), in_channels=1, num_classes=2)
        assert config.strides == strides, patch
        assert set(kernels) == {(3, 3)}
        assert config.widths == tuple(min(32 * 2**stage, 512) for stage in range(len(strides)))
