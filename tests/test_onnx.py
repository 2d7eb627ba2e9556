"""ONNX files: that they compute what PyTorch does, without it, at any size, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import dinounet
from datasets import write_png_dataset
from dinounet.backbones.frozen import build_network
from dinounet.backbones.weights import fill_backbone
from dinounet.bundle.export import write_bundle
from dinounet.bundle.exportable import Exportable, PlainOperators, resize
from dinounet.bundle.onnx import quantise, trace
from dinounet.bundle.verify import hash_file, read_exported
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, DataError, UserError, WeightsError
from dinounet.inference.postprocessing import OutputOptions
from dinounet.network.dinounet import DinoUNet
from dinounet.planning.data_plan import plan_data
from dinounet.schema.bundle import BundledNetwork, BundleRecord
from dinounet.schema.network import plan_unet
from dinounet.system import now, versions
from networks import planned, tiny_config

pytestmark = pytest.mark.slow

SIZES = ((1, 64, 64), (2, 96, 160), (3, 224, 64))
"""Images a batch, rows and columns."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures; bundles of a Dino U-Net, and of two U-Nets that predict together, as their random weights are; and
    both exported."""
    root = tmp_path_factory.mktemp("secret_folder")
    measured = plan_data(read_dataset(write_png_dataset(root / "pictures")), (64, 64))
    small = replace(measured, patch=(32, 48))
    torch.manual_seed(0)
    for name, data, configs in (
        ("dino", measured, [planned(num_classes=3, convolutions_per_stage=1)]),
        ("unet", small, [plan_unet((16, 16), in_channels=1, num_classes=3)] * 2),
    ):
        files, networks = [root / f"{name}_{index}.safetensors" for index in range(len(configs))], []
        for config, file in zip(configs, files, strict=True):
            network = build_network(config)
            backbone = fill_backbone(network.backbone, config.backbone, "random") if name == "dino" else None
            save_file(network.state_dict(), file)
            networks.append(BundledNetwork(config, hash_file(file), backbone, None))
        record = BundleRecord(data, tuple(networks), None, now(), versions(), licence="mit")
        write_bundle(root / name, record, files)
        with pytest.MonkeyPatch.context() as patch:
            if name == "unet":
                patch.setattr("dinounet.bundle.onnx.LARGEST_FILE", 1000)
            dinounet.export(root / name, root / f"{name}_onnx", format="onnx")
    return root


def sign(folder: Path) -> None:
    """Write the files' hashes into the record anew."""
    content = json.loads((folder / "onnx.json").read_text())
    for file, name in zip(content["files"], sorted(path.name for path in folder.glob("*.onnx")), strict=True):
        file["sha256"] = hash_file(folder / name)
        file["data_sha256"] = hash_file(folder / f"{name}.data") if (folder / f"{name}.data").exists() else None
    (folder / "onnx.json").write_text(json.dumps(content))


@pytest.fixture
def exported(place: Path, tmp_path: Path) -> Path:
    """The U-Nets' folder, to be spoiled."""
    return Path(shutil.copytree(place / "unet_onnx", tmp_path / "exported"))


@pytest.fixture
def image(place: Path) -> Path:
    return place / "pictures" / "imagesTs" / "case_6_0000.png"


def segment(model: Path, image: Path, **options: Any) -> Any:
    precision = {} if "onnx" in model.name else {"precision": "fp32"}
    predictor = dinounet.load(model, device="cpu", **options, **precision)
    return predictor.segment_volume(predictor.read([image]), OutputOptions(probabilities=True, uncertainty=True))


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_pytorchs_at_any_size(place: Path, size: tuple[int, ...]) -> None:
    ours, theirs = dinounet.load(place / "dino_onnx").engine, dinounet.load(place / "dino", precision="fp32").engine
    tiles = np.random.default_rng(0).standard_normal((size[0], 1, *size[1:])).astype(np.float32)
    (reference,) = (theirs.forward(network, theirs.to_device(tiles)).numpy() for network in theirs.networks)
    assert np.abs(reference).max() > 0.5
    session = onnxruntime.InferenceSession(place / "dino_onnx" / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"image": tiles})[0], reference, atol=1e-3)
    odd = tiles[..., :-7, :-9]  # no multiples of anything
    (reference,) = (theirs.forward(network, theirs.to_device(odd)).numpy() for network in theirs.networks)
    np.testing.assert_allclose(ours.forward(ours.networks[0], odd), reference, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"tta": "full", "step": 0.7, "batch": 3}])
