"""Key names of published weights, and of the published Dino U-Net's checkpoints, translated to timm's and ours.

Not by timm's own converters (`checkpoint_filter_fn`): DINOv3's drops RoPE's periods, bias masks, and biases that the
model has no place for, in silence, and resamples patches and positions of another size, where a file must be refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dinounet.errors import WeightsError
from dinounet.network.dinounet import DinoUNet

BACKBONE = "encoder.dinov3_adapter.backbone."

ALIASES = (
    (r"^decoder\.encoder\.", "encoder."),
    (r"^(decoder\.stages\.\d+\.convs\.\d+\.)all_modules\.0\.", r"\1conv."),
    (r"^(decoder\.stages\.\d+\.convs\.\d+\.)all_modules\.1\.", r"\1norm."),
)
"""Names under which the published modules hold one tensor a second time."""

TRAINED = (
    (r"^encoder\.dinov3_adapter\.level_embed$", "adapter.level_embedding"),
    (r"^encoder\.dinov3_adapter\.spm\.stem\.", "adapter.prior.stem."),
    (r"^encoder\.dinov3_adapter\.spm\.conv2\.", "adapter.prior.down.0."),
    (r"^encoder\.dinov3_adapter\.spm\.conv3\.", "adapter.prior.down.1."),
    (r"^encoder\.dinov3_adapter\.spm\.conv4\.", "adapter.prior.down.2."),
    (r"^encoder\.dinov3_adapter\.spm\.fc1\.", "adapter.prior.project.0."),
    (r"^encoder\.dinov3_adapter\.spm\.fc2\.", "adapter.prior.project.1."),
    (r"^encoder\.dinov3_adapter\.spm\.fc3\.", "adapter.prior.project.2."),
    (r"^encoder\.dinov3_adapter\.spm\.fc4\.", "adapter.prior.project.3."),
    (r"^encoder\.dinov3_adapter\.interactions\.(\d)\.extractor\.", r"adapter.interactions.\1.0."),
    (r"^encoder\.dinov3_adapter\.interactions\.3\.extra_extractors\.0\.", "adapter.interactions.3.1."),
    (r"^encoder\.dinov3_adapter\.interactions\.3\.extra_extractors\.1\.", "adapter.interactions.3.2."),
    (r"\.feat_norm\.", ".tap_norm."),
    (r"\.ffn_norm\.", ".feed_forward_norm."),
    (r"\.ffn\.fc1\.", ".feed_forward.expand."),
    (r"\.ffn\.dwconv\.dwconv\.", ".feed_forward.depthwise."),
    (r"\.ffn\.fc2\.", ".feed_forward.reduce."),
    (r"\.attn\.sampling_offsets\.", ".attention.offsets."),
    (r"\.attn\.attention_weights\.", ".attention.weights."),
    (r"\.attn\.value_proj\.", ".attention.value."),
    (r"\.attn\.output_proj\.", ".attention.output."),
    (r"^encoder\.dinov3_adapter\.up\.", "adapter.up."),
    (r"^encoder\.dinov3_adapter\.norm1\.", "adapter.norms.0."),
    (r"^encoder\.dinov3_adapter\.norm2\.", "adapter.norms.1."),
    (r"^encoder\.dinov3_adapter\.norm3\.", "adapter.norms.2."),
    (r"^encoder\.dinov3_adapter\.norm4\.", "adapter.norms.3."),
    (r"^encoder\.fapm\.shared_basis\.", "fapm.shared."),
    (r"^encoder\.fapm\.specific_bases\.", "fapm.specific."),
    (r"^encoder\.fapm\.film_generators\.", "fapm.film."),
    (r"^encoder\.fapm\.shortcut_projections\.", "fapm.shortcut."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.0\.", r"fapm.refine.\1.reduce."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.1\.", r"fapm.refine.\1.reduce_norm."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.3\.depthwise\.", r"fapm.refine.\1.depthwise."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.3\.pointwise\.", r"fapm.refine.\1.pointwise."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.3\.bn\.", r"fapm.refine.\1.norm."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.4\.", r"fapm.refine.\1.project."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.5\.fc\.0\.", r"fapm.refine.\1.squeeze_excite.fc1."),
    (r"^encoder\.fapm\.refinement_blocks\.(\d)\.5\.fc\.2\.", r"fapm.refine.\1.squeeze_excite.fc2."),
    (r"^encoder\.ups\.(\d)\.up2\.", r"enlarge.\1.up."),
    (r"^decoder\.transpconvs\.(\d)\.", r"decoder.stages.\1.up."),
    (r"^decoder\.stages\.(\d)\.convs\.(\d)\.conv\.", r"decoder.stages.\1.convolutions.\2.0."),
    (r"^decoder\.stages\.(\d)\.convs\.(\d)\.norm\.", r"decoder.stages.\1.convolutions.\2.1."),
    (r"^decoder\.seg_layers\.", "decoder.heads."),
)
"""Published names to ours; every pattern that matches is applied, in this order."""

META_TO_TIMM = (
    (r"^storage_tokens$", "reg_token"),
    (r"^rope_embed\.periods$", "rope.periods"),
    (r"\.ls1\.gamma$", ".gamma_1"),
    (r"\.ls2\.gamma$", ".gamma_2"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)

PRETRAINING_ONLY = re.compile(r"^(mask_token$|local_cls_norm\.)")
"""Used for masked patches and local crops while DINOv3 was trained; inference never reads them."""


def load_published_state_dict(network: DinoUNet, state_dict: Mapping[str, Tensor]) -> None:
    """Fill a network, backbone included, from a state dict of the published Dino U-Net, aliases and all.

    A network of two channels, or of more than three, takes over what the published code does with them: two become
    a, b, a and of more only the first three count.

    Raises:
        WeightsError: names the keys that are missing, unexpected, contradictory or of another shape; nothing is loaded.
    """
    published = _without_aliases(state_dict)
    expected = {**network.state_dict(), **_prefixed(backbone_state(network.backbone.vit))}
    renamed = _prefixed(meta_to_timm({k[len(BACKBONE) :]: v for k, v in published.items() if k.startswith(BACKBONE)}))
    renamed |= {trained_name(k): v for k, v in published.items() if not k.startswith(BACKBONE)}
    _adapt_channels(renamed, network)

    problems = mismatches(expected, renamed)
    if problems:
        listed = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items())
        raise WeightsError(f"the checkpoint is not one of this network ({listed}); check the backbone and the sizes")
    with torch.no_grad():
        for key, tensor in expected.items():
            tensor.copy_(renamed[key])


def mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The keys in which two state dicts differ, by how they differ; empty if they fit."""
    found = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": sorted(k for k in expected.keys() & given.keys() if expected[k].shape != given[k].shape),
    }
    return {kind: keys for kind, keys in found.items() if keys}


