"""What a caller may rely on: any size, any channels, a backbone that stays frozen, precision and compilation."""

import copy
import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from dinounet.backbones.frozen import build_backbone, build_network
from dinounet.backbones.registry import network_config
from dinounet.errors import ConfigError
from dinounet.network.cpu_kernels import SampleByBags, cpu_kernels
from dinounet.network.decoder import pad_to_stride
from dinounet.network.deformable_attention import sample_and_weigh
from dinounet.network.dinounet import DinoUNet
from dinounet.network.unet import UNet, rename_monai_keys
from dinounet.schema.network import plan_unet
from networks import tiny_config


def tiny(**changes: object) -> DinoUNet:
    torch.manual_seed(0)
    return build_network(tiny_config(**changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "trainable", "adapter", "fapm", "frozen", "frozen_elsewhere"),
    [
        # the published counts hold the mask token and the masked key bias (7B: the norm of local crops), timm's don't
        ("dinov3_vits16", 6_194_948, 3_698_432, 1_393_214, 21_601_152, 384 + 12 * 384),
        ("dinov3_vitb16", 13_182_020, 10_193_984, 1_884_734, 85_669_632, 768 + 12 * 768),
        ("dinov3_vitl16", 19_969_988, 16_654_272, 2_212_414, 303_154_176, 1024 + 24 * 1024),
        ("dinov3_vit7b16", 234_332_612, 227_084_736, 6_144_574, 6_716_043_264, 4096 + 2 * 4096),
    ],
)
def test_parameter_counts_are_the_published_ones(
    backbone: str, trainable: int, adapter: int, fapm: int, frozen: int, frozen_elsewhere: int
) -> None:
    with torch.device("meta"):
        network = build_network(network_config(backbone))

    def count(module: nn.Module, trained: bool = True) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad == trained)

    assert count(network) == trainable
    assert count(network.adapter) == adapter
    assert count(network.fapm) == fapm
    assert count(network.enlarge) == 348_640
    assert count(network.decoder) == 754_662
    assert count(network.backbone, trained=False) + frozen_elsewhere == frozen


def test_norm_epsilons_and_other_constants_that_the_vectors_cannot_tell_apart() -> None:
    network = tiny()
    epsilons = {
        "backbone": {m.eps for m in network.backbone.modules() if isinstance(m, nn.LayerNorm)},
        "adapter": {m.eps for m in network.adapter.modules() if isinstance(m, nn.LayerNorm)},
        "batch": {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)},
        "instance": {m.eps for m in network.modules() if isinstance(m, nn.InstanceNorm2d)},
    }
    assert epsilons == {"backbone": {1e-5}, "adapter": {1e-6}, "batch": {1e-5}, "instance": {1e-5}}


def test_features_are_what_the_decoder_makes_logits_of_cut_to_the_images_size() -> None:
    network = tiny(num_classes=3).eval()
    with torch.inference_mode():
        image = torch.randn(2, 1, 64, 96)
        assert torch.equal(network.decoder(network.features(image))[0], network(image))
        odd = image[..., :33, :65]
        with cpu_kernels(odd.device):
            whole = network.encode(pad_to_stride(odd))
        for scale, (cut, full) in enumerate(zip(network.features(odd), whole, strict=True)):
            rows, columns = -(-33 // 2**scale), -(-65 // 2**scale)
            assert cut.shape[-2:] == (rows, columns)
            assert torch.equal(cut, full[..., :rows, :columns])
    with pytest.raises(ConfigError, match="the network reads"):
        network.features(torch.randn(1, 2, 64, 64))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (31, 33), (64, 96), (65, 64), (100, 37)])
def test_any_size_in_is_the_size_out(size: tuple[int, int]) -> None:
    network = tiny(num_classes=3).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


