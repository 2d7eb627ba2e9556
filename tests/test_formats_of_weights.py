"""One set of numbers in every format that backbones are published in gives one network.

The oracle is the features of transformers' own classes. Their numbers are written in Meta's names by hand here, from
what these names mean, and not by the tables that are tested.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import shared
from dinounet.backbones.frozen import FrozenBackbone, build_backbone
from dinounet.backbones.registry import network_config
from dinounet.backbones.weights import fill_backbone, hash_backbone
from dinounet.errors import WeightsError
from dinounet.schema.network import NetworkConfig

SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
ARGS: dict[str, Any] = {"embed_dim": 64, "depth": 4, "num_heads": 4}


def random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        scales = name.endswith(
            ("norm1.weight", "norm2.weight", "norm.weight", "lambda1", "gamma", "gamma_1", "gamma_2")
        )
        nn.init.normal_(parameter, mean=float(scales), std=0.1)
    return model.eval()


def dinov3(gated: bool) -> tuple[Any, NetworkConfig]:
    settings = {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
    config = transformers.DINOv3ViTConfig(**SIZES, intermediate_size=256, num_register_tokens=4, **settings)
    name = "dinov3_vits16plus" if gated else "dinov3_vits16"
    network = network_config(name, taps=(0, 1, 2, 3), backbone_args=ARGS)
    return random(transformers.DINOv3ViTModel(config)), network


def dinov2(registers: bool) -> tuple[Any, NetworkConfig]:
    sizes = {**SIZES, "image_size": 56, "patch_size": 14}
    if registers:
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes))
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    name = "dinov2_vits14_reg" if registers else "dinov2_vits14"
    network = network_config(name, taps=(0, 1, 2, 3), backbone_args={**ARGS, "img_size": 56})
    return random(model), network


def convnext() -> tuple[Any, NetworkConfig]:
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 2, 1])
    args = {"dims": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}
    network = network_config("dinov3_convnext_tiny", backbone_args=args)
    return random(transformers.DINOv3ConvNextModel(config)), network


MODELS = {
    "dinov3": lambda: dinov3(False),
    "dinov3 gated": lambda: dinov3(True),
    "dinov2": lambda: dinov2(False),
    "dinov2 registers": lambda: dinov2(True),
    "convnext": convnext,
}


IN_METAS_NAMES = ("meta.pth", "old.pth", "meta.safetensors")


def features(model: Any, image: Tensor) -> list[Tensor]:
    """What the taps should be, from transformers' own hidden states."""
    with torch.no_grad():
        hidden = model(image, output_hidden_states=True).hidden_states[-4:]
    if hidden[0].ndim == 4:
        return [nn.functional.layer_norm(map.flatten(2).transpose(1, 2), (map.shape[1],)) for map in hidden]
    norm = model.norm if hasattr(model, "norm") else model.layernorm
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    return [norm(tokens)[:, prefix:].detach() for tokens in hidden]


def image_for(config: NetworkConfig) -> tuple[Tensor, Tensor]:
    """An image, and as a backbone sees it: DINOv2 with its own number of patches, where no position is interpolated."""
    torch.manual_seed(1)
    if "dinov2" in config.backbone:
        image = torch.randn(1, 3, 64, 64)
        return image, nn.functional.interpolate(image, size=(56, 56), mode="bilinear", antialias=True)
    return (torch.randn(1, 3, 64, 96),) * 2