def test_masks_and_maps_are_those_of_pytorch(place: Path, image: Path, options: dict[str, Any]) -> None:
    for name in ("dino", "unet"):  # of which the latter is two that predict together
        ours, theirs = (segment(place / model, image, **options) for model in (f"{name}_onnx", name))
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        for part in ("probabilities", "entropy", "disagreement"):
            mine, other = getattr(ours, part), getattr(theirs, part)
            assert (mine is None) == (other is None)
            if mine is not None:
                np.testing.assert_allclose(mine.astype(float), other.astype(float), atol=2e-3)


def test_a_file_of_several_is_that_network_alone(place: Path, image: Path) -> None:
    """So that a mean over both, which is a softmax's each, is that of the folder."""
    each = [segment(place / "unet_onnx" / f"model_{fold}.onnx", image).probabilities for fold in (0, 1)]
    assert np.abs(each[0] - each[1]).max() > 0.01
    together = segment(place / "unet_onnx", image).probabilities
    np.testing.assert_allclose(np.mean(each, axis=0, dtype=float), together.astype(float), atol=2e-3)


def test_prediction_imports_no_pytorch_and_does_without(place: Path, image: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class Nothing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'timm', 'monai', 'onnx', 'onnxscript'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Nothing())\n"
        "from dinounet.cli.main import main; code = main(sys.argv[1:])\n"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'timm', 'monai', 'onnx')))"
    )
    for number, model in enumerate((place / "dino_onnx", place / "unet_onnx" / "model_0.onnx")):
        words = ["predict", model, image.parent, "-o", tmp_path / f"out_{number}", "--tta", "flip", "--probabilities"]
        words += ["--uncertainty", "--overlay"]
        done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out_0" / "prediction.json").read_text())
    assert record["models"][0]["sha256"] == hash_file(place / "dino_onnx" / "model.onnx")
    assert record["versions"]["onnxruntime"] == onnxruntime.__version__
    assert {path.name for path in (tmp_path / "out_0").iterdir()} >= {"case_6.png", "overlays", "uncertainty"}
    theirs = segment(place / "dino", image, tta="flip").labels[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out_0" / "case_6.png")), theirs)


def test_an_installation_without_extras_does_all_but_what_needs_pytorch() -> None:
    program = Path(__file__).parent / "base_install.py"
    done = subprocess.run([sys.executable, program, "--block"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def operators(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from operators(attribute.g)


def require_plain(path: Path) -> Counter[str]:
    """Nothing but operators of ONNX, none that bakes or branches, and no place of this machine."""
    model = onnx.load(path)
    onnx.checker.check_model(path, full_check=True)
    assert {one.domain for one in model.opset_import} == {""}
    assert not model.functions
    assert {node.domain for node in operators(model.graph)} == {""}
    found = Counter(node.op_type for node in operators(model.graph))
    unwelcome = {"If", "Loop", "Scan", "Tile", "NonZero", "SequenceAt", "Unique", "Compress"}
    assert not unwelcome & found.keys()
    for one in (*model.graph.input, *model.graph.output):
        batch, channels, height, width = one.type.tensor_type.shape.dim
        assert [side.dim_param for side in (batch, height, width)] == ["batch", "height", "width"]
        assert channels.dim_value
    assert not [word for word in (b"/dinounet/", b"site-packages", b"secret_folder") if word in path.read_bytes()]
    return found


def test_the_graph_is_of_plain_operators_and_bakes_no_size(place: Path) -> None:
    found = require_plain(place / "dino_onnx" / "model.onnx")
    assert found["Attention"] == 4  # a block each
    require_plain(place / "unet_onnx" / "model_0.onnx")


class Taps(torch.nn.Module):
    """What a backbone reads in an image of three channels."""

    def __init__(self, network: DinoUNet) -> None:
        super().__init__()
        self.network = Exportable(network).network

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        with PlainOperators():
            return self.network.backbone(image)


@pytest.mark.parametrize(
    ("backbone", "arguments", "scale"),
    [
        ("dinov2_vits14", {"embed_dim": 64, "depth": 4, "num_heads": 4}, 1.5),
        ("dinov3_convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)}, 1.0),
    ],
)
def test_other_backbones_are_traced_without_a_size(backbone: str, arguments: dict[str, Any], scale: float) -> None:
    """Positions of DINOv2 are resized; a pyramid has four grids."""
    torch.manual_seed(0)
    taps = None if "convnext" in backbone else (0, 1, 2, 3)
    config = tiny_config(backbone=backbone, backbone_args=arguments, taps=taps, backbone_scale=scale)
    network = build_network(config).eval()
    traced = trace(Taps(network), 3, 32, 32).module()
    for batch, *sides in SIZES:
        image = torch.randn(batch, 3, *sides)
        with torch.inference_mode():
            for ours, theirs in zip(traced(image), network.backbone(image), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(28, 42), (9, 40), (64, 33), (37, 37)])
def test_resizing_by_products_is_pytorchs_with_antialias(mode: str, size: tuple[int, int]) -> None:
    map = torch.randn(2, 3, 37, 37)
    expected = F.interpolate(map, size=size, mode=mode, antialias=True)
    torch.testing.assert_close(resize(map, size, mode), expected, atol=1e-5, rtol=0)


def test_a_backbone_that_is_held_in_fewer_bytes_is_exported_with_what_it_computes_with() -> None:
    network = build_network(tiny_config(backbone_precision="int8")).eval()
    for layer in network.backbone.vit.modules():
        if hasattr(layer, "fill"):
            layer.fill(torch.randn(layer.out_features, layer.in_features) / 8)
    image = torch.randn(1, 1, 64, 96)
    with torch.inference_mode():
        expected = network(image)
        found = Exportable(network)(image)
    assert not [layer for layer in network.backbone.vit.modules() if hasattr(layer, "fill")]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_record_is_a_bundles_and_tells_no_names(place: Path) -> None:
    record = read_exported(place / "unet_onnx")
    text = (place / "unet_onnx" / "onnx.json").read_text()
    assert not [word for word in ("case_", "secret_folder", str(place)) if word in text]
    assert record.bundle.data.channels[0].normalisation == "zscore"
    assert record.bundle.data.labels.classes == {"background": 0, "disc": 1, "square": 2}
    assert json.loads((place / "unet" / "model.json").read_text()) == json.loads(text)["bundle"]


@pytest.mark.parametrize("int8", ["weights", "static"])
def test_eight_bits_are_smaller_and_near(place: Path, image: Path, int8: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "dino_onnx", tmp_path / "dino_onnx"))
    images = sorted((place / "pictures" / "imagesTr").iterdir()) if int8 == "static" else []
    quantise(folder, read_exported(folder), int8, [[path] for path in images])
    found = require_plain(folder / "model.onnx")
    assert found["MatMulInteger" if int8 == "weights" else "DequantizeLinear"] > 20
    assert (folder / "model.onnx").stat().st_size < (place / "dino_onnx" / "model.onnx").stat().st_size
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "onnx.json"]
    sign(folder)
    pixels = dinounet.load(place / "dino_onnx").predict_proba(image).astype(float)
    differs = np.abs(dinounet.load(folder).predict_proba(image) - pixels).mean()
    assert 0 < differs < 0.05


def test_weights_that_are_too_large_for_the_file_lie_beside_it(exported: Path, image: Path) -> None:
    files = [f"model_{index}.onnx{end}" for index in (0, 1) for end in ("", ".data")]
    assert sorted(path.name for path in exported.iterdir()) == [*files, "onnx.json"]
    assert (exported / files[0]).stat().st_size < (exported / files[1]).stat().st_size
    record = read_exported(exported)
    assert [(one.sha256, one.data_sha256) for one in record.files] == [
        (hash_file(exported / name), hash_file(exported / data)) for name, data in (files[:2], files[2:])
    ]
    expected = dinounet.load(exported).predict_proba(image).astype(float)
    quantise(exported, record, "static", [[image]])
    assert sorted(path.name for path in exported.iterdir()) == [*files, "onnx.json"]
    sign(exported)
    differs = np.abs(dinounet.load(exported).predict_proba(image) - expected).mean()
    assert 0 < differs < 0.05


def put(value: object, *keys: str | int) -> Callable[[Path], None]:
    """Changes one value of the record."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "onnx.json").read_text())
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / "onnx.json").write_text(json.dumps(content))

    return change


def replaced(content: bytes) -> Callable[[Path], None]:
    """Another file in a network's place, and its hash in the record."""

    def change(folder: Path) -> None:
        (folder / "model_0.onnx").write_bytes(content)
        put(hash_file(folder / "model_0.onnx"), "files", 0, "sha256")(folder)

    return change


def other_network(weights: str = "") -> bytes:
    """An ONNX file of somebody else, whose weights may lie in another file."""
    numbers = onnx.numpy_helper.from_array(np.zeros((4,), np.float32), "w")
    if weights:
        numbers.ClearField("raw_data")
        numbers.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", weights), ("offset", "0"), ("length", "16")):
            numbers.external_data.add(key=key, value=value)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [numbers]
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def twice_located() -> bytes:
    """An entry with two values, of which the last one holds."""
    own, value = other_network("model_0.onnx.data"), b"\x12\x11model_0.onnx.data"
    entry = b"\n\x08location" + value
    start = own.index(b"\x6a" + bytes([len(entry)]) + entry)
    return own[:start] + b"\x6a" + bytes([len(entry) + 4]) + entry + b"\x12\x02ab" + own[start + 2 + len(entry) :]


def flip(folder: Path) -> None:
    content = bytearray((folder / "model_0.onnx").read_bytes())
    content[-1000] ^= 1
    (folder / "model_0.onnx").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, r"model_0.onnx is damaged or was changed: its sha256 is \w{12}, not \w{12} as onnx\.json says"),
        (lambda f: (f / "model_1.onnx").write_bytes(b""), "model_1.onnx is damaged or was changed"),
        (lambda f: (f / "model_1.onnx").unlink(), r"lacks model_1\.onnx; copy the folder again"),
        (lambda f: (f / "model_0.onnx.data").unlink(), r"lacks model_0\.onnx\.data; copy the folder again"),
        (lambda f: (f / "model_1.onnx.data").write_bytes(b"0"), r"model_1\.onnx\.data is damaged or was changed"),
        (replaced(b"no ONNX"), r"model_0\.onnx can't be loaded by onnxruntime .*; export it again"),
        (replaced(other_network()), r"is not the network that the record beside it describes"),
        (replaced(b""), r"model_0\.onnx can't be loaded by onnxruntime"),
        (replaced(other_network("../secret")), r"model_0\.onnx refers to weights in a file outside its own; export"),
        (replaced(other_network("/etc/hostname")), r"model_0\.onnx refers to weights in a file outside its own"),
        (replaced(other_network("link")), r"model_0\.onnx refers to weights in a file outside its own"),
        (replaced(twice_located()), r"model_0\.onnx refers to weights in a file outside its own"),
        (replaced(other_network("model_0.onnx.data")), "is not the network that the record beside it describes"),
        (put(2, "format"), r"onnx\.json has the format 2, of a newer dinounet than this one, which reads 1"),
        (put(9, "bundle", "format"), r"onnx\.json: bundle has the format 9, of a newer dinounet"),
        (put({}, "surprise"), "unknown key 'surprise'"),
        (put([10**9, 32], "multiple"), r"multiple is \[1000000000, 32\]; it must be two numbers from 1 to 8192"),
        (put([], "files"), "files names 0 files for 2 networks"),
        (put(float("nan"), "calibration_images"), "calibration_images is nan; it must be a whole number"),
        (put([10**9, 64], "bundle", "data", "patch"), r"\.patch is 1000000000; at most 8192 is read"),
        (lambda f: (f / "onnx.json").write_text("[" * 100_000), "is not JSON"),
        (lambda f: (f / "onnx.json").write_text('{"format": 1}'), "lacks bundle; add it"),
        (lambda f: (f / "onnx.json").write_text("[1]"), r"onnx\.json holds \[1\]; it must be an object"),
        (
            lambda f: (f / "onnx.json").write_text(" " * (1 << 24) + "{}"),
            "has more than 16,777,216 bytes, too many",
        ),
    ],
)
def test_damaged_and_hostile_folders_are_one_sentence(
    change: Callable[[Path], None],
    message: str,
    exported: Path,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    (exported / "link").symlink_to(tmp_path / "secret")
    change(exported)
    with pytest.raises(UserError, match=message):
        dinounet.load(exported)
    assert main(["predict", str(exported), str(image), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_without_its_record_is_told(exported: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copy(exported / "model_0.onnx", tmp_path / "model.onnx"))
    with pytest.raises(DataError, match=r"model\.onnx has no onnx\.json beside it, which describes how images become"):
        dinounet.load(alone)
    with pytest.raises(DataError, match=r"some/where\.onnx does not exist"):
        dinounet.load("some/where.onnx")
    shutil.copy(alone, exported / "renamed.onnx")
    with pytest.raises(WeightsError, match=r"renamed\.onnx is none of the networks of onnx\.json beside it, which are"):
        dinounet.load(exported / "renamed.onnx")


def test_what_does_not_go_with_onnx_is_told(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, bundle = place / "unet_onnx", place / "unet"
    for options, message in (
        ({"weights": "hub"}, "holds the backbone already; leave --weights out"),
        ({"offload": True}, "holds the backbone already; leave --offload out"),
        ({"precision": "bf16"}, "computes in fp32; leave --precision bf16 out"),
        ({"device": "mps"}, "this onnxruntime does not support mps; choose --device cpu"),
        ({"revision": "v1"}, "is not on the Hub"),
    ):
        with pytest.raises(ConfigError, match=message):
            dinounet.load(folder, **options)
    with pytest.raises(ConfigError, match="one is ONNX and the other is not; export both"):
        dinounet.load([bundle, folder])
    for model, options, message in (
        (bundle, {"int8": "weights"}, "--int8 is for ONNX files; add --format onnx"),
        (bundle, {"weights": "hub"}, "--weights is for ONNX files; add --format onnx"),
        (bundle, {"format": "onnx", "int8": "static"}, "--int8 static and --calibrate IMAGES belong together"),
        (bundle, {"format": "onnx", "calibrate": [place]}, "--int8 static and --calibrate IMAGES belong together"),
        (bundle, {"format": "onnx", "int8": "static", "calibrate": ["nowhere"]}, "nowhere does not exist"),
        (folder, {"format": "onnx"}, "is ONNX already; give the run or the bundle that it was made of"),
        (bundle, {"format": "onnx", "licence": "mit"}, "has a licence already; leave --licence out"),
        ([bundle, place / "dino"], {"format": "onnx"}, "can't predict together: their plans differ in data.patch"),
    ):
        with pytest.raises(UserError, match=message):
            dinounet.export(model, tmp_path / "out", **options)
    with pytest.raises(UserError, match="exists already; give the ONNX files another name"):
        dinounet.export(bundle, folder, format="onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r'an export as ONNX needs onnxscript: pip install "dinounet\[export\]"'):
        dinounet.export(bundle, tmp_path / "out", format="onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="an ONNX file needs onnxruntime: pip install onnxruntime"):
        dinounet.load(folder)
    assert not (tmp_path / "out").exists()


def test_a_scale_that_rounds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at a scale of 1\.3, by which the sides of its grid are rounded"):
        Exportable(build_network(tiny_config(backbone_scale=1.3)))


def test_info_tells_of_a_folder_and_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in (place / "unet_onnx", place / "unet_onnx" / "model_1.onnx"):
        assert main(["info", str(what)]) == 0
        told = capsys.readouterr().out
        assert "model_0.onnx, model_1.onnx, opset 23" in told
        assert "disc = 1" in told


def test_openvino_computes_the_same_from_the_same_file(place: Path) -> None:
    session = onnxruntime.InferenceSession(place / "dino_onnx" / "model.onnx")
    compiled = openvino.Core().compile_model(
        place / "dino_onnx" / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for batch, *sides in SIZES:
        tiles = np.random.default_rng(0).standard_normal((batch, 1, *sides)).astype(np.float32)
        np.testing.assert_allclose(compiled(tiles)[0], session.run(None, {"image": tiles})[0], atol=1e-3)


@pytest.mark.parametrize("size", [(256, 320), (64, 1024)])
def test_openvino_left_to_itself_is_as_near_as_pytorchs_bf16(place: Path, size: tuple[int, int]) -> None:
    """It computes in bf16 where the processor does, also what follows from sizes: of that nothing may be a float."""
    compiled = openvino.Core().compile_model(place / "dino_onnx" / "model.onnx", "CPU", {"INFERENCE_NUM_THREADS": 1})
    tiles = np.random.default_rng(0).standard_normal((1, 1, size[0] // 8, size[1] // 8)).astype(np.float32)
    tiles = np.kron(tiles, np.ones((8, 8), np.float32))
    exact, rounded = (dinounet.load(place / "dino", device="cpu", precision=name).engine for name in ("fp32", "bf16"))
    expected, theirs = (one.forward(one.networks[0], one.to_device(tiles)).numpy() for one in (exact, rounded))
    off = np.abs(compiled(tiles)[0] - expected).mean()
    assert off < 1.4 * np.abs(theirs - expected).mean()


def test_the_example_of_the_documentation_runs_and_finds_the_same(
    place: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text()
    example = next(part.partition("```")[0] for part in text.split("```python\n")[1:] if "InferenceSession" in part)
    shutil.copytree(place / "dino_onnx", tmp_path / "lesions-onnx")
    Image.open(image).crop((0, 0, 60, 50)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    np.testing.assert_array_equal(names["mask"], dinounet.load("lesions-onnx").predict("image.png"))