def test_padding_repeats_the_border_and_leaves_multiples_of_32_alone() -> None:
    network = tiny().eval()
    image = torch.randn(1, 1, 70, 90)
    by_hand = nn.functional.pad(image, (0, 6, 0, 26), mode="replicate")
    with torch.no_grad():
        assert torch.equal(network(image), network(by_hand)[..., :70, :90])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_every_channel_counts(channels: int) -> None:
    network = tiny(in_channels=channels).eval()
    image = torch.randn(1, channels, 64, 64)
    with torch.no_grad():
        before = network(image)
        for channel in range(channels):
            changed = image.clone()
            changed[:, channel] += torch.randn(64, 64)
            assert (network(changed) - before).abs().max() > 1e-3, f"channel {channel} is ignored"


def test_the_backbone_sees_the_mean_of_many_channels_and_one_channel_three_times() -> None:
    seen = []
    for channels in (4, 1):
        network = tiny(in_channels=channels)
        network.backbone.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
        image = torch.randn(1, channels, 64, 64)
        network(image)
        torch.testing.assert_close(seen[-1], image.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    assert "channel_projection" in tiny(in_channels=4).state_dict()


def test_the_backbone_stays_frozen_in_evaluation_mode_and_out_of_the_state_dict() -> None:
    network = nn.ModuleDict({"inner": tiny()}).train()  # also when it is part of something larger
    backbone = network["inner"].backbone
    assert network["inner"].adapter.training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())

    state = network.state_dict()
    assert not [key for key in state if "vit" in key or "backbone" in key]
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained <= state.keys()

    other = nn.ModuleDict({"inner": tiny()})
    frozen = copy.deepcopy(other["inner"].backbone.vit.state_dict())
    other.load_state_dict(state, strict=True)
    assert all(torch.equal(frozen[key], value) for key, value in other["inner"].backbone.vit.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Missing key.*inner\.fapm\.shared\.bias"):
        other.load_state_dict({key: value for key, value in state.items() if key != "inner.fapm.shared.bias"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surprise"):
        other.load_state_dict({**state, "inner.surprise": torch.zeros(1)})


def test_training_moves_what_is_trained_and_nothing_frozen() -> None:
    network = tiny(drop_path=0.0).train()
    frozen = copy.deepcopy(network.backbone.vit.state_dict())
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1, weight_decay=0.1)
    image, target = torch.randn(2, 1, 64, 64), torch.randint(0, 2, (2, 64, 64))
    nn.functional.cross_entropy(network(image), target).backward()
    optimizer.step()

    without_gradient = {name for name, parameter in trained.items() if parameter.grad is None}
    assert without_gradient == {f"decoder.heads.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    assert all(torch.equal(frozen[key], value) for key, value in network.backbone.vit.state_dict().items())


def test_batch_norm_in_train_mode_is_of_the_batch_and_learns_its_statistics() -> None:
    network = tiny(drop_path=0.0).train()
    image = 3 * torch.randn(2, 1, 64, 64) + 5
    first = network.adapter.prior.stem[0](image.expand(-1, 3, -1, -1))
    network(image)
    norm = network.adapter.prior.stem[1]
    torch.testing.assert_close(norm.running_mean, 0.1 * first.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * first.var((0, 2, 3)))


def test_deep_supervision_gives_three_scales_in_training_and_one_in_evaluation() -> None:
    network = tiny(deep_supervision=True)
    image = torch.randn(1, 1, 70, 64)
    assert [tuple(logits.shape[-2:]) for logits in network.train()(image)] == [(70, 64), (35, 32), (18, 16)]
    assert network.eval()(image).shape == (1, 2, 70, 64)


def test_bf16_autocast_gives_nearly_the_same_and_trains() -> None:
    network = tiny().eval()
    image = torch.randn(2, 1, 64, 96)
    exact = network(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(image)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()
    rough.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.adapter.parameters())


@pytest.mark.slow
def test_compiles_as_one_graph_forward_and_backward() -> None:
    network = tiny(drop_path=0.0).eval()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    image = torch.randn(1, 1, 64, 96)
    eager, traced = network(image), compiled(image)
    torch.testing.assert_close(traced, eager)
    traced.sum().backward()
    assert network.adapter.level_embedding.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "dinov3_vits"}, "there is no backbone 'dinov3_vits'; the nearest names are dinov3_vits16"),
        ({"in_channels": 0}, "network.in_channels is 0; it must be at least 1"),
        ({"num_classes": 0}, "num_classes is 0; it must be at least 1"),
        ({"taps": (0, 1, 2, 12)}, "network.taps names block 12 but dinov3_vits16 ends with block 3"),
        ({"taps": (3, 2, 1, 0)}, "ascending order"),
        ({"attention_heads": 5}, "attention_heads is 5, which does not divide 32"),
        ({"backbone_args": {"embed_dims": 64}}, "can't be built with"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_answered(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_a_configuration_and_a_backbone_that_contradict_each_other_are_refused_when_they_meet() -> None:
    config, other = tiny_config(), tiny_config(backbone_args={"embed_dim": 128, "depth": 4, "num_heads": 4})
    assert (config.backbone_width, other.backbone_width, config.backbone_precision) == (64, 128, "fp32")
    with pytest.raises(ConfigError, match=r"backbone_width is 64, but the backbone has 128 channels; give"):
        DinoUNet(config, build_backbone(other))
    with pytest.raises(ConfigError, match=r"backbone_width is 128, but dinov3_vits16 has 64 channels; correct it, or"):
        build_backbone(replace(config, backbone_width=128))
    with pytest.raises(ConfigError, match=r"taps names block 4 but dinov3_vits16 ends with block 3"):
        build_backbone(replace(config, taps=(0, 1, 2, 4)))


def test_a_configuration_is_read_without_looking_its_backbone_up() -> None:
    config = replace(tiny_config(), backbone="timm:of_a_newer_timm")
    code = (
        "import json, sys; from dinounet.schema.base import to_record; "
        "from dinounet.schema.network import NetworkConfig; "
        "to_record(NetworkConfig, json.load(sys.stdin), where='-'); print({'timm', 'torch'} & set(sys.modules))"
    )
    given = json.dumps(asdict(config))
    found = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
    with pytest.raises(ConfigError, match="timm has no model 'of_a_newer_timm'"):
        build_backbone(config)


def test_an_image_of_other_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \(1, 3, 64, 64\) but the network reads \(batch, 1, height, width\)"):
        tiny()(torch.randn(1, 3, 64, 64))


def test_sampling_by_gathers_is_grid_sample_and_so_are_its_gradients() -> None:
    from dinounet.network.deformable_attention import sample_by_gather

    map, grid = torch.randn(3, 5, 6, 7, dtype=torch.float64), 2.6 * torch.rand(3, 11, 4, 2, dtype=torch.float64) - 1.3
    upstream = torch.randn(3, 5, 11, 4, dtype=torch.float64)
    expected = torch.nn.functional.grid_sample(map.requires_grad_(), grid.requires_grad_(), align_corners=False)
    gradients = torch.autograd.grad(expected, (map, grid), upstream)
    found = sample_by_gather(map, grid)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (map, grid), upstream), gradients)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[(6, 7)], [(5, 3), (2, 4)]])