def in_metas_names(model: Any, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    kind = type(model).__name__
    if "ConvNext" in kind:
        return {
            re.sub(r"^stages\.(\d)\.downsample_layers", r"downsample_layers.\1", key)
            .replace(".layers.", ".")
            .replace("depthwise_conv", "dwconv")
            .replace(".layer_norm", ".norm")
            .replace("pointwise_conv", "pwconv")
            .replace("layer_norm", "norm"): tensor
            for key, tensor in state.items()
        }
    found: dict[str, Tensor] = {}
    is_3 = "v3" in kind
    for key, tensor in state.items():
        key = re.sub(r"^(encoder\.)?layer\.", "blocks.", key)
        key = re.sub(r"^embeddings\.", "", key)
        key = key.replace("patch_embeddings.projection", "patch_embed.proj").replace(
            "patch_embeddings", "patch_embed.proj"
        )
        key = key.replace("position_embeddings", "pos_embed").replace("layernorm", "norm").replace("o_proj", "proj")
        key = key.replace("attention.output.dense", "attn.proj").replace("attention.", "attn.", 1)
        key = re.sub(r"layer_scale(\d)\.lambda1", r"ls\1.gamma", key)
        if is_3:
            key = key.replace("register_tokens", "storage_tokens")
            gated = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
            for theirs, meta in (
                gated if model.config.use_gated_mlp else {"up_proj": "fc1", "down_proj": "fc2"}
            ).items():
                key = key.replace(f"mlp.{theirs}", f"mlp.{meta}")
        found[key] = tensor
    if is_3:
        found["rope_embed.periods"] = 1 / model.rope_embeddings.inv_freq
    for block in range(model.config.num_hidden_layers):
        query, key, value = (
            ("q_proj", "k_proj", "v_proj") if is_3 else ("attention.query", "attention.key", "attention.value")
        )
        for part in ("weight", "bias"):
            names = [f"blocks.{block}.attn.{which}.{part}" for which in (query, key, value)]
            tensors = [found.pop(name, torch.zeros(64)) for name in names]
            found[f"blocks.{block}.attn.qkv.{part}"] = torch.cat(tensors)
        if is_3:
            found[f"blocks.{block}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0, 1]).repeat_interleave(64)
    return found


def fill(config: NetworkConfig, weights: Path) -> tuple[FrozenBackbone, str]:
    backbone = build_backbone(config)
    return backbone, fill_backbone(backbone, config.backbone, str(weights)).sha256


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_one_set_of_weights_in_all_formats_gives_the_same_features_and_the_same_hash(kind: str, tmp_path: Path) -> None:
    model, config = MODELS[kind]()
    image, seen = image_for(config)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    meta = in_metas_names(model, tmp_path / "source")
    torch.save(meta, tmp_path / "meta.pth")
    torch.save(meta, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({key: tensor.contiguous() for key, tensor in meta.items()}, tmp_path / "meta.safetensors")
    first, sha256 = fill(config, tmp_path / "whole")
    save_file(first.vit.state_dict(), tmp_path / "timm.safetensors")
    bare = load_file(tmp_path / "whole" / "model.safetensors")
    save_file({f"model.{key}": tensor for key, tensor in bare.items()}, tmp_path / "other version.safetensors")

    expected = features(model, seen)
    for name in (*IN_METAS_NAMES, "whole", "sharded", "timm.safetensors", "other version.safetensors"):
        backbone, found = fill(config, tmp_path / name)
        for tap, theirs in zip(backbone(image), expected, strict=True):
            assert (tap - theirs).abs().max() < 1e-5, name
        if "rope_embed.periods" not in meta or name not in IN_METAS_NAMES:
            assert found == sha256, name  # but for the inverse's rounding in the periods, the numbers are the same


def test_a_file_of_timms_own_class_is_read_as_it_is(tmp_path: Path) -> None:
    vit = random(timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, **ARGS))
    save_file(vit.state_dict(), tmp_path / "timm.safetensors")
    backbone, _ = fill(dinov3(False)[1], tmp_path / "timm.safetensors")
    image = torch.randn(1, 3, 64, 96)
    theirs = vit.forward_intermediates(image, indices=4, norm=True, output_fmt="NLC", intermediates_only=True)
    assert all(torch.equal(*pair) for pair in zip(backbone(image), theirs, strict=True))


def test_metas_tensors_of_the_published_network_give_its_features(tmp_path: Path) -> None:
    prefix = "encoder.dinov3_adapter.backbone."
    published = load_file(shared("parity/tiny_state_dict.safetensors"))
    vectors = load_file(shared("parity/tiny_case_2x3x64x96.safetensors"))
    torch.save({k.removeprefix(prefix): v for k, v in published.items() if k.startswith(prefix)}, tmp_path / "tiny.pth")
    backbone, _ = fill(network_config(taps=(0, 1, 2, 3), backbone_args=ARGS), tmp_path / "tiny.pth")
    for i, tap in enumerate(backbone(vectors["input"])):
        theirs = vectors[f"backbone.layer.{i}.patch"]
        assert (tap - theirs).abs().max() <= 2e-5 * max(1.0, theirs.abs().max())


def test_rounded_periods_of_metas_file_are_used_and_make_another_backbone(tmp_path: Path) -> None:
    model, config = dinov3(False)
    meta = in_metas_names(model, tmp_path / "source")
    torch.save(meta, tmp_path / "exact.pth")
    rounded = meta["rope_embed.periods"].bfloat16()
    torch.save({**meta, "rope_embed.periods": rounded}, tmp_path / "rounded.pth")
    exact, first = fill(config, tmp_path / "exact.pth")
    rough, second = fill(config, tmp_path / "rounded.pth")
    assert torch.equal(rough.vit.rope.periods, rounded.float())
    assert first != second
    model.rope_embeddings.inv_freq.copy_(1 / rounded.float())
    image, seen = image_for(config)
    for tap, usual, theirs in zip(rough(image), exact(image), features(model, seen), strict=True):
        assert (tap - theirs).abs().max() < 1e-5
        assert (usual - theirs).abs().max() > 1e-4


def test_a_half_precision_file_is_the_same_backbone_where_the_numbers_are(tmp_path: Path) -> None:
    model, config = dinov3(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    model.save_pretrained(tmp_path / "float")
    model.half().save_pretrained(tmp_path / "half")
    assert fill(config, tmp_path / "float")[1] == fill(config, tmp_path / "half")[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("layer.2.norm2.bias"),
            r"read as transformers' DINOv3: 1 missing, as blocks\.2\.norm2\.bias\)",
        ),
        (lambda s: s.update(surprise=torch.zeros(2)), r"1 unexpected, as surprise\)"),
        (
            lambda s: s.update({"layer.1.attention.k_proj.bias": torch.zeros(64)}),
            r"1 unexpected, as layer\.1\.attention\.k_proj\.bias\)",
        ),
        (lambda s: s.pop("layer.0.attention.k_proj.weight"), r"1 of another shape, as blocks\.0\.attn\.qkv\.weight\)"),
        (lambda s: s.update({"model.norm.bias": torch.zeros(64)}), r"has a duplicate of norm\.bias, "),
        (lambda s: s.pop("layer.3.attention.q_proj.bias"), r"1 missing, as blocks\.3\.attn\.q_bias\)"),
    ],
)
def test_every_tensor_is_used_once_or_named(change: Any, message: str, tmp_path: Path) -> None:
    model, config = dinov3(False)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    backbone = build_backbone(config)
    before = hash_backbone(backbone)
    with pytest.raises(WeightsError, match=message) as told:
        fill_backbone(backbone, config.backbone, str(tmp_path))
    assert "\n" not in str(told.value)
    assert hash_backbone(backbone) == before


def test_a_bias_that_the_backbone_has_no_place_for_is_refused_and_not_dropped(tmp_path: Path) -> None:
    """timm's plain variants have none; those without `_qkvb` would drop it in silence."""
    model, _ = dinov3(True)
    model.save_pretrained(tmp_path)
    config = network_config("dinov3_vit7b16", taps=(0, 1, 2, 3), backbone_args={**ARGS, "mlp_ratio": 4})
    with pytest.raises(WeightsError, match=r"unexpected, as blocks\.0\.attn\.q_bias"):
        fill(config, tmp_path)


def test_a_file_of_another_backbone_is_recognised_by_its_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = timm.create_model("vit_small_plus_patch16_dinov3_qkvb", num_classes=0).state_dict()
    save_file(
        {key: torch.zeros(tensor.shape, dtype=torch.float16) for key, tensor in shapes.items()},
        tmp_path / "w.safetensors",
    )
    message = r"does not fit dinov3_vits16 .*it has the size of dinov3_vits16plus: choose that backbone, or download"
    with pytest.raises(WeightsError, match=message):
        fill(network_config(), tmp_path / "w.safetensors")


def test_a_classifier_of_timms_own_models_is_left_out(tmp_path: Path) -> None:
    whole = timm.create_model("vit_tiny_patch16_224")
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone, _ = fill(network_config(backbone="timm:vit_tiny_patch16_224"), tmp_path / "w.safetensors")
    assert torch.equal(backbone.vit.blocks[3].attn.qkv.weight, whole.blocks[3].attn.qkv.weight)


def test_a_sharded_folder_that_lacks_a_file_or_names_one_elsewhere_is_refused(tmp_path: Path) -> None:
    model, config = dinov3(False)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    index = tmp_path / "model.safetensors.index.json"
    lost = sorted(tmp_path.glob("*.safetensors"))[0]
    lost.rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match=rf"lacks {lost.name}, which its model\.safetensors\.index\.json names"):
        fill(config, tmp_path)
    for content in ("{}", "[]", "hello", '{"weight_map": 3}'):
        index.write_text(content)
        with pytest.raises(WeightsError, match=r"is not an index of weights; download it again"):
            fill(config, tmp_path)
    index.write_text(json.dumps({"weight_map": {"cls_token": "../elsewhere"}}))
    with pytest.raises(WeightsError, match=r"names '\.\./elsewhere', which isn't a file beside it"):
        fill(config, tmp_path)