def trained_name(key: str) -> str:
    """Our name of a trained tensor of the published network."""
    return _rename(key, TRAINED)


def backbone_state(vit: torch.nn.Module) -> dict[str, Tensor]:
    """All tensors that decide what a timm backbone computes: its state dict and RoPE's periods, which it leaves out."""
    return {**vit.state_dict(), **{k: v for k, v in vit.named_buffers() if k == "rope.periods"}}


def meta_to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's names of a DINOv3 backbone's tensors to timm's.

    The bias of query, key and value is one tensor with a mask there and, its key part being masked, two tensors here.

    Raises:
        WeightsError: a bias mask is not the released models'.
    """
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if PRETRAINING_ONLY.match(key):
            continue
        if key.endswith(".attn.qkv.bias_mask"):
            query, _, value = tensor.chunk(3)
            if not (query.eq(1).all() and value.eq(1).all()):
                raise WeightsError(f"{key} masks the bias of query or value; use a released DINOv3 checkpoint")
        elif key.endswith(".attn.qkv.bias"):
            block = key.removesuffix("qkv.bias")
            converted[f"{block}q_bias"], _, converted[f"{block}v_bias"] = tensor.chunk(3)
        else:
            converted[_rename(key, META_TO_TIMM)] = tensor
    return converted


def _without_aliases(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        name = _rename(key, ALIASES)
        if name in stored and not torch.equal(stored[name], tensor):
            raise WeightsError(f"{key} should equal {name} but does not; the checkpoint is damaged")
        stored[name] = tensor
    return stored


def _rename(key: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def _prefixed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.vit.{key}": tensor for key, tensor in state_dict.items()}


def _adapt_channels(renamed: dict[str, Tensor], network: DinoUNet) -> None:
    """Express the published handling of channels in the first convolution and in the backbone's projection."""
    projection, first = network.channel_projection, "adapter.prior.stem.0.weight"
    if projection is None or first not in renamed:
        return
    sources = (0, 1, 0) if network.config.in_channels == 2 else (0, 1, 2)  # which channel each of the three is
    mixing = torch.zeros_like(projection)
    mixing[torch.arange(3), torch.tensor(sources)] = 1
    renamed["channel_projection"] = mixing
    if renamed[first].shape[1] == 3:
        renamed[first] = torch.einsum("orhw,rc->ochw", renamed[first], mixing)


