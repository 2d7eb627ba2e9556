"""Checkpoints of the published Dino U-Net: their key names, and what became of each tensor.

One table for the trained tensors, one for the backbone, which the published checkpoints hold under Meta's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
