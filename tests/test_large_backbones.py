"""Backbones that would not fit into memory: streamed, held in bf16 or int8, or brought from the disk block by block."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinounet.backbones.frozen import FrozenBackbone, build_backbone
from dinounet.backbones.low_precision import quantized_linears
from dinounet.backbones.registry import find_variant, network_config, usual_precision
from dinounet.backbones.weights import fill_backbone
from dinounet.errors import ConfigError, WeightsError
from dinounet.network.dinounet import DinoUNet
from dinounet.schema.network import BackboneRecord
from networks import TINY, tiny_config

NAME = "dinov3_vits16"
ONE_PERCENT = 0.01


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random weights of the tiny backbone, in float32."""
    backbone = build_backbone(tiny_config())
    fill_backbone(backbone, NAME, "random")
    path = tmp_path / "weights.safetensors"
    save_file(backbone.vit.state_dict(), path)
    return path


def filled(
    weights: Path | str, precision: Any, *, offload: bool = False, **changes: Any
) -> tuple[FrozenBackbone, BackboneRecord]:
    config = tiny_config(backbone_precision=precision, **changes)
    backbone = build_backbone(config, offload=offload)
    return backbone, fill_backbone(backbone, config.backbone, str(weights))


def features(backbone: FrozenBackbone) -> Tensor:
    torch.manual_seed(0)
    return torch.stack(backbone(torch.randn(1, 3, 96, 64)))


def relative(found: Tensor, true: Tensor) -> float:
    """Root of the mean square of the difference, as a share of the features'."""
    return ((found - true).square().mean() / true.square().mean()).sqrt().item()


