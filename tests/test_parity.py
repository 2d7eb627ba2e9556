"""The network computes what the published one does: every stored tensor, within the manifest's tolerances.

The vectors come from the published modules with random weights; `manifest.json` beside them says what each tensor is.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import compared, shared
from dinounet.backbones.frozen import build_backbone, build_network
from dinounet.backbones.key_names import load_published_state_dict, meta_to_timm, trained_name
from dinounet.backbones.registry import network_config
from dinounet.errors import WeightsError
from dinounet.network.adapter import cell_centres
from dinounet.network.deformable_attention import DeformableAttention, sample_and_weigh
from dinounet.network.dinounet import DinoUNet

TINY = {
    "num_classes": 3,
    "taps": (0, 1, 2, 3),
    "stem_width": 16,
    "rank": 32,
    "widths": (8, 16, 32, 64),
    "backbone_args": {"embed_dim": 64, "depth": 4, "num_heads": 4},
}


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads(shared("parity/manifest.json").read_text())


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return load_file(shared("parity/tiny_state_dict.safetensors"))


def tiny(state_dict: dict[str, Tensor], **changes: object) -> DinoUNet:
    network = build_network(network_config(**{"in_channels": 3, **TINY, **changes})).eval()
    load_published_state_dict(network, state_dict)
    return network


def assert_parity(name: str, ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> None:
    assert ours.shape == theirs.shape, name
    bound = tolerance * max(1.0, theirs.abs().max().item())
    worst = (ours - theirs).abs().max().item()
    assert worst <= bound, f"{name}: off by {worst:.2e}, allowed {bound:.2e}"
    compared.append(name)


def record(network: DinoUNet, image: Tensor) -> dict[str, Tensor]:
    """Run the network and name what its parts give as the vectors do."""
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))

    vit, adapter, fapm = network.backbone.vit, network.adapter, network.fapm
    keep(vit.patch_embed, "backbone.patch_embed")
    for i, block in enumerate(vit.blocks):
        keep(block, f"backbone.block.{i}")
    for i, level in enumerate(adapter.prior.project, start=1):
        keep(level, f"spm.c.{i}")
    for i, extractors in enumerate(adapter.interactions):
        keep(extractors[0].attention, f"interaction.{i}.attn")
        keep(extractors[-1], f"interaction.{i}.c")
    first, *extra = adapter.interactions[3]
    keep(first, "interaction.3.extractor")
    for i, extractor in enumerate(extra):
        keep(extractor, f"interaction.3.extra_extractor.{i}")
    for i, norm in enumerate(adapter.norms, start=1):
        keep(norm, f"adapter.f.{i}")
    for i in range(4):
        keep(fapm.specific[i], f"fapm.z_specific.{i}")
        keep(fapm.film[i], f"fapm.gamma_beta.{i}")
        keep(fapm.refine[i], f"fapm.refined.{i}")
        keep(fapm.shortcut[i], f"fapm.shortcut.{i}")
        fapm.film[i].register_forward_hook(
            lambda _m, inputs, _o, i=i: seen.__setitem__(f"fapm.z_shared.{i}", inputs[0])
        )
        fapm.refine[i].register_forward_hook(
            lambda _m, inputs, _o, i=i: seen.__setitem__(f"fapm.z_modulated.{i}", inputs[0])
        )
        network.enlarge[i].register_forward_hook(
            lambda _m, inputs, _o, i=i: seen.__setitem__(f"fapm.out.{i}", inputs[0])
        )
        keep(network.enlarge[i], f"skip.{i}")
    for i, stage in enumerate(network.decoder.stages):
        keep(stage.up, f"decoder.transpconv.{i}")
        keep(stage, f"decoder.stage.{i}")

    with torch.no_grad():
        seen["logits"] = network(image)
        for scale, logits in enumerate(network.decoder([seen[f"skip.{i}"] for i in range(4)], scales=3)):
            seen[f"deep_supervision.{scale}"] = logits
        for i, (patch, prefix) in enumerate(
            vit.forward_intermediates(
                image, norm=True, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
            )
        ):
            seen[f"backbone.layer.{i}.patch"] = patch
            seen[f"backbone.layer.{i}.cls"], seen[f"backbone.layer.{i}.storage"] = prefix[:, 0], prefix[:, 1:]
        for i, tap in enumerate(network.backbone(image)):
            assert torch.equal(tap, seen[f"backbone.layer.{i}.patch"])
        height, width = image.shape[-2] // 16, image.shape[-1] // 16
        sine, cosine = vit.rope.get_embed((height, width)).chunk(2, dim=-1)
        seen["backbone.rope_sincos.0"], seen["backbone.rope_sincos.1"] = sine, cosine
    seen["backbone.patch_embed"] = seen["backbone.patch_embed"].reshape(len(image), height, width, -1)
    for i in (2, 3, 4):
        seen[f"spm.c.{i}"] = seen[f"spm.c.{i}"].flatten(2).transpose(1, 2)
    return seen


@pytest.mark.parametrize("case", ["tiny_case_2x3x64x96", "tiny_case_1x3x64x64"])
def test_every_tensor_of_the_tiny_network(case: str, published: dict[str, Tensor]) -> None:
    vectors = load_file(shared(f"parity/{case}.safetensors"))
    ours = record(tiny(published), vectors["input"])
    for name, theirs in vectors.items():
        if not re.match(r"input|logits\.\dch", name):
            assert_parity(f"{case}/{name}", ours[name], theirs)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels_as_published(channels: int, published: dict[str, Tensor]) -> None:
    vectors = load_file(shared("parity/tiny_case_1x3x64x64.safetensors"))
    network = tiny(published, in_channels=channels)
    with torch.no_grad():
        logits = network(vectors[f"input.{channels}ch"])
    assert_parity(f"logits.{channels}ch", logits, vectors[f"logits.{channels}ch"])


def test_gradients(published: dict[str, Tensor], manifest: dict) -> None:
    vectors = load_file(shared("parity/tiny_gradients_2x3x64x96.safetensors"))
    network = tiny(published)
    loss = (network(vectors["input"]) * vectors["loss_weight"]).sum()
    loss.backward()
    assert loss.item() == pytest.approx(vectors["loss"].item(), rel=1e-4)
    parameters = dict(network.named_parameters())
    gradients = {k.removeprefix("grad."): v for k, v in vectors.items() if k.startswith("grad.")}
    assert len(gradients) == 34
    for name, theirs in gradients.items():
        ours = parameters[trained_name(name)].grad
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), name
        compared.append(f"gradient of {name}")

    summary = manifest["gradient_summary"]
    assert len(summary) == 285
    largest = max(entry["l2"] for entry in summary.values())
    for name, entry in summary.items():
        norm = parameters[trained_name(name)].grad.norm().item()
        if entry.get("analytically_zero"):  # a bias or scale right before instance norm
            assert norm <= 1e-4 * largest, name
        else:
            assert norm == pytest.approx(entry["l2"], rel=1e-4), name
        compared.append(f"norm of the gradient of {name}")


@pytest.mark.parametrize("case", ["core1", "core3"])
def test_deformable_sampling_and_its_gradients(case: str) -> None:
    vectors = {
        k.split(".", 1)[1]: v
        for k, v in load_file(shared("parity/msdeformattn.safetensors")).items()
        if k.startswith(case)
    }
    inputs = {k: vectors[k].requires_grad_() for k in ("value", "sampling_locations", "attention_weights")}
    sizes = [tuple(size) for size in vectors["spatial_shapes"].tolist()]
    output = sample_and_weigh(inputs["value"], sizes, inputs["sampling_locations"], inputs["attention_weights"])
    output.backward(vectors["grad_output"])
    assert_parity(f"{case}.output", output, vectors["output"], 1e-5)
    for name, tensor in inputs.items():
        assert_parity(f"{case}.grad_{name}", tensor.grad, vectors[f"grad_{name}"], 1e-5)


@pytest.mark.parametrize("case", ["module1", "module3"])
def test_deformable_attention_and_its_gradients(case: str) -> None:
    vectors = {
        k.split(".", 1)[1]: v
        for k, v in load_file(shared("parity/msdeformattn.safetensors")).items()
        if k.startswith(case)
    }
    ours = {
        "sampling_offsets": "offsets",
        "attention_weights": "weights",
        "value_proj": "value",
        "output_proj": "output",
    }
    query, source = vectors["query"].requires_grad_(), vectors["input_flatten"].requires_grad_()
    width, levels = query.shape[-1], len(vectors["spatial_shapes"])
    value_width = len(vectors["weight.value_proj.weight"])
    outputs = len(vectors["weight.attention_weights.bias"])
    heads = 4
    module = DeformableAttention(width, heads, outputs // heads // levels, levels, value_width / width)
    for theirs, name in ours.items():
        for part in ("weight", "bias"):
            getattr(getattr(module, name), part).data.copy_(vectors[f"weight.{theirs}.{part}"])
    sizes = [tuple(size) for size in vectors["spatial_shapes"].tolist()]
    output = module(query, vectors["reference_points"], source, sizes)
    output.backward(vectors["grad_output"])
    assert_parity(f"{case}.output", output, vectors["output"], 1e-5)
    assert_parity(f"{case}.grad_query", query.grad, vectors["grad_query"], 1e-5)
    assert_parity(f"{case}.grad_input_flatten", source.grad, vectors["grad_input_flatten"], 1e-5)
    for theirs, name in ours.items():
        for part in ("weight", "bias"):
            gradient = getattr(getattr(module, name), part).grad
            assert_parity(f"{case}.grad.{theirs}.{part}", gradient, vectors[f"grad.{theirs}.{part}"], 1e-5)


def test_sampling_geometry_of_the_adapter() -> None:
    vectors = load_file(shared("parity/msdeformattn.safetensors"))
    ours = cell_centres([(8, 12), (4, 6), (2, 3)], torch.device("cpu"))
    assert_parity("adapter_64x96.reference_points", ours, vectors["adapter_64x96.reference_points"], 1e-7)


def test_backbone_with_swiglu_and_without_qkv_bias() -> None:
    vectors = load_file(shared("parity/backbone_swiglu_and_rope.safetensors"))
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    config = network_config(
        backbone="dinov3_vit7b16", taps=(0, 1, 2, 3), backbone_args={**sizes, "depth": 4},
        backbone_precision="fp32",  # by default it is held in bf16
    )  # fmt: skip
    vit = build_backbone(config).vit
    vit.blocks = vit.blocks[:2]
    state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
    converted = meta_to_timm(state)
    vit.rope.periods.copy_(converted.pop("rope.periods"))
    vit.load_state_dict(converted)
    layers = vit.forward_intermediates(
        vectors["input"], norm=True, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    for i, (patch, prefix) in enumerate(layers):
        assert_parity(f"swiglu.layer.{i}.patch", patch, vectors[f"layer.{i}.patch"])
        assert_parity(f"swiglu.layer.{i}.cls", prefix[:, 0], vectors[f"layer.{i}.cls"])
        assert_parity(f"swiglu.layer.{i}.storage", prefix[:, 1:], vectors[f"layer.{i}.storage"])


@pytest.mark.parametrize("table", ["d16.4x6", "d16.3x5", "d64.14x14", "d64.16x20", "d128.4x6"])
def test_rope_tables(table: str) -> None:
    vectors = load_file(shared("parity/backbone_swiglu_and_rope.safetensors"))
    head_width, height, width = map(int, re.findall(r"\d+", table))
    args = {"embed_dim": 2 * head_width, "depth": 4, "num_heads": 2}
    rope = build_backbone(network_config(taps=(0, 1, 2, 3), backbone_args=args)).vit.rope
    sine, cosine = rope.get_embed((height, width)).chunk(2, dim=-1)
    assert_parity(f"rope.{table}.sin", sine, vectors[f"rope.{table}.sin"])
    assert_parity(f"rope.{table}.cos", cosine, vectors[f"rope.{table}.cos"])
    assert_parity(f"rope.{table}.periods", rope.periods, vectors[f"rope.{table}.periods"])


def test_a_published_checkpoint_with_all_its_aliases(published: dict[str, Tensor], manifest: dict) -> None:
    aliases = manifest["aliases"]["alias_to_stored"]
    whole = published | {alias: published[stored] for alias, stored in aliases.items()}
    whole |= {f"decoder.{key}": tensor for key, tensor in whole.items() if key.startswith("encoder.")}
    assert len(whole) == manifest["aliases"]["n_full_state_dict"]
    plain, aliased = tiny(published), tiny(whole)
    for (name, a), (_, b) in zip(plain.state_dict().items(), aliased.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_published_checkpoint_that_does_not_fit_is_refused_by_name(published: dict[str, Tensor]) -> None:
    network = build_network(network_config(in_channels=3, **TINY))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    renamed = dict(published)
    renamed["encoder.fapm.surprise"] = renamed.pop("encoder.fapm.shared_basis.bias")
    with pytest.raises(WeightsError, match=r"missing: fapm\.shared\.bias; unexpected: encoder\.fapm\.surprise"):
        load_published_state_dict(network, renamed)
    with pytest.raises(WeightsError, match=r"of another shape: decoder\.heads\.2\.bias"):
        load_published_state_dict(network, published | {"decoder.seg_layers.2.bias": torch.zeros(5)})
    alias = {"decoder.encoder.dinov3_adapter.level_embed": published["encoder.dinov3_adapter.level_embed"] + 1}
    with pytest.raises(WeightsError, match="damaged"):
        load_published_state_dict(network, published | alias)
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


def test_periods_and_biases_of_a_meta_checkpoint_are_taken_from_the_file(published: dict[str, Tensor]) -> None:
    prefix = "encoder.dinov3_adapter.backbone."
    rounded = published[f"{prefix}rope_embed.periods"].bfloat16().float() * 1.01
    vit = tiny(published | {f"{prefix}rope_embed.periods": rounded}).backbone.vit
    assert torch.equal(vit.rope.periods, rounded)
    query, _, value = published[f"{prefix}blocks.0.attn.qkv.bias"].chunk(3)
    assert torch.equal(vit.blocks[0].attn.q_bias, query)
    assert torch.equal(vit.blocks[0].attn.v_bias, value)
