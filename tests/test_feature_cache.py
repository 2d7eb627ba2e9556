"""Features that are computed once: as on the fly, never stale, and training without the backbone."""

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook

import dinounet
from datasets import write_png_dataset
from dinounet.backbones.frozen import FrozenBackbone, build_backbone, build_network
from dinounet.backbones.weights import fill_backbone
from dinounet.data import cache
from dinounet.data.dataset import read_dataset
from dinounet.data.patches import Tiles
from dinounet.errors import ConfigError, UserError
from dinounet.io import PARTIAL, write_json
from dinounet.network.dinounet import DinoUNet
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Augmentation, Recipe
from dinounet.schema.run import MODEL, read_log, read_run
from dinounet.training import feature_cache as features
from dinounet.training import session
from dinounet.training.feature_cache import Taps
from dinounet.training.loader import make_patches
from networks import planned
from test_processes import told_by, torchrun
from test_training import ctrl_c_at

pytestmark = pytest.mark.usefixtures("one_thread")  # equal runs are equal to the bit

NETWORK = planned(num_classes=3)
CASES, TILES, WATCHED = 4, 4, 20
"""Training cases of fold 0, tiles of 64 x 64 in 72 x 80 pixels, and patches in a look at the validation cases."""


def write_plan(data: Path, path: Path, **changes: object) -> Path:
    options = {"steps": 4, "eval_interval": 2, "warmup": 2, "augmentation": "flip", "cache_features": "on", **changes}
    write_json(path, Plan(plan_data(read_dataset(data), (64, 64)), NETWORK, Recipe(**options)))
    return path


@pytest.fixture
def plan_file(png: Path, tmp_path: Path) -> Path:
    return write_plan(png, tmp_path / "tiny.json")


def train(data: Path, run: Path, plan: Path, **changes: object) -> Path:
    options = {"plan": plan, "weights": "random", "device": "cpu", "precision": "fp32", "report": False, **changes}
    return dinounet.train(data, run, **options)


@pytest.fixture
def seen() -> Iterator[list[int]]:
    """Gets an entry for each patch that a backbone sees."""
    found: list[int] = []

    def count(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, FrozenBackbone):
            found.extend([1] * len(given[0]))

    with register_module_forward_pre_hook(count):
        yield found


@pytest.mark.slow
def test_kept_taps_are_those_of_the_mirrored_tile_to_bfloat16(png: Path, plan_file: Path, tmp_path: Path) -> None:
    run = train(png, tmp_path / "run", plan_file)
    backbone = build_backbone(NETWORK)
    fill_backbone(backbone, NETWORK.backbone, "random", seed=0)
    (slices,) = run.glob("cache/case_0-*")
    (folder,) = run.glob("cache/features/case_0-*")
    picture = torch.from_numpy(np.load(slices / "image.npy"))[0]
    taps = Taps(folder, ((16, 64),) * 4)
    assert np.load(folder / "taps.npy").shape == (TILES * 4, 4 * 16 * 64)
    tiles = [picture[:, row : row + 64, column : column + 64] for row in (0, 8) for column in (0, 16)]
    views = [tile.flip(axes) if axes else tile for tile in tiles for axes in ((), (-2,), (-1,), (-2, -1))]
    for number, view in enumerate(views):
        expected = backbone(view[None].expand(-1, 3, -1, -1))
        for kept, tap in zip(taps.read(number), expected, strict=True):
            torch.testing.assert_close(kept.float(), tap[0].to(torch.bfloat16).float(), rtol=2**-7, atol=1e-4)


@pytest.mark.slow
def test_steps_from_the_cache_are_those_on_the_fly_where_patches_are_the_same(tmp_path: Path) -> None:
    data = write_png_dataset(tmp_path / "pictures", size=(64, 64))  # one tile each
    runs = {}
    for wanted in ("on", "off"):
        fixed = {"augmentation": "none", "foreground_fraction": 0.0}  # one on foreground may stick out of the slice
        plan = write_plan(data, tmp_path / f"{wanted}.json", cache_features=wanted, **fixed)
        runs[wanted] = read_log(train(data, tmp_path / wanted, plan))
    for cached, computed in zip(runs["on"], runs["off"], strict=True):
        name = "loss" if "loss" in computed else "validation_loss"
        assert cached[name] == pytest.approx(computed[name], rel=2e-3)


def test_given_taps_give_the_logits_of_the_backbone() -> None:
    network = build_network(replace(NETWORK, in_channels=5)).eval()
    image = torch.randn(1, 5, 70, 90)
    with torch.no_grad():
        taps = network.backbone_features(image)
        expected = network(image)
        network.backbone.drop_weights()
        torch.testing.assert_close(network(image, *taps), expected, rtol=1e-4, atol=1e-4)
    assert not list(network.backbone.parameters())


