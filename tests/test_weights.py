"""Where the backbone's weights come from, by a stub of the Hub on this machine, and how they are known again."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from dinounet.backbones.frozen import FrozenBackbone, build_backbone
from dinounet.backbones.weights import TensorFiles, fill_backbone, find_weights, hash_backbone
from dinounet.errors import WeightsError
from networks import tiny_config

NAME = "dinov3_vits16"
BROKEN_OFF = 100
"""Bytes that a download from a path that begins so lacks."""

REPOSITORY = "timm/vit_small_patch16_dinov3_qkvb.lvd1689m"
FOLDER = f"/{REPOSITORY}/resolve/main"


@pytest.fixture
def backbone() -> FrozenBackbone:
    return build_backbone(tiny_config())


Answer = bytes | int | str
"""What the stub of the Hub answers for a path: content, an error's status, or the path of the file's store."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Answer]]:
    """A Hub that serves the files of this dictionary, by path, and whose cache is empty."""
    files: dict[str, Answer] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            answer = files.get(self.path, 404)
            content = answer if isinstance(answer, bytes) else b"elsewhere"
            self.send_response(answer if isinstance(answer, int) else 302 if isinstance(answer, str) else 200)
            if answer == 404 and REPOSITORY in self.path:
                self.send_header("X-Error-Code", "EntryNotFound")
            if answer == 403 and REPOSITORY in self.path:
                self.send_header("X-Error-Code", "GatedRepo")
            if isinstance(answer, str):
                self.send_header("Location", f"http://localhost:{self.server.server_address[1]}{answer}")
            if not isinstance(answer, int):
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            content = files.get(self.path)
            if isinstance(content, bytes):
                self.wfile.write(content[: -BROKEN_OFF if self.path.startswith("/broken") else None])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
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
    hub: dict[str, Answer], backbone: FrozenBackbone, tmp_path: Path
) -> None:
    path = weights_file(backbone, tmp_path / "w.safetensors")
    hub[f"{FOLDER}/model.safetensors"] = path.read_bytes()
    record = fill_backbone(backbone, NAME, "hub")
    assert record.weights == "hub"
    assert record.licence.startswith("DINOv3 License")
    hub.clear()
    again = build_backbone(tiny_config())
    assert fill_backbone(again, NAME, "hub").sha256 == record.sha256
    assert fill_backbone(again, NAME, str(path)).sha256 == record.sha256


def test_weights_in_several_files_are_downloaded_with_their_index(
    hub: dict[str, Answer], backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(weights_file(backbone, tmp_path / "w.safetensors"))
    whole = fill_backbone(build_backbone(tiny_config()), NAME, str(tmp_path / "w.safetensors"))
    names = {key: f"model-{i % 3}.safetensors" for i, key in enumerate(state)}
    for shard in set(names.values()):
        hub[f"{FOLDER}/{shard}"] = save({key: state[key] for key in state if names[key] == shard})
    hub[f"{FOLDER}/model.safetensors.index.json"] = json.dumps({"weight_map": names}).encode()
    assert fill_backbone(backbone, NAME, "hub").sha256 == whole.sha256
    hub.clear()
    offline(monkeypatch, hub)
    assert fill_backbone(build_backbone(tiny_config()), NAME, "hub").sha256 == whole.sha256  # from the cache


def no_connection(monkeypatch: pytest.MonkeyPatch, _: dict[str, Answer]) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)


def full_disk(monkeypatch: pytest.MonkeyPatch, hub: dict[str, Answer]) -> None:
    def write(*_: object, **__: object) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"0")

    hub[f"{FOLDER}/model.safetensors"] = b"weights"
    monkeypatch.setattr("huggingface_hub.file_download.http_get", write)