def in_shards(weights: Path, folder: Path) -> Path:
    """The same tensors in three files and an index."""
    tensors = load_file(weights)
    names = [f"{number}.safetensors" for number in range(3)]
    held = {key: names[number % 3] for number, key in enumerate(sorted(tensors))}
    folder.mkdir()
    for name in names:
        save_file({key: tensors[key] for key in tensors if held[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": held}))
    return folder


def test_streamed_weights_are_the_files_to_the_last_bit(weights: Path, tmp_path: Path) -> None:
    given = load_file(weights)
    for source in (weights, in_shards(weights, tmp_path / "shards")):
        backbone, record = filled(source, "fp32")
        state = backbone.vit.state_dict()
        assert state.keys() == given.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in given.items())
        by_hand = hashlib.sha256()
        for key, tensor in sorted({**given, "rope.periods": backbone.vit.rope.periods}.items()):
            by_hand.update(f"{key}\0".encode() + tensor.numpy().tobytes())
        assert record.sha256 == by_hand.hexdigest()


@pytest.mark.slow
def test_the_hash_is_of_the_files_numbers_however_they_are_held(weights: Path) -> None:
    known = filled(weights, "fp32")[1]
    for precision, offload in (("bf16", False), ("int8", False), ("fp32", True), ("bf16", True), ("int8", True)):
        record = filled(weights, precision, offload=offload)[1]
        assert (record.sha256, record.precision) == (known.sha256, precision)


@pytest.mark.slow
def test_bf16_is_pytorchs_rounding_and_int8_within_half_a_step(weights: Path) -> None:
    given = load_file(weights)
    for precision in ("bf16", "int8"):
        layers = quantized_linears(filled(weights, precision)[0].vit)
        assert len(layers) == 4 * 4  # blocks, and in each qkv, proj, fc1 and fc2
        for name, layer in layers.items():
            held = layer.state_dict()["weight"]
            if precision == "bf16":
                assert torch.equal(held, given[name].bfloat16())
            else:
                assert held.dtype == torch.int8
                off = (layer.weight - given[name]).abs().unflatten(1, (-1, 32))
                step = (given[name].unflatten(1, (-1, 32)).abs().amax(dim=2, keepdim=True) / 127).bfloat16()
                assert (off <= step * 0.5001).all()


def test_int8_is_widened_to_bf16_with_one_rounding(weights: Path) -> None:
    for layer in quantized_linears(filled(weights, "int8")[0].vit).values():
        whole = layer.weight
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer.weight, whole.bfloat16())


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_features_are_within_one_percent_of_float32(weights: Path, autocast: bool) -> None:
    true = features(filled(weights, "fp32")[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for precision in ("bf16", "int8"):
            assert 0 < relative(features(filled(weights, precision)[0]), true) < ONE_PERCENT


@pytest.mark.slow
def test_features_of_7bs_kind_are_within_one_percent() -> None:
    """In narrow layers rounding sums up to less: here a quarter of its width, gated as 7B is."""
    options = {"embed_dim": 1024, "depth": 4, "num_heads": 8}
    found = {}
    for precision in ("fp32", "bf16", "int8"):
        backbone, _ = filled("random", precision, backbone="dinov3_vit7b16", backbone_args=options)
        found[precision] = features(backbone)
    for precision in ("bf16", "int8"):
        assert relative(found[precision], found["fp32"]) < ONE_PERCENT


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_from_the_disk_the_features_are_the_same_to_the_last_bit(weights: Path, precision: str) -> None:
    inside = filled(weights, precision)[0]
    for autocast in (False, True):
        outside = filled(weights, precision, offload=True)[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            true = features(inside)
            assert torch.equal(features(outside), true)
            assert torch.equal(features(outside), true)  # and again


def test_from_the_disk_no_more_than_two_blocks_are_in_memory(weights: Path) -> None:
    backbone = filled(weights, "bf16", offload=True)[0]
    layers = quantized_linears(backbone.vit)
    most: list[int] = []
    for block in backbone.vit.blocks:
        block.register_forward_pre_hook(lambda *_: most.append(sum(layer.is_here for layer in layers.values())))
    features(backbone)
    assert most == [4, 4, 4, 4]  # one block has four layers; the next one's are read, but not in place yet
    assert not any(layer.is_here for layer in layers.values())


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_transformers_names_are_streamed_into_the_same_layers(tmp_path: Path, offload: bool) -> None:
    """Where query, key and value are three tensors of the file and one of the backbone."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192, num_register_tokens=4,
        use_gated_mlp=True, layerscale_value=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path)
    changes = {"backbone": "dinov3_vits16plus", "backbone_args": {**TINY["backbone_args"], "swiglu_align_to": 1}}
    changes["backbone_args"]["mlp_ratio"] = 3
    known, record = filled(tmp_path, "fp32", **changes)
    found, again = filled(tmp_path, "bf16", offload=offload, **changes)
    assert again.sha256 == record.sha256
    assert relative(features(found), features(known)) < ONE_PERCENT


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_a_network_learns_on_what_is_held_and_its_checkpoint_has_none_of_it(weights: Path, offload: bool) -> None:
    backbone = filled(weights, "int8", offload=offload)[0]
    network = DinoUNet(tiny_config(backbone_precision="int8"), backbone).to("cpu")
    network(torch.randn(2, 1, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.adapter.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert not any("backbone" in key for key in network.state_dict())
    DinoUNet(tiny_config(backbone_precision="int8"), backbone).load_state_dict(network.state_dict())


MEASURED = """
import sys, torch
from pathlib import Path
from dinounet.backbones.frozen import build_backbone
from dinounet.backbones.registry import network_config
from dinounet.backbones.weights import fill_backbone

def highest():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

config = network_config("dinov3_vit7b16", taps=(12, 13, 14, 15), backbone_precision=sys.argv[2],
                       backbone_args={"embed_dim": 1024, "depth": 16, "num_heads": 8})
image = torch.zeros(1, 3, 64, 64)
small = network_config(taps=(0, 1, 2, 3), backbone_args={"embed_dim": 64, "depth": 4, "num_heads": 4})
build_backbone(small)(image)  # so that what torch and timm load is there
before = highest()
backbone = build_backbone(config, offload=sys.argv[3] == "True")
fill_backbone(backbone, "dinov3_vit7b16", sys.argv[1])
backbone(image)
backbone(image)  # what a pass leaves must serve the next
print(highest() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM is Linux's")
def test_memory_is_what_is_held_and_one_block_never_a_float32_copy(tmp_path: Path) -> None:
    options = {"embed_dim": 1024, "depth": 16, "num_heads": 8}
    backbone = build_backbone(
        network_config(
            backbone="dinov3_vit7b16", taps=(12, 13, 14, 15), backbone_args=options, backbone_precision="bf16"
        )
    )
    fill_backbone(backbone, "dinov3_vit7b16", "random")
    numbers = sum(parameter.numel() for parameter in backbone.parameters())
    save_file(backbone.vit.state_dict(), tmp_path / "model.safetensors")
    block = numbers / 16
    most = {
        # what is held, a block of the file that is mapped, and a layer that is widened
        ("bf16", False): 2 * numbers + 4 * block,
        ("int8", False): numbers + 4 * block,
        ("bf16", True): 3 * 2 * block,
    }
    for (precision, offload), allowed in most.items():
        child = subprocess.run(
            [sys.executable, "-c", MEASURED, str(tmp_path), precision, str(offload)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip  each thread has buffers of its own
        assert int(child.stdout) < allowed + 100e6, (precision, offload)  # what PyTorch needs for a first time


@pytest.mark.slow
def test_an_outline_of_7b_takes_no_memory() -> None:
    """As training on cached features builds it."""
    with torch.device("meta"):
        backbone = build_backbone(network_config("dinov3_vit7b16"))
    assert all(parameter.is_meta for parameter in backbone.parameters())
    assert backbone.grids((512, 512)) == [(32, 32)] * 4


def test_7b_alone_is_held_in_bf16_unless_asked_for_otherwise() -> None:
    for name in ("dinov3_vits16", "dinov3_vith16plus", "dinov2_vitg14", "dinov3_convnext_large"):
        assert usual_precision(find_variant(name)) == "fp32"
    assert network_config("dinov3_vit7b16").backbone_precision == "bf16"
    assert network_config("dinov3_vit7b16", backbone_precision="fp32").backbone_precision == "fp32"


@pytest.mark.slow
def test_what_cannot_be_held_or_brought_is_answered() -> None:
    with pytest.raises(ConfigError, match=r"^--backbone-precision int8 is for .* 0% of timm:resnet18; choose fp32, or"):
        build_backbone(network_config(backbone="timm:resnet18", backbone_precision="int8"))
    with pytest.raises(ConfigError, match=r"^dinov3_convnext_tiny has no row of blocks .* from the disk; leave --off"):
        build_backbone(network_config("dinov3_convnext_tiny"), offload=True)
    with pytest.raises(WeightsError, match=r"^--offload computes from a file .* random weights are in none; pass"):
        filled("random", "bf16", offload=True)
    with pytest.raises(ConfigError, match=r"dinov3_vits16 can't be built with .*num_head_count"):
        filled("random", "bf16", backbone_args={"depth": 4, "num_head_count": 4})


@pytest.mark.slow
def test_a_shard_that_lacks_or_is_cut_is_answered(weights: Path, tmp_path: Path) -> None:
    folder = in_shards(weights, tmp_path / "shards")
    whole = (folder / "1.safetensors").read_bytes()
    (folder / "1.safetensors").write_bytes(whole[:-8])
    with pytest.raises(WeightsError, match=r"1\.safetensors is damaged or incomplete \(.*\); download it again$"):
        filled(folder, "bf16")
    (folder / "1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"shards lacks 1\.safetensors, which its .*index\.json names; download it"):
        filled(folder, "bf16")


def test_a_file_that_goes_while_its_blocks_are_read_is_answered(weights: Path) -> None:
    backbone = filled(weights, "bf16", offload=True)[0]
    weights.unlink()
    with pytest.raises(WeightsError, match=r"weights\.safetensors is damaged or incomplete .*No such file"):
        features(backbone)


@pytest.mark.slow
def test_a_pass_that_was_broken_off_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    """Blocks are brought into the same places again, so what was read ahead then is not theirs any more."""
    options = {"embed_dim": 64, "depth": 6, "num_heads": 4}
    config = network_config("dinov3_vit7b16", taps=(1, 2, 4, 5), backbone_args=options)
    stored = build_backbone(config)
    fill_backbone(stored, config.backbone, "random")
    save_file(stored.vit.state_dict(), tmp_path / "model.safetensors")
    backbone = build_backbone(config, offload=True)
    fill_backbone(backbone, config.backbone, str(tmp_path))
    image = torch.randn(1, 3, 64, 64)
    stop = backbone.vit.blocks[2].mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        backbone(image)
    stop.remove()
    for ours, theirs in zip(backbone(image), stored(image), strict=True):
        assert torch.equal(ours, theirs)