@pytest.mark.slow
def test_training_has_no_backbone_and_the_record_says_so(
    png: Path, plan_file: Path, tmp_path: Path, seen: list[int]
) -> None:
    held = set()

    def look(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, DinoUNet) and len(given) > 1:  # the taps beside the image
            held.add(sum(parameter.numel() for parameter in module.backbone.parameters()))

    with register_module_forward_pre_hook(look):
        run = train(png, tmp_path / "run", plan_file)
    assert held == {0}
    assert len(seen) == 1 + CASES * TILES * 4 + WATCHED  # the first is the trial step's
    record = read_run(run)
    assert record.frozen_parameters > 0
    assert record.plan.recipe.cache_features == "on"
    assert record.plan.features is not None and record.plan.features.cached
    on_disk = sum(path.stat().st_size for path in run.glob("cache/features/*/taps.npy"))
    assert on_disk == pytest.approx(record.plan.features.bytes, rel=0.01)
    assert len(list(run.glob("examples/*.png"))) == 2


@pytest.mark.slow
def test_what_is_kept_is_used_by_equal_runs_and_made_anew_when_something_changes(
    png: Path, tmp_path: Path, seen: list[int]
) -> None:
    def count(name: str, **changes: object) -> int:
        seen.clear()
        plan = write_plan(png, tmp_path / f"{name}.json", **changes)
        train(png, tmp_path / name, plan, cache=tmp_path / "shared")
        return len(seen) - 1

    everything = CASES * TILES * 4 + WATCHED
    assert count("first") == everything
    assert count("again", steps=2, learning_rate=1e-4) == 0
    assert count("other backbone", seed=1) == everything  # the seed decides random weights
    assert count("other views", augmentation="none") == CASES * TILES
    assert count("turned", augmentation="nnunet", feature_variants=2) == CASES * TILES * 8 * 2
    changed = png / "imagesTr" / "case_0_0000.png"
    os.utime(changed, (1, 1))
    assert "case_0" in read_run(tmp_path / "first").data.training_cases
    assert count("another file") == TILES * 4
    seen.clear()
    train(png, tmp_path / "another fold", tmp_path / "first.json", cache=tmp_path / "shared", fold=1)
    assert 1 < len(seen) < 1 + everything  # folds share cases


def test_samples_are_all_views_of_tiles_that_cover_every_pixel(png: Path, tmp_path: Path) -> None:
    def tiles_of(augmentation: Augmentation, variants: int) -> Tiles:
        plan = Plan(plan_data(read_dataset(png), (64, 64)), NETWORK, Recipe(augmentation=augmentation))
        cases = cache.build_cache(read_dataset(png).cases, plan.data, tmp_path / "slices")
        return Tiles(make_patches(cases, plan, augmentation), augmentation, variants)

    plain, all_ = tiles_of("none", 3), tiles_of("nnunet", 2)
    assert plain.shapes[0] == (1, 2, 2, 1, 1)  # a second variant would be the first again
    assert all_.shapes[0] == (1, 2, 2, 8, 2)
    stored = all_.patches.cases[0].mask[0]
    masks = [all_.sample(0, number)[1].numpy() for number in range(16)]
    turned = [np.rot90(part, turns) for part in (stored[:64, :64], stored[:64, :64].T) for turns in range(4)]
    assert {mask.tobytes() for mask in masks} == {part.astype(np.int64).tobytes() for part in turned}
    images, again = ([all_.sample(0, number)[0] for number in range(16)] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(images, again, strict=True))
    assert sum(torch.equal(*images[first : first + 2]) for first in range(0, 16, 2)) < 4  # the variants of a view
    covered = np.zeros_like(stored)
    for row in all_.centres[0][0]:
        for column in all_.centres[0][1]:
            covered[row - 32 : row + 32, column - 32 : column + 32] = 1
    assert covered.all()


def test_tiles_on_foreground_hold_it_and_all_are_drawn(png: Path, tmp_path: Path) -> None:
    plan = Plan(plan_data(read_dataset(png), (32, 32)), NETWORK, Recipe(batch_size=1, foreground_fraction=1.0))
    cases = cache.build_cache(read_dataset(png).cases, plan.data, tmp_path / "slices")
    tiles = Tiles(make_patches(cases, plan, "nnunet"), "nnunet", 1)
    drawn = [tiles.draw(index) for index in range(100)]
    assert all(tiles.sample(*place)[1].any() for place in drawn)
    assert [tiles.draw(index) for index in range(100)] == drawn
    anywhere = Tiles(make_patches(cases[:1], replace(plan, recipe=Recipe(foreground_fraction=0.0)), "none"), "none", 1)
    assert {anywhere.draw(index)[1] for index in range(400)} == set(range(np.prod(anywhere.shapes[0])))


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_told_before_anything_is_computed(
    png: Path, plan_file: Path, tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000))  # slices fit
    with pytest.raises(
        UserError, match=r"the cache needs 0\.0 GB but .*features has 0\.0 GB left; make room, or choose"
    ):
        train(png, tmp_path / "run", plan_file)
    assert not (tmp_path / "run").exists()
    assert len(seen) == 1


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing(
    png: Path, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = DinoUNet.backbone_features, []

    def full(network: DinoUNet, image: torch.Tensor) -> list[torch.Tensor]:
        calls.append(1)
        if len(calls) == 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return compute(network, image)

    monkeypatch.setattr(DinoUNet, "backbone_features", full)
    with pytest.raises(UserError, match=r"can't hold the cache .No space left on device.; make room"):
        train(png, tmp_path / "run", plan_file, cache=tmp_path / "shared")
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "shared" / "features").iterdir() if path.is_dir()] == []