def test_sampling_on_the_cpu_is_grid_sample_and_so_are_its_gradients(sizes: list[tuple[int, int]]) -> None:
    batch, queries, heads, width, points = 2, 9, 3, 4, 2
    value = torch.randn(batch, sum(h * w for h, w in sizes), heads, width, dtype=torch.float64, requires_grad=True)
    places = 3 * torch.rand(batch, queries, heads, len(sizes), points, 2, dtype=torch.float64) - 1  # far outside, too
    weights = torch.randn(batch, queries, heads, len(sizes), points, dtype=torch.float64, requires_grad=True)
    inputs, upstream = (value, places.requires_grad_(), weights), torch.randn(batch, queries, heads * width).double()

    expected, first = torch.zeros(batch, queries, heads, width, dtype=torch.float64), 0
    for level, (height, across) in enumerate(sizes):
        for head in range(heads):
            map = value[:, first : first + height * across, head].transpose(1, 2).unflatten(2, (height, across))
            samples = nn.functional.grid_sample(map, 2 * places[:, :, head, level] - 1, align_corners=False)
            share = torch.einsum("bdqp,bqp->bqd", samples, weights[:, :, head, level])
            expected = expected + nn.functional.pad(share[:, :, None], (0, 0, head, heads - 1 - head))
        first += height * across
    expected = expected.flatten(2)
    found = SampleByBags.apply(value, places, weights, sizes)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sample_and_weigh(value, sizes, places, weights), expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    )
    assert torch.autograd.gradcheck(lambda *inputs: SampleByBags.apply(*inputs, sizes), inputs)


