"""Every backbone by name, scale and taps: what the table says of it, and what the network reads from it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datasets import write_png_dataset
from dinounet.backbones.frozen import build_backbone, build_network, commercial_use
from dinounet.backbones.registry import VARIANTS, find_variant, gmac_at, memory_at, network_config, trained_parameters
from dinounet.backbones.weights import fill_backbone
from dinounet.cli.main import main
from dinounet.errors import ConfigError
from dinounet.io import write_json
from dinounet.schema.network import NetworkConfig
from dinounet.schema.plan import read_plan
from dinounet.schema.run import read_run
from networks import TINY, tiny_config

PYRAMID = {"backbone": "dinov3_convnext_tiny", "backbone_args": {"dims": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}}
"""A convolutional backbone small enough for tests; the adapter is 64 wide, as the stage at 1/16."""


def pyramid_config(**changes: object) -> NetworkConfig:
    return network_config(**{**TINY, "taps": None, **PYRAMID, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_tells_what_timm_builds(name: str) -> None:
    variant = VARIANTS[name]
    with torch.device("meta"):
        network = build_network(network_config(name)).eval()
        image = torch.zeros(1, 3, 512, 512)
        with FlopCounterMode(display=False) as counter:
            side = 512 * variant.patch // 16
            taps = network.backbone.forward_features(image[..., :side, :side])
    frozen = sum(parameter.numel() for parameter in network.backbone.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert (frozen, trained) == (variant.frozen, trained_parameters(variant))
    assert counter.get_total_flops() / 2e9 == pytest.approx(variant.gmac, abs=0.05)
    assert [tap.shape[-1] for tap in taps] == list(variant.stages or [variant.width] * 4)
    blocks = sum(len(stage.blocks) for stage in network.backbone.vit.stages) if variant.stages else None
    assert (blocks or len(network.backbone.vit.blocks)) == variant.depth
    settings = timm.get_pretrained_cfg(variant.timm_name)
    assert (settings.hf_hub_id, settings.num_classes) == (variant.repository, 0)
    assert settings.license == {"DINOv3": "dinov3-license", "Apache-2.0": "apache-2.0"}[variant.licence.split()[0]]


def test_costs_grow_with_the_scale_as_tokens_do() -> None:
    small = VARIANTS["dinov3_vits16"]
    # by hand: 12 blocks of 2 n^2 D for queries by keys and for weights by values
    between = 12 * 2 * 1024**2 * 384 / 1e9
    assert gmac_at(small, 1) == pytest.approx(31.9)
    assert gmac_at(small, 2) == pytest.approx(4 * (31.9 - between) + 16 * between)
    assert gmac_at(VARIANTS["dinov3_convnext_tiny"], 2) == pytest.approx(4 * 23.3)
    for at_one, finer in zip(memory_at(small, 1.0001), memory_at(small, 2), strict=True):
        assert at_one < finer


def test_memory_is_what_was_measured_and_the_formula_is_near_it() -> None:
    measured = [variant for variant in VARIANTS.values() if variant.measured]
    assert len(measured) >= 10
    for variant in measured:
        assert memory_at(variant, 1) == variant.measured
        for estimate, seen in zip(memory_at(variant, 1.000001), variant.measured, strict=True):
            assert estimate == pytest.approx(seen, rel=0.15), variant.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "grid"), [(1.0, (4, 6)), (1.25, (5, 8)), (1.5, (6, 9)), (2.0, (8, 12)), (4.0, (16, 24))]
)
@pytest.mark.parametrize("backbone", ["dinov3_vits16", "dinov2_vits14"])
def test_a_scale_gives_a_finer_grid_and_the_same_network_otherwise(
    scale: float, grid: tuple[int, int], backbone: str
) -> None:
    network = build_network(tiny_config(backbone=backbone, backbone_scale=scale)).eval()
    image = torch.randn(1, 1, 64, 96)
    assert network.backbone.grids((64, 96)) == [grid] * 4
    taps = network.backbone(image.expand(-1, 3, -1, -1))
    assert [tuple(tap.shape) for tap in taps] == [(1, grid[0] * grid[1], 64)] * 4
    assert network(image).shape == (1, 2, 64, 96)
    usual = build_network(tiny_config(backbone=backbone)).eval()
    assert [(name, tensor.shape) for name, tensor in network.state_dict().items()] == [
        (name, tensor.shape) for name, tensor in usual.state_dict().items()
    ]


def test_at_scale_1_the_backbone_sees_the_image_and_at_scale_2_one_of_twice_its_size() -> None:
    seen: list[torch.Tensor] = []
    image = torch.randn(1, 3, 64, 96)
    for scale in (1.0, 2.0):
        backbone = build_backbone(tiny_config(backbone_scale=scale))
        backbone.vit.patch_embed.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
        backbone(image)
    assert torch.equal(seen[0], image)
    twice = nn.functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[1], twice)


def test_a_finer_grid_tells_places_apart_that_share_a_token_otherwise() -> None:
    """A dot moves by 8 pixels within one token of 16: at scale 2 it moves to another token."""
    changed = []
    for scale in (1.0, 2.0):
        backbone = build_backbone(tiny_config(backbone_scale=scale))
        fill_backbone(backbone, "dinov3_vits16", "random")
        dots = torch.zeros(2, 3, 64, 64)
        dots[0, :, 18:22, 18:22] = dots[1, :, 26:30, 26:30] = 100
        embedded: list[torch.Tensor] = []
        backbone.vit.patch_embed.register_forward_hook(lambda _m, _i, output, seen=embedded: seen.append(output))
        backbone(dots)
        tokens = embedded[0].reshape(2, -1, 64)
        strongest = (tokens - tokens[:, :1]).norm(dim=-1).argmax(-1)
        changed.append(bool(strongest[0] != strongest[1]))
    assert changed == [False, True]


@pytest.mark.parametrize("scale", [0.5, 4.5, float("nan")])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"backbone_scale is .*; it must be (at least 1|at most 4|a finite number)"):
        tiny_config(backbone_scale=scale)


def test_a_pyramids_stages_reach_the_interactions_at_their_own_scales() -> None:
    network = build_network(pyramid_config())
    image = torch.randn(2, 3, 64, 96)
    stages = network.backbone.vit.forward_intermediates(image, intermediates_only=True)  # timm's own maps
    taps = network.backbone(image)
    for tap, stage in zip(taps, stages, strict=True):
        by_hand = stage - stage.mean(1, keepdim=True)
        by_hand = by_hand / (stage.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(tap, by_hand.flatten(2).transpose(1, 2))
    seen: list[tuple[torch.Size, tuple[int, int]]] = []
    for extractors in network.adapter.interactions:
        extractors[0].register_forward_pre_hook(lambda _m, inputs: seen.append((inputs[1].shape, inputs[4])))
    network(image[:, :1])
    assert [grid for _, grid in seen] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [tuple(shape) for shape, _ in seen] == [(2, h * w, 64) for _, (h, w) in seen]
    assert network.backbone.width == 64


def test_a_network_on_a_pyramid_learns_its_projections_and_nothing_frozen() -> None:
    network = build_network(pyramid_config(drop_path=0.0)).train()
    frozen = {name: tensor.clone() for name, tensor in network.backbone.vit.state_dict().items()}
    network(torch.randn(2, 1, 64, 64)).square().mean().backward()
    projections = network.adapter.project_taps
    assert [isinstance(projection, nn.Linear) for projection in projections] == [True, True, False, True]
    assert all(parameter.grad.abs().sum() > 0 for parameter in projections.parameters())
    assert all(torch.equal(frozen[name], tensor) for name, tensor in network.backbone.vit.state_dict().items())
    again = build_network(pyramid_config())
    again.load_state_dict(network.state_dict())
    assert {name for name in network.state_dict() if "project_taps" in name} == {
        f"adapter.project_taps.{i}.{part}" for i in (0, 1, 3) for part in ("weight", "bias")
    }


def test_a_pyramid_at_scale_2_is_twice_as_fine() -> None:
    backbone = build_backbone(pyramid_config(backbone_scale=2.0))
    assert backbone.grids((64, 96)) == [(32, 48), (16, 24), (8, 12), (4, 6)]
    assert [tap.shape[1] for tap in backbone(torch.randn(1, 3, 64, 96))] == [32 * 48, 16 * 24, 8 * 12, 4 * 6]


def test_a_random_pyramid_has_norms_of_one_and_the_same_numbers_again() -> None:
    first, second = build_backbone(pyramid_config()), build_backbone(pyramid_config())
    records = [fill_backbone(backbone, "dinov3_convnext_tiny", "random", seed=5) for backbone in (first, second)]
    assert records[0] == records[1]
    norms = [module for module in first.vit.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 1 + 5 + 3 + 1  # stem, blocks, downsampling, head
    assert all(norm.weight.eq(1).all() and norm.bias.eq(0).all() for norm in norms)


def test_a_pyramids_stages_can_not_be_chosen() -> None:
    with pytest.raises(ConfigError, match="has four stages, which are all read; leave taps out"):
        pyramid_config(taps=(0, 1, 2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "patch", "is_pyramid"),
    [
        ("timm:vit_tiny_patch16_224", 192, 16, False),
        ("timm:eva02_tiny_patch14_224", 192, 14, False),
        ("timm:resnet18", 256, 16, True),
    ],
)
def test_models_of_timm_by_name(name: str, width: int, patch: int, is_pyramid: bool) -> None:
    variant = find_variant(name)
    assert (variant.width, variant.patch, variant.stages is not None) == (width, patch, is_pyramid)
    network = build_network(network_config(name, stem_width=8, rank=16, widths=(4, 8, 16, 32))).eval()
    record = fill_backbone(network.backbone, name, "random")
    assert record.name == name
    assert variant.frozen == sum(parameter.numel() for parameter in network.backbone.parameters())
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 50, 70))
    assert logits.shape == (1, 2, 50, 70)
    assert logits.isfinite().all()
    assert variant.commercial == "yes"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm:vit_tiny_patch16_225",
            r"timm has no model 'vit_tiny_patch16_225'; the nearest are vit_tiny_patch16_224",
        ),
        ("timm:vit_tiny_patch16_224.mine", r"timm has no weights .*mine'; choose one of vit_tiny_patch16_224\.augreg"),
        (
            "timm:mixer_s16_224",
            r"timm:mixer_s16_224 can't be a backbone here \(.*\); choose a plain vision transformer",
        ),
        ("timm:cait_xxs24_224", r"can't be a backbone here \("),
        ("timm:mobilenetv3_large_100", r"its features are 112 wide, and a multiple of 32 is wanted"),
        ("timm:inception_v3", r"can't be a backbone here \("),
    ],
)
def test_models_of_timm_that_can_not_be_used_are_refused_in_a_sentence(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        network_config(name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("apache-2.0", "yes"),
        ("mit", "yes"),
        ("bsd-3-clause", "yes"),
        ("dinov3-license", "yes, on its conditions"),
        ("cc-by-nc-4.0", "no"),
        ("fair-noncommercial-research-license", "no"),
        ("apple-amlr", "unknown"),
        ("unknown", "unknown"),
    ],
)
def test_whether_a_licence_allows_commercial_use(licence: str, allowed: str) -> None:
    assert commercial_use(licence) == allowed


def test_a_licence_that_forbids_commercial_use_is_told() -> None:
    assert find_variant("timm:convnextv2_atto.fcmae").commercial == "no"


def test_info_lists_every_backbone_with_its_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "backbones"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in VARIANTS)
    assert all(variant.timm_name in told for variant in VARIANTS.values())
    assert "commercial use: yes, on its conditions" in told
    assert main(["info", "--json", "--backbone-scale", "2"]) == 0
    listed = {backbone["name"]: backbone for backbone in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(VARIANTS)
    large = listed["dinov3_vitl16_sat"]
    assert (large["frozen"], large["trained"]) == (303_128_576, 19_969_988)
    assert large["weights"] == "https://huggingface.co/timm/vit_large_patch16_dinov3_qkvb.sat493m"
    assert large["memory"] == "estimated"
    assert main(["info", "timm:vit_tiny_patch16_224", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["width"], one["depth"], one["commercial_use"]) == (192, 12, "yes")
    assert main(["info", "timm:nothing"]) == 2
    assert main(["info", "--backbone-scale", "5"]) == 2


def test_listing_the_backbones_is_quick_and_builds_none() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from dinounet.cli.main import main; main(['info']); "
        "heavy = {'torch', 'timm', 'numpy'} & sys.modules.keys(); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines[:26])) <= 80
    documented = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in documented


def test_pretrained_like_buffers_count_in_the_hash(tmp_path: Path) -> None:
    """Batch norm's statistics decide what a ResNet computes."""
    from dinounet.backbones.weights import hash_backbone

    backbone = build_backbone(network_config(backbone="timm:resnet18"))
    before = hash_backbone(backbone)
    backbone.vit.bn1.running_mean += 1
    assert hash_backbone(backbone) != before


