"""Recipes by name, what they set, the U-Net baseline, and the paper's way to plan."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinounet
from conftest import shared
from datasets import write_nifti_dataset, write_png_dataset
from dinounet.backbones.frozen import build_backbone, build_network
from dinounet.backbones.registry import network_config
from dinounet.backbones.weights import fill_backbone, hash_backbone
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, Interrupted, UserError
from dinounet.io import write_json
from dinounet.network.decoder import initialise_he
from dinounet.planning.data_plan import plan_data
from dinounet.planning.planner import choose_recipe, largest_batch, plan_as_published, plan_dataset
from dinounet.schema.network import NetworkConfig, UNetConfig, plan_unet
from dinounet.schema.plan import DataPlan, Plan, read_plan
from dinounet.schema.recipe import RECIPES, Recipe
from dinounet.schema.run import MODEL, read_run
from dinounet.training.step import learning_rate_at, make_loss, make_optimizer
from networks import planned, tiny_config
from test_training import ctrl_c_at

TINY_UNET = UNetConfig((4, 8, 16, 16), ((1, 1), (2, 2), (2, 2), (2, 1)), num_classes=3)


def test_poly_is_torchs_of_whole_epochs() -> None:
    recipe = Recipe(steps=5 * 250, schedule="poly", warmup=0, learning_rate=0.01)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    oracle = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=5, power=0.9)
    for epoch in range(5):
        assert learning_rate_at(epoch * 250, recipe) == pytest.approx(optimizer.param_groups[0]["lr"])
        assert learning_rate_at(epoch * 250 + 249, recipe) == learning_rate_at(epoch * 250, recipe)
        optimizer.step()
        oracle.step()


def test_the_papers_optimizer_steps_as_torchs_sgd() -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), RECIPES["paper"])
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    told = (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"])
    assert told == (1e-3, 0.99, 3e-5, True)


def test_he_initialisation_is_kaimings_and_leaves_alone_what_is_special_on_purpose() -> None:
    torch.manual_seed(0)
    network = build_network(tiny_config(rank=64, widths=(16, 32, 64, 128)))
    adapter = {name: tensor.clone() for name, tensor in network.adapter.state_dict().items()}
    frozen = hash_backbone(network.backbone)
    initialise_he(network)
    for module in (network.decoder.stages[0].convolutions[0][0], network.enlarge[3].up, network.fapm):
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and part.weight.numel() > 5000:
                fan_in = part.weight.shape[1] * math.prod(part.kernel_size)
                assert part.weight.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / fan_in), rel=0.05)
                assert not part.bias.any()
    assert all(torch.equal(tensor, adapter[name]) for name, tensor in network.adapter.state_dict().items())
    assert hash_backbone(network.backbone) == frozen


@pytest.mark.slow
def test_flags_change_single_fields_of_a_named_recipe(png: Path, tmp_path: Path) -> None:
    words = [
        "plan",
        str(png),
        "-o",
        str(tmp_path / "plan.json"),
        "--recipe",
        "paper",
        "--steps",
        "7",
        "--batch-size",
        "2",
    ]
    assert main(words) == 0
    plan = read_plan(tmp_path / "plan.json")
    assert plan.recipe == replace(RECIPES["paper"], steps=7, batch_size=2)
    assert main([*words[:4], "--seed", "3"]) == 0
    assert read_plan(tmp_path / "plan.json").recipe == Recipe(seed=3)
    assert main([*words[:4], "--no-deep-supervision"]) == 0
    assert not read_plan(tmp_path / "plan.json").network.deep_supervision
    with pytest.raises(ConfigError, match="a recipe has no 'stepz'; did you mean 'steps'"):
        choose_recipe("paper", {"stepz": 1})
    with pytest.raises(ConfigError, match="there is no recipe 'papr'; choose default or paper"):
        choose_recipe("papr", {})  # type: ignore[arg-type]


def of_size(data: DataPlan, cases: int, shape: tuple[int, int, int]) -> DataPlan:
    """The plan of a dataset of another size."""
    return replace(data, fingerprint=replace(data.fingerprint, cases=cases, median_shape=shape), patch=(512, 512))


def test_the_papers_batch_is_nnunets_for_a_plain_unet(png: Path) -> None:
    data = plan_data(read_dataset(png))
    # 5 % of 1000 cases of 40 slices of 512 x 512 is 2000 patches: memory decides
    assert largest_batch(of_size(data, 1000, (40, 512, 512))) == 13
    # 5 % of 100 flat images that become 512 x 512 each is 5 patches
    assert largest_batch(of_size(data, 100, (1, 700, 1096))) == 5
    assert largest_batch(of_size(data, 1, (1, 700, 1096))) == 2


def test_the_paper_makes_the_median_image_512_squared(tmp_path: Path) -> None:
    flat = write_png_dataset(tmp_path / "flat", size=(72, 80))
    plan = plan_dataset(read_dataset(flat), "paper", network_config())
    assert plan.data.spacing == (72 / 512, 80 / 512)  # pixels count as 1 apart
    assert (plan.data.patch, plan.data.unknown_spacing, plan.recipe.batch_size) == ((512, 512), 1.0, 2)
    from dinounet.data.images import read_image
    from dinounet.data.preprocessing import image_to_slices

    case = read_dataset(flat).cases[0]
    assert image_to_slices(read_image(case.images), plan.data).shape == (1, 1, 512, 512)

    volumes = write_nifti_dataset(tmp_path / "volumes", size=(64, 70), spacing=(0.7, 0.8, 3.0))
    data = plan_as_published(plan_data(read_dataset(volumes)))
    assert data.spacing == pytest.approx((0.8 * 64 / 512, 0.7 * 70 / 512))
    assert (data.slice_axis, data.unknown_spacing) == (0, None)


@pytest.mark.slow
def test_the_paper_trains_and_predicts_pictures_at_their_own_size(png: Path, tmp_path: Path) -> None:
    plan = plan_dataset(read_dataset(png), "paper", network_config(), (64, 64), changes={"steps": 2})
    data = replace(plan.data, spacing=(1.5, 1.25))  # as if the median image were smaller
    write_json(tmp_path / "plan.json", replace(plan, data=data, network=tiny_config(num_classes=3)))
    run = dinounet.train(
        png, tmp_path / "run", plan=tmp_path / "plan.json", weights="random", precision="fp32", report=False
    )
    assert np.load(next((run / "cache").rglob("image.npy"))).shape == (1, 1, 48, 64)
    assert dinounet.load(run).predict(png / "imagesTs" / "case_6_0000.png").shape == (72, 80)


@pytest.mark.parametrize(
    ("patch", "strides"),
    [  # as nnU-Net's get_pool_and_conv_props gives them for square pixels (test_nnunet_numbers.py asks it)
        ((512, 512), [(1, 1)] + [(2, 2)] * 7),
        ((192, 192), [(1, 1)] + [(2, 2)] * 5),
        ((320, 96), [(1, 1)] + [(2, 2)] * 4 + [(2, 1)]),
        ((247, 247), [(1, 1)] + [(2, 2)] * 6),  # at a sixteenth 16 pixels are left, not 15
    ],
)
def test_a_unet_is_planned_as_nnunets(patch: tuple[int, int], strides: list[tuple[int, int]]) -> None:
    config = plan_unet(patch, in_channels=1, num_classes=2)
    assert list(config.strides) == strides
    assert config.widths == (32, 64, 128, 256, 512, 512, 512, 512)[: len(strides)]


def test_a_unet_gives_the_size_it_gets_and_supervises_lower_scales_in_training() -> None:
    network = build_network(TINY_UNET)
    image, mask = torch.randn(2, 1, 41, 30), torch.randint(0, 3, (2, 41, 30))
    scales = network.train()(image)
    assert [tuple(scale.shape) for scale in scales] == [(2, 3, 41, 30), (2, 3, 21, 15)]
    make_loss()(scales, mask).backward()
    unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert not unused
    assert network.eval()(image).shape == (2, 3, 41, 30)
    with pytest.raises(ConfigError, match="the network reads"):
        network(torch.randn(1, 2, 32, 32))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_unet_is_trained_resumed_used_and_told_of(
    png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(steps=4, eval_interval=2, optimizer="sgd", schedule="poly", augmentation="flip")
    write_json(tmp_path / "plan.json", Plan(plan_data(read_dataset(png), (64, 64)), TINY_UNET, recipe))

    def train(run: Path, **options: object) -> Path:
        return dinounet.train(png, run, device="cpu", precision="fp32", report=False, **options)

    whole = train(tmp_path / "whole", plan=tmp_path / "plan.json")
    with ctrl_c_at(1), pytest.raises(Interrupted):
        train(tmp_path / "broken", plan=tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="was started with another optimizer"):
        train(tmp_path / "broken", resume=True, changes={"optimizer": "adamw"})
    with pytest.raises(ConfigError, match="was started with another recipe"):
        train(tmp_path / "broken", resume=True, recipe="paper")
    broken = train(tmp_path / "broken", resume=True, network="unet", changes={"optimizer": "sgd", "steps": 4})
    assert (broken / MODEL).read_bytes() == (whole / MODEL).read_bytes()

    with pytest.raises(ConfigError, match="is a U-Net, which has no backbone; leave --weights out"):
        dinounet.load(whole, weights="random")

    record = read_run(whole)
    assert (record.backbone, record.frozen_parameters) == (None, 0)
    assert record.plan.network == TINY_UNET
    masks, page = tmp_path / "masks", tmp_path / "report.html"
    dinounet.predict(whole, [png / "imagesTs"], masks)
    dinounet.evaluate(masks, png / "labelsTs")
    dinounet.report(masks, png / "labelsTs", page, images=png / "imagesTs", run=whole)
    dinounet.info(whole)
    assert "unet" in capsys.readouterr().out
    assert "unet" in page.read_text()


@pytest.mark.slow
def test_one_flag_trains_a_unet(png: Path, tmp_path: Path) -> None:
    words = [
        "--network",
        "unet",
        "--patch",
        "32",
        "32",
        "--steps",
        "1",
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--no-report",
    ]
    assert main(["train", str(png), "-o", str(tmp_path / "run"), *words]) == 0
    assert read_run(tmp_path / "run").plan.network == plan_unet((32, 32), in_channels=1, num_classes=3)


def test_a_plan_tells_by_one_key_which_network_it_holds(png: Path, tmp_path: Path) -> None:
    data = plan_data(read_dataset(png), (64, 64))
    path = tmp_path / "plan.json"
    for network in (TINY_UNET, planned(num_classes=3)):
        write_json(path, Plan(data, network, Recipe()))
        assert read_plan(path).network == network
    content = json.loads(path.read_text())
    old = json.loads(path.read_text()) | {"format": 1}  # from before there was a choice
    del old["network"]["architecture"]
    labels = old["data"]["labels"]
    old["data"] |= {"labels": labels.pop("classes"), **labels}
    path.write_text(json.dumps(old))
    assert isinstance(read_plan(path).network, NetworkConfig)
    unet = asdict(TINY_UNET)
    for network, message in [
        ({**unet, "architecture": "resnet"}, "network.architecture is 'resnet'; it must be 'dinounet' or 'unet'"),
        ({**unet, "backbone": "dinov3_vits16"}, "has the unknown key 'network.backbone'"),
        ({**unet, "widths": "many"}, "network.widths is 'many'; it must be a list"),
        ({**unet, "widths": [4, 8]}, "must be of equal length"),
        ({"architecture": "unet"}, "lacks network.widths"),
    ]:
        path.write_text(json.dumps({**content, "network": network}))
        with pytest.raises(UserError, match=message):
            read_plan(path)


def test_a_backbone_with_patches_of_14_has_the_grid_of_16() -> None:
    small = {"embed_dim": 64, "depth": 4, "num_heads": 4}
    config = tiny_config(backbone="dinov2_vits14", backbone_args=small)
    backbone = build_backbone(config)
    taps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(tap.shape) for tap in taps] == [(1, 4 * 6, 64)] * 4
    assert build_network(config, backbone)(torch.randn(1, 1, 50, 70)).shape == (1, 2, 50, 70)
    first = fill_backbone(backbone, "dinov2_vits14", "random", seed=1)
    assert fill_backbone(build_backbone(config), "dinov2_vits14", "random", seed=1) == first
    assert not torch.allclose(backbone(torch.randn(1, 3, 64, 96))[0], backbone(torch.randn(1, 3, 64, 96))[3])


def test_real_dinov2_weights_fit() -> None:
    backbone = build_backbone(network_config("dinov2_vits14"))
    path = shared("weights/dinov2_vits14_fp16.safetensors")
    record = fill_backbone(backbone, "dinov2_vits14", str(path))
    assert record.licence == "Apache-2.0"
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 22_056_192
    image = torch.from_numpy(np.asarray(Image.open(shared("data/axon_sem/image.png")).convert("L"))[:64, :64].copy())
    taps = backbone((image / 255 - 0.45).expand(1, 3, -1, -1) / 0.23)
    assert all(tap.isfinite().all() and tap.std() > 0.5 for tap in taps)