def test_sampling_near_counted_cells_is_sampling_at_their_places() -> None:
    from dinounet.bundle.exportable import counted_centres, sample_near
    from dinounet.network.adapter import cell_centres

    levels, sizes, heads, width, points = [(8, 12), (3, 5)], [(6, 7), (2, 4)], 3, 4, 2
    reference, counted = (centres(levels, torch.device("cpu")) for centres in (cell_centres, counted_centres))
    torch.testing.assert_close(reference[0, :, 0], counted.numerator / counted.denominator)
    value = torch.randn(2, sum(h * w for h, w in sizes), heads, width)
    offsets = 6 * torch.randn(2, reference.shape[1], heads, len(sizes), points, 2)  # far outside, too
    weights = torch.randn(offsets.shape[:-1])
    extent = torch.tensor([[w, h] for h, w in sizes])[:, None]
    expected = sample_and_weigh(value, sizes, reference[:, :, None, :, None] + offsets / extent, weights)
    torch.testing.assert_close(sample_near(value, sizes, counted, offsets, weights), expected, atol=1e-4, rtol=0)


def test_a_function_is_looked_up_by_whole_numbers() -> None:
    from dinounet.bundle.exportable import Ratios, look_up, tabulate, whole

    table = tabulate(lambda ratio: torch.stack([ratio, (2 * torch.pi * ratio).sin()], dim=-1), largest=3)
    for side in (1, 7, 300, 4096):
        numerators = torch.arange(3 * side + 1)
        expected = (numerators / side)[:, None].double()
        expected = torch.cat([expected, (2 * torch.pi * expected).sin()], dim=1).float()
        found = look_up(table, Ratios(numerators, whole(side)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        beyond = look_up(table, Ratios(numerators + 3 * side, whole(side)))
        torch.testing.assert_close(beyond, expected[-1:].expand_as(beyond), atol=1e-5, rtol=0)


def test_a_place_that_is_not_a_number_gives_no_number_instead_of_an_error() -> None:
    places = torch.full((1, 2, 1, 1, 1, 2), 0.5)
    places[0, 0] = torch.nan
    found = SampleByBags.apply(torch.randn(1, 4, 1, 3), places, torch.ones(1, 2, 1, 1, 1), [(2, 2)])
    assert found[0, 0].isnan().all() and found[0, 1].isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_by_onednn_are_pytorchs_and_so_are_their_gradients(bias: bool) -> None:
    input = torch.randn(2, 7, 24).transpose(0, 1).requires_grad_()
    layer, upstream = nn.Linear(24, 10, bias=bias), torch.randn(7, 2, 10)
    expected = layer(input)
    with cpu_kernels(input.device):
        found = layer(input)
    parameters = (input, *layer.parameters())
    assert "Linear" in type(found.grad_fn).__name__ and type(found.grad_fn) is not type(expected.grad_fn)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found, parameters, upstream),
        torch.autograd.grad(expected, parameters, upstream),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_instance_norm_is_pytorchs_and_so_are_its_gradients(order: torch.memory_format) -> None:
    norm = nn.InstanceNorm2d(5, affine=True)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    map, upstream = torch.randn(3, 5, 7, 6).to(memory_format=order).requires_grad_(), torch.randn(3, 5, 7, 6)
    parameters = (map, norm.weight, norm.bias)
    with cpu_kernels(map.device):
        found = nn.functional.leaky_relu(norm(map), inplace=True)
    assert "InstanceNormByBatchNorm" in str(found.grad_fn.next_functions)
    expected = nn.functional.leaky_relu(nn.functional.instance_norm(map, weight=norm.weight, bias=norm.bias))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, parameters, upstream), torch.autograd.grad(expected, parameters, upstream)
    )