Table: TypeAlias = Mapping[str, str]
State: TypeAlias = Mapping[str, Tensor]

UNUSED = ""

TRANSFORMERS_DINOV3: Table = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.mask_token": UNUSED,
    "embeddings.patch_embeddings.*": "patch_embed.proj.*",
    "layer.#.norm1.*": "blocks.#.norm1.*",
    "layer.#.attention.q_proj.weight": "blocks.#.attn.qkv.weight[0]",
    "layer.#.attention.k_proj.weight": "blocks.#.attn.qkv.weight[1]",
    "layer.#.attention.v_proj.weight": "blocks.#.attn.qkv.weight[2]",
    "layer.#.attention.q_proj.bias": "blocks.#.attn.q_bias",
    "layer.#.attention.v_proj.bias": "blocks.#.attn.v_bias",
    "layer.#.attention.o_proj.*": "blocks.#.attn.proj.*",
    "layer.#.layer_scale1.lambda1": "blocks.#.gamma_1",
    "layer.#.norm2.*": "blocks.#.norm2.*",
    "layer.#.mlp.up_proj.*": "blocks.#.mlp.fc1.*",
    "layer.#.mlp.down_proj.*": "blocks.#.mlp.fc2.*",
    "layer.#.layer_scale2.lambda1": "blocks.#.gamma_2",
}
"""Hugging Face's `DINOv3ViTModel`; some versions begin the blocks' names with `model.`."""

TRANSFORMERS_DINOV3_GATED: Table = {
    **TRANSFORMERS_DINOV3,
    "layer.#.mlp.gate_proj.*": "blocks.#.mlp.fc1_g.*",
    "layer.#.mlp.up_proj.*": "blocks.#.mlp.fc1_x.*",
}
"""The same with a gated feed-forward layer: S+, H+ and 7B."""

TRANSFORMERS_DINOV2: Table = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.mask_token": UNUSED,
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.*": "patch_embed.proj.*",
    "encoder.layer.#.norm1.*": "blocks.#.norm1.*",
    "encoder.layer.#.attention.attention.query.*": "blocks.#.attn.qkv.*[0]",
    "encoder.layer.#.attention.attention.key.*": "blocks.#.attn.qkv.*[1]",
    "encoder.layer.#.attention.attention.value.*": "blocks.#.attn.qkv.*[2]",
    "encoder.layer.#.attention.output.dense.*": "blocks.#.attn.proj.*",
    "encoder.layer.#.layer_scale1.lambda1": "blocks.#.ls1.gamma",
    "encoder.layer.#.norm2.*": "blocks.#.norm2.*",
    "encoder.layer.#.mlp.fc1.*": "blocks.#.mlp.fc1.*",
    "encoder.layer.#.mlp.fc2.*": "blocks.#.mlp.fc2.*",
    "encoder.layer.#.mlp.weights_in.*": "blocks.#.mlp.fc1.*",
    "encoder.layer.#.mlp.weights_out.*": "blocks.#.mlp.fc2.*",
    "encoder.layer.#.layer_scale2.lambda1": "blocks.#.ls2.gamma",
    "layernorm.*": "norm.*",
}
"""Hugging Face's `Dinov2Model` and `Dinov2WithRegistersModel`."""

TRANSFORMERS_CONVNEXT: Table = {
    "stages.0.downsample_layers.#.*": "stem.#.*",
    "stages.#.downsample_layers.#.*": "stages.#.downsample.#.*",
    "stages.#.layers.#.depthwise_conv.*": "stages.#.blocks.#.conv_dw.*",
    "stages.#.layers.#.layer_norm.*": "stages.#.blocks.#.norm.*",
    "stages.#.layers.#.pointwise_conv1.*": "stages.#.blocks.#.mlp.fc1.*",
    "stages.#.layers.#.pointwise_conv2.*": "stages.#.blocks.#.mlp.fc2.*",
    "stages.#.layers.#.gamma": "stages.#.blocks.#.gamma",
    "layer_norm.*": "head.norm.*",
}
"""Hugging Face's `DINOv3ConvNextModel`."""