@pytest.mark.slow
@pytest.mark.parametrize(("share", "free", "why"), [(0.9, 10**9, "takes 90% of a step"), (0.4, 10**9, "not worth it"),
                                                    (0.9, 100_000, "it would take 0.0 GB")])  # fmt: skip
def test_auto_caches_where_it_is_worth_it_and_there_is_room(
    share: float, free: int, why: str, png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(png, tmp_path / "auto.json", cache_features="auto")
    monkeypatch.setattr(features, "measure_backbone_share", lambda *_: share)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(session, "build_cache", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # far enough
    with pytest.raises(UserError):
        train(png, tmp_path / "run", plan)
    chosen = read_run(tmp_path / "run").plan.features
    assert chosen is not None and chosen.cached == (share > 0.5 and free > 10**6) and why in chosen.why


def test_the_backbones_share_is_measured_and_leaves_no_trace(png: Path) -> None:
    plan = Plan(plan_data(read_dataset(png), (64, 64)), NETWORK, Recipe())
    network = build_network(NETWORK)
    before = {name: part.clone() for name, part in network.state_dict().items()}
    random = torch.get_rng_state()
    assert 0 < features.measure_backbone_share(network, plan, "cpu", "fp32") < 0.5  # four narrow blocks
    assert all(torch.equal(part, before[name]) for name, part in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_unet_has_no_features(png: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a U-Net has no backbone whose features could be cached; leave out --cache"):
        dinounet.train(png, tmp_path / "run", network="unet", changes={"cache_features": "on"}, patch=(64, 64))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"recipe\.feature_variants is 0; it must be at least 1"):
        Recipe(feature_variants=0)


@pytest.mark.slow
def test_a_stopped_run_goes_on_without_the_backbone_to_the_same_end(
    png: Path, plan_file: Path, tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(png, tmp_path / "whole", plan_file)
    with ctrl_c_at(2), pytest.raises(UserError, match="stopped after step 2 of 4; go on with"):
        train(png, tmp_path / "broken", plan_file)
    seen.clear()
    monkeypatch.setattr(session, "rebuild_backbone", lambda *_: pytest.fail("the weights were read"))
    dinounet.train(png, tmp_path / "broken", resume=True, report=False, plan=plan_file)
    assert not seen
    assert_same(tmp_path / "broken", whole)


def die_after(alive: int) -> None:
    """Be killed when the backbone has seen so many patches."""
    compute, calls = DinoUNet.backbone_features, iter(range(alive))

    def dying(network: DinoUNet, image: torch.Tensor) -> list[torch.Tensor]:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(network, image)

    DinoUNet.backbone_features = dying  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_run_killed_while_features_are_computed_goes_on(png: Path, plan_file: Path, tmp_path: Path) -> None:
    whole, broken = train(png, tmp_path / "whole", plan_file), tmp_path / "broken"
    for alive in (30, 50):  # patches that are seen before it is killed: in the second case's, in the third's
        child = os.fork()
        if not child:
            try:
                die_after(alive)
                train(png, broken, plan_file, **({"resume": True} if broken.exists() else {}))
            finally:
                os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert list((broken / "cache" / "features").glob(f"{PARTIAL}*"))
    dinounet.train(png, broken, resume=True, report=False)
    assert not list((broken / "cache" / "features").glob(f"{PARTIAL}*"))
    assert_same(broken, whole)


@pytest.mark.slow
def test_two_processes_train_from_one_cache(png: Path, plan_file: Path, tmp_path: Path) -> None:
    whole = train(png, tmp_path / "whole", plan_file)
    words = [str(png), "-o", str(tmp_path / "two"), "--plan", str(plan_file), "--weights", "random", "--device", "cpu"]
    told = told_by(torchrun("train", *words, "--precision", "fp32", "--no-report"))
    assert "computing features" in told, told
    losses = [[line["loss"] for line in read_log(run) if "loss" in line] for run in (tmp_path / "two", whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def assert_same(run: Path, whole: Path) -> None:
    """To the last bit."""
    ours, theirs = load_file(run / MODEL), load_file(whole / MODEL)
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(ours[name]) for name, tensor in theirs.items())
