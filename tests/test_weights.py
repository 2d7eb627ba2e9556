"""Where the backbone's weights come from, by a stub of the Hub on this machine, and how they are known again."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dinounet.errors import WeightsError
from dinounet.network.backbone import FrozenBackbone, build_backbone
from dinounet.network.weights import fill_backbone, find_weights, hash_backbone
from networks import tiny_config

NAME = "dinov3_vits16"
REPOSITORY = "timm/vit_small_patch16_dinov3_qkvb.lvd1689m"


@pytest.fixture
def backbone() -> FrozenBackbone:
    return build_backbone(tiny_config())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A Hub that serves the files of this dictionary, by path, and whose cache is empty."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            if content is not None:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield files
    server.shutdown()
    server.server_close()


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def weights_file(backbone: FrozenBackbone, path: Path) -> Path:
    torch.manual_seed(0)
    save_file({key: torch.randn_like(tensor) for key, tensor in backbone.vit.state_dict().items()}, path)
    return path


def test_the_hubs_weights_are_downloaded_once_and_then_come_from_the_cache(
    hub: dict[str, bytes], backbone: FrozenBackbone, tmp_path: Path
) -> None:
    path = weights_file(backbone, tmp_path / "w.safetensors")
    hub[f"/{REPOSITORY}/resolve/main/model.safetensors"] = path.read_bytes()
    record = fill_backbone(backbone, NAME, "hub")
    assert record.weights == "hub"
    assert record.licence.startswith("DINOv3 License")
    hub.clear()
    again = build_backbone(tiny_config())
    assert fill_backbone(again, NAME, "hub").sha256 == record.sha256
    assert fill_backbone(again, NAME, str(path)).sha256 == record.sha256


def test_a_hub_without_the_file_and_no_hub_at_all_are_answered(
    hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = rf".*download model\.safetensors from https://huggingface\.co/{REPOSITORY}"
    with pytest.raises(WeightsError, match=r"Face Hub \(.*404 Not Found" + remedy):
        find_weights(NAME, "hub")
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(WeightsError, match=r"Face Hub \(ConnectError" + remedy):
        find_weights(NAME, "hub")


def test_a_truncated_file_is_answered(backbone: FrozenBackbone, tmp_path: Path) -> None:
    path = weights_file(backbone, tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"w\.safetensors can't be read as safetensors .*download it again"):
        fill_backbone(backbone, NAME, str(path))


def test_random_weights_are_the_seeds_and_no_block_passes_its_input_through(backbone: FrozenBackbone) -> None:
    first = fill_backbone(backbone, NAME, "random", seed=3)
    image = torch.randn(1, 3, 64, 64)
    taps = backbone(image)
    torch.manual_seed(99)
    other = build_backbone(tiny_config())
    assert fill_backbone(other, NAME, "random", seed=3) == first
    assert fill_backbone(other, NAME, "random", seed=4).sha256 != first.sha256
    for before, after in pairwise(taps):
        assert (after - before).abs().mean() > 1e-3  # timm's initial layer scale would leave 1e-5


def test_random_weights_are_the_same_numbers_everywhere(backbone: FrozenBackbone) -> None:
    """The first numbers of NumPy's frozen generator, by hand: uniform(-b, b) = (2 u - 1) b."""
    fill_backbone(backbone, NAME, "random", seed=0)
    first = min(name for name, _ in backbone.vit.named_parameters() if "weight" in name and "norm" not in name)
    by_hand = (2 * 0.5488135039273248 - 1) * 0.02 * 3**0.5  # what MT19937 gives first for the seed 0
    assert backbone.vit.get_parameter(first).flatten()[0].item() == pytest.approx(by_hand, rel=1e-6)


def test_the_hash_notices_any_number(backbone: FrozenBackbone) -> None:
    before = hash_backbone(backbone)
    backbone.vit.rope.periods[1] += 1e-3
    periods = hash_backbone(backbone)
    backbone.vit.blocks[3].mlp.fc2.bias[5] += 1e-3
    assert len({before, periods, hash_backbone(backbone)}) == 3