META_DINOV2: Table = {
    "register_tokens": "reg_token",
    "mask_token": UNUSED,
    "blocks.#.mlp.w12.*": "blocks.#.mlp.fc1.*",
    "blocks.#.mlp.w3.*": "blocks.#.mlp.fc2.*",
}
"""Meta's DINOv2, with and without registers. DINOv3's table is `META_TO_TIMM`."""

META_CONVNEXT: Table = {
    "downsample_layers.0.#.*": "stem.#.*",
    "downsample_layers.#.#.*": "stages.#.downsample.#.*",
    "stages.#.#.dwconv.*": "stages.#.blocks.#.conv_dw.*",
    "stages.#.#.norm.*": "stages.#.blocks.#.norm.*",
    "stages.#.#.pwconv1.*": "stages.#.blocks.#.mlp.fc1.*",
    "stages.#.#.pwconv2.*": "stages.#.blocks.#.mlp.fc2.*",
    "stages.#.#.gamma": "stages.#.blocks.#.gamma",
    "norm.*": "head.norm.*",
    "norms.3.*": UNUSED,  # the same norm under a second name
}
"""Meta's DINOv3 ConvNeXt."""


@dataclass(frozen=True)
class Format:
    """One way to name a backbone's tensors."""

    name: str
    """Name of the format in messages."""

    mark: str
    """Part of a name that only this format's tensors have."""

    convert: Callable[[State], dict[str, Tensor]]
    """From its names to timm's."""


def by_table(table: Table) -> Callable[[State], dict[str, Tensor]]:
    """A conversion by a table; what it doesn't name keeps its name, so that it is missed or noticed later."""
    rules = [
        (re.compile(re.escape(theirs).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)")), ours)
        for theirs, ours in table.items()
    ]

    def convert(state: State) -> dict[str, Tensor]:
        parts: dict[str, dict[int, Tensor]] = {}
        for key, tensor in state.items():
            name = _rename_keys(key.removeprefix("model."), rules)
            if name == UNUSED:
                continue
            name, _, part = name.rstrip("]").partition("[")
            if parts.setdefault(name, {}).setdefault(int(part or 0), tensor) is not tensor:
                raise WeightsError(f"the file has a duplicate of {name}, {key}")
        joined = {name: [found[part] for part in sorted(found)] for name, found in parts.items()}
        return _fold_class_position(
            {name: torch.cat(found) if len(found) > 1 else found[0] for name, found in joined.items()}
        )

    return convert


def _rename_keys(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, ours in rules:
        if found := pattern.fullmatch(key):
            for group in found.groups():
                ours = ours.replace("#" if group.isdecimal() else "*", group, 1)
            return ours
    return key


def _fold_class_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 with registers as timm has it: the class token's position is added to it for good."""
    if "reg_token" in state and "pos_embed" in state:
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


FORMATS = (
    Format("transformers' DINOv3", ".mlp.gate_proj.", by_table(TRANSFORMERS_DINOV3_GATED)),
    Format("transformers' DINOv3", "layer.0.attention.q_proj.", by_table(TRANSFORMERS_DINOV3)),
    Format("transformers' DINOv2", "encoder.layer.0.attention.attention.", by_table(TRANSFORMERS_DINOV2)),
    Format("transformers' ConvNeXt", ".depthwise_conv.", by_table(TRANSFORMERS_CONVNEXT)),
    Format("Meta's ConvNeXt", "downsample_layers.0.0.", by_table(META_CONVNEXT)),
    Format("Meta's DINOv3", "storage_tokens", meta_to_timm),
    Format("Meta's DINOv2", "mask_token", by_table(META_DINOV2)),
)
"""Tried in this order; what has none of these marks is taken to be in timm's own names."""


def find_format(names: Iterable[str]) -> Format:
    """The format of a file whose tensors have these names."""
    known = list(names)
    found = (format for format in FORMATS if any(format.mark in name for name in known))
    return next(found, Format("timm's", "", dict))