def offline(monkeypatch: pytest.MonkeyPatch, _: dict[str, Answer]) -> None:
    from huggingface_hub import close_session

    close_session()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def answers(answer: Answer, **more: Answer) -> Callable[[pytest.MonkeyPatch, dict[str, Answer]], None]:
    def change(_: pytest.MonkeyPatch, hub: dict[str, Answer]) -> None:
        hub[f"{FOLDER}/model.safetensors"] = answer
        hub.update({f"/{path}": content for path, content in more.items()})

    return change


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (no_connection, r"there is no connection to http://127\.0\.0\.1:9 \(.*\); connect, or download"),
        (offline, r"HF_HUB_OFFLINE is set and the cache .*cache does not hold them; unset it, or download"),
        (answers(401), r"is not open to everybody, or no longer there \(401\); ask for access .* set HF_TOKEN, or"),
        (answers(403), r"is not open to everybody, or no longer there \(403\); ask for access .* set HF_TOKEN, or"),
        (answers("/store", store=403), r"the link to the file has expired or is refused \(403\); try again, or"),
        (answers(404), r"it answers .*404.*; try again later, or download"),
        (answers(500), r"it answers .*500.*; try again later, or download"),
        (full_disk, r"no space is left in .*cache, and they take 0\.086 GB; free some, or set HF_HOME to a folder"),
        (answers("/broken", broken=b"0" * 1000), r"the download broke off; try again, or download"),
    ],
)  # fmt: skip
def test_what_fails_at_the_hub_is_told_with_what_to_do(
    happens: Callable[[pytest.MonkeyPatch, dict[str, Answer]], None],
    told: str,
    hub: dict[str, Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own attempts
    happens(monkeypatch, hub)
    elsewhere = rf" model\.safetensors elsewhere from https://huggingface\.co/{REPOSITORY} .*by --weights FILE$"
    with pytest.raises(WeightsError, match=told + ".*" + elsewhere) as error:
        find_weights(NAME, "hub")
    assert "\n" not in str(error.value)
    assert "https://github.com/facebookresearch/dinov3" in str(error.value)


def test_offline_mode_uses_what_the_cache_holds(
    hub: dict[str, Answer], backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub[f"{FOLDER}/model.safetensors"] = weights_file(backbone, tmp_path / "w.safetensors").read_bytes()
    first = find_weights(NAME, "hub")
    offline(monkeypatch, hub)
    assert find_weights(NAME, "hub") == first


def test_a_model_without_weights_on_the_hub_is_told() -> None:
    with pytest.raises(WeightsError, match=r"there are no weights of timm:\S+ on the Hugging Face Hub; pass a file"):
        find_weights("timm:test_vit4", "hub")


ELSEWHERE = rf"download the weights of {NAME} from https://huggingface\.co/{REPOSITORY} .* by --weights$"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, rf"weights\.pth does not exist; {ELSEWHERE}"),
        (b"", r"not a file of weights, neither of safetensors nor of PyTorch: it begins with b''; download it again"),
        (b"<!DOCTYPE html><html>403", r"begins with b'<!DOCTYPE html><'; .*it may say what went wrong"),
        (b"version https://git-lfs.github.com/spec/v1", r"begins with b'version https://'"),
        (save({"a": torch.zeros(100)})[:-8], r"is damaged or incomplete \(.*\); download it again"),
        (save({"a": torch.zeros(100)})[:20], r"is damaged or incomplete \(.*\); download it again"),
        (b"PK\x03\x04" + bytes(100), r"is damaged or incomplete \(.*\); download it again"),
        (
            save({"a": torch.zeros(100)}),
            rf"does not fit {NAME} \(read as timm's: 66 missing, as .*1 unexpected, as a\)",
        ),
    ],
)
def test_a_file_that_is_none_of_weights_is_answered(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"  # what it is called does not matter
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        fill_backbone(build_backbone(tiny_config()), NAME, str(path))
    assert "\n" not in str(error.value)


def test_a_safetensors_file_may_begin_as_a_pickle_does(tmp_path: Path) -> None:
    """Its first byte is of its header's length, which may be 0x80, as a pickle's is."""
    begins = set()
    for more in range(256):
        path = tmp_path / f"{more}.safetensors"
        save_file({"a" * (1 + more): torch.ones(2)}, path)
        begins.add(path.read_bytes()[:1])
        assert TensorFiles(path).read(["a" * (1 + more)])["a" * (1 + more)].tolist() == [1, 1]
    assert b"\x80" in begins


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "sprung"))


@pytest.mark.parametrize("is_new", [True, False])
def test_a_pickle_is_not_run_and_one_of_other_things_is_answered(
    is_new: bool, backbone: FrozenBackbone, tmp_path: Path
) -> None:
    file, sprung = tmp_path / "w.pth", tmp_path / "sprung"
    torch.save({"a": Trap(sprung)}, file, _use_new_zipfile_serialization=is_new)
    with pytest.raises(WeightsError, match=r"holds more than tensors, which could run code and is not read; use"):
        fill_backbone(backbone, NAME, str(file))
    assert not sprung.exists()
    torch.save({"model": {"a": torch.zeros(1)}}, file, _use_new_zipfile_serialization=is_new)
    with pytest.raises(WeightsError, match=r"does not hold tensors by name; use the project's own file"):
        fill_backbone(backbone, NAME, str(file))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(WeightsError, match=r"is damaged or incomplete \(.*\); download it again"):
        fill_backbone(backbone, NAME, str(file))


def test_an_empty_folder_and_a_link_are_answered(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"holds no model\.safetensors and no .*index\.json; {ELSEWHERE}"):
        find_weights(NAME, str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"is the link https://x/w\.pth; download what it leads to and pass the file"
    ):
        find_weights(NAME, "https://x/w.pth")


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
