"""The formats that backbones are published in: one table each, from its names of the tensors to timm's.

In a table `#` stands for a number and `*` for weight or bias; `[0]`, `[1]` and `[2]` behind timm's name are the parts
that are put together to one tensor. What only pretraining uses has no name here: it is `UNUSED`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dinounet.errors import WeightsError
from dinounet.network.published import meta_to_timm

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
    "norm.*": "norm.*",
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
    "cls_token": "cls_token",
    "register_tokens": "reg_token",
    "mask_token": UNUSED,
    "pos_embed": "pos_embed",
    "patch_embed.proj.*": "patch_embed.proj.*",
    "blocks.#.norm1.*": "blocks.#.norm1.*",
    "blocks.#.attn.qkv.*": "blocks.#.attn.qkv.*",
    "blocks.#.attn.proj.*": "blocks.#.attn.proj.*",
    "blocks.#.ls1.gamma": "blocks.#.ls1.gamma",
    "blocks.#.norm2.*": "blocks.#.norm2.*",
    "blocks.#.mlp.fc1.*": "blocks.#.mlp.fc1.*",
    "blocks.#.mlp.fc2.*": "blocks.#.mlp.fc2.*",
    "blocks.#.mlp.w12.*": "blocks.#.mlp.fc1.*",
    "blocks.#.mlp.w3.*": "blocks.#.mlp.fc2.*",
    "blocks.#.ls2.gamma": "blocks.#.ls2.gamma",
    "norm.*": "norm.*",
}
"""Meta's DINOv2, with and without registers. DINOv3's table is `dinounet.network.published.META_TO_TIMM`."""

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
    """As a message calls it."""

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
            name = _rename(key.removeprefix("model."), rules)
            if name == UNUSED:
                continue
            name, _, part = name.rstrip("]").partition("[")
            if parts.setdefault(name, {}).setdefault(int(part or 0), tensor) is not tensor:
                raise WeightsError(f"the file holds {name} twice, once as {key}")
        joined = {name: [found[part] for part in sorted(found)] for name, found in parts.items()}
        return _fold_class_position(
            {name: torch.cat(found) if len(found) > 1 else found[0] for name, found in joined.items()}
        )

    return convert


def _rename(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
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