@pytest.mark.parametrize("matrix_instructions", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_by_onednn_is_pytorchs(
    dtype: torch.dtype, tolerance: float, matrix_instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinounet.network.cpu_kernels.processor_has", lambda instructions: matrix_instructions)
    query, key, value = (torch.randn(2, 37, 3, 16).transpose(1, 2) for _ in range(3))  # heads lie between tokens
    expected = nn.functional.scaled_dot_product_attention(query, key, value)
    with cpu_kernels(query.device):
        found = nn.functional.scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype))
        masked = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert found.dtype == dtype
    assert (found.float() - expected).norm() < tolerance * expected.norm()
    torch.testing.assert_close(masked, nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True))


def test_what_is_computed_again_in_backward_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny(drop_path=0.5).train()  # drop path must drop the same again
    image = torch.randn(2, 1, 64, 64)
    gradients = []
    for keeps_all in (False, True):
        if keeps_all:
            monkeypatch.setattr(
                "dinounet.network.cpu_kernels.checkpoint", lambda function, *inputs, **_: function(*inputs)
            )
        network.zero_grad()
        torch.manual_seed(1)
        network(image).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_prediction_and_training_see_the_same_network_in_either_order_of_memory() -> None:
    network = tiny().eval()
    image = torch.randn(1, 1, 70, 90)
    with torch.no_grad():
        predicted = network(image)
    assert (predicted - network(image)).norm() < 1e-4 * predicted.norm()


@pytest.mark.parametrize("patch", [(64, 64), (8, 40), (64, 256)])
def test_a_unet_is_monais_dynunet_whose_stored_tensors_it_loads(patch: tuple[int, int]) -> None:
    from monai.networks.nets import DynUNet

    config = plan_unet(patch, in_channels=3, num_classes=4)
    config = replace(config, widths=tuple(8 + 2 * depth for depth in range(len(config.widths))))
    heads = len(config.widths) - 3
    theirs = DynUNet(
        2, 3, 4, kernel_size=[3] * len(config.widths), strides=config.strides, upsample_kernel_size=config.strides[1:],
        filters=config.widths, norm_name=("INSTANCE", {"affine": True}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}), deep_supervision=heads > 0,
        deep_supr_num=max(heads, 1), trans_bias=True,
    )  # fmt: skip
    for twice in ("input_block", "downsamples", "bottleneck", "upsamples", "deep_supervision_heads"):
        theirs._modules.pop(twice, None)  # as stored: skip_layers has all of them nested
    ours = UNet(config)
    ours.load_state_dict(rename_monai_keys({f"core.{name}": tensor for name, tensor in theirs.state_dict().items()}))
    # a checkpoint numbers the optimizer's moments by the order of the parameters
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))

    image = torch.randn(2, 3, *patch)
    logits = theirs.output_block(theirs.skip_layers(image))
    lower = theirs.heads if heads > 0 else []
    found = ours.train().scales(image)
    for scale, other in zip(found, [logits, *lower], strict=True):
        assert torch.allclose(scale, other, rtol=0, atol=1e-5 * (other.max() - other.min()).item())
    assert torch.equal(ours.eval()(image), found[0])