@pytest.mark.slow
def test_scale_and_taps_are_flags_that_plan_and_run_keep_and_prediction_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = write_png_dataset(tmp_path / "data"), tmp_path / "run"
    flags = ["--taps", "1", "4", "7", "10", "--backbone-scale", "1.5"]
    small = ["--patch", "64", "64", "--steps", "1", "--device", "cpu", "--precision", "fp32"]
    assert main(["plan", str(data), "-o", str(tmp_path / "plan.json"), *flags, *small]) == 0
    assert "dinov3_vits16, taps 1, 4, 7, 10, scale 1.5" in capsys.readouterr().out
    planned = read_plan(tmp_path / "plan.json").network
    assert (planned.taps, planned.backbone_scale) == ((1, 4, 7, 10), 1.5)
    words = ["train", str(data), "-o", str(run), "--weights", "random", "--no-report"]
    assert main([*words, *flags, *small]) == 0
    assert read_run(run).plan.network == planned
    assert main(["predict", str(run), str(data / "imagesTs"), "-o", str(tmp_path / "masks")]) == 0
    capsys.readouterr()
    assert main(["info", str(run), "--json"]) == 0
    network = json.loads(capsys.readouterr().out)["plan"]["network"]
    assert (network["taps"], network["backbone_scale"]) == ([1, 4, 7, 10], 1.5)
    assert (
        main(
            [
                "train",
                str(data),
                "-o",
                str(tmp_path / "r2"),
                "--plan",
                str(tmp_path / "plan.json"),
                "--backbone-scale",
                "1",
            ]
        )
        == 2
    )
    assert "has another backbone_scale (1.5) than --backbone-scale asks for (1.0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--taps", "1", "4", "7", "12"], "network.taps names block 12 but dinov3_vits16 ends with block 11"),
        (["--taps", "4", "1", "7", "8"], "it must be four different blocks, from 0, in ascending order"),
        (["--backbone-scale", "0.5"], "network.backbone_scale is 0.5; it must be at least 1"),
        (["--backbone", "dinov3_convnext_tiny", "--taps", "0", "1", "2", "4"], "has four stages, which are all read"),
        (["--backbone", "timm:nothing"], "timm has no model 'nothing'"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_wrong_scale_and_taps_are_refused_before_pixels_are_read(
    verb: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_png_dataset(tmp_path / "data")
    for image in (data / "imagesTr").iterdir():
        image.write_bytes(b"")
    assert main([verb, str(data), *flags, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_resuming_with_another_scale_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = write_png_dataset(tmp_path / "data"), tmp_path / "run"
    words = ["train", str(data), "-o", str(run), "--weights", "random", "--no-report", "--patch", "64", "64"]
    assert main([*words, "--steps", "1", "--device", "cpu"]) == 0
    record = read_run(run)
    write_json(run / "run.json", replace(record, status="interrupted"))
    for flags, name in ((["--backbone-scale", "2"], "backbone_scale"), (["--taps", "0", "1", "2", "3"], "taps")):
        assert main(["train", str(data), "-o", str(run), "--resume", *flags]) == 2
        assert f"was started with another {name}" in capsys.readouterr().err
