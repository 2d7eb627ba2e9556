"""Bundles to and from the Hub, by a stub of it on this machine that keeps commits and branches."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import dinounet
from datasets import write_png_dataset
from dinounet.cli.main import main
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, DataError, UserError, WeightsError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan
from dinounet.schema.recipe import Recipe
from networks import planned
from test_weights import offline, point_to

pytestmark = pytest.mark.slow

NAME = "ada/lesions"
TOKEN = "hf_that_may_write"


class Store:
    """What the stub's only repository holds."""

    def __init__(self) -> None:
        self.private: bool | None = None
        self.branches: dict[str, str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []

    def commit(self, branch: str, changes: dict[str, bytes | None]) -> str:
        files = {**self.files(branch), **changes}
        held = {name: content for name, content in files.items() if content is not None}
        name = hashlib.sha1(repr(sorted(held.items())).encode()).hexdigest()
        self.commits[name], self.branches[branch] = held, name
        return name

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits.get(self.branches.get(revision, revision), {})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The Hub, with an empty cache and a user who may write."""
    store = Store()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            store.asked.append(path)
            if found := re.fullmatch(rf"/{NAME}/resolve/([^/]+)/(.+)", path):
                revision, name = found.groups()
                if not store.branches:
                    return self.answer(401, code="RepoNotFound")
                if revision not in store.branches and revision not in store.commits:
                    return self.answer(404, code="RevisionNotFound")
                if name not in store.files(revision):
                    return self.answer(404, code="EntryNotFound")
                return self.answer(200, store.files(revision)[name], store.branches.get(revision, revision))
            if found := re.fullmatch(rf"/api/models/{NAME}/tree/(.+)", path):
                files = store.files(found[1])
                return self.answer(200, [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in files])
            return self.answer(401, code="RepoNotFound")

        def do_PUT(self) -> None:
            store.large[self.path.rsplit("/", 1)[1]] = self.body()
            self.answer(200, {})

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self.body()
            here = f"http://127.0.0.1:{self.server.server_address[1]}"
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if (told := self.headers.get("Authorization")) != f"Bearer {TOKEN}":
                return self.answer(403 if told else 401, {"error": "no"})
            if path == "/api/repos/create":
                asked = json.loads(body)
                store.private = asked.get("private") or asked.get("visibility") == "private"
                store.branches.setdefault("main", store.commit("main", {}))
                return self.answer(200, {"url": f"{here}/{NAME}"})
            if found := re.fullmatch(rf"/api/models/{NAME}/(branch|preupload|commit)/(.+)", path):
                what, branch = found.groups()
                if what == "branch":
                    store.branches[branch] = store.branches["main"]
                    return self.answer(200, {})
                if what == "preupload":
                    modes = [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith("safetensors") else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                    return self.answer(200, {"files": modes})
                changes: dict[str, bytes | None] = {}
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        changes[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        changes[value["path"]] = store.large[value["oid"]]
                    elif line["key"] == "deletedFile":
                        changes[value["path"]] = None
                name = store.commit(branch, changes)
                return self.answer(200, {"commitUrl": f"{here}/{NAME}/commit/{name}", "commitOid": name})
            if path == f"/{NAME}.git/info/lfs/objects/batch":
                objects = [
                    {**one, "actions": {"upload": {"href": f"{here}/upload/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                return self.answer(200, {"transfer": "basic", "objects": objects})
            return self.answer(404)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(self, status: int, content: Any = b"", commit: str = "", code: str = "") -> None:
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if commit:
                self.send_header("X-Repo-Commit", commit)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)  # where nothing has the names that the Hub has
    yield store
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and their bundle."""
    root = tmp_path_factory.mktemp("hub")
    data = write_png_dataset(root / "pictures")
    plan = Plan(plan_data(read_dataset(data), (64, 64)), planned(num_classes=3), Recipe(steps=1, augmentation="none"))
    write_json(root / "plan.json", plan)
    for fold in (0, 1):
        dinounet.train(
            data,
            root / "runs" / str(fold),
            plan=root / "plan.json",
            weights="random",
            device="cpu",
            fold=fold,
            report=False,
        )  # fmt: skip
    dinounet.export(root / "runs" / "0", root / "bundle")
    return root


@pytest.fixture
def bundle(place: Path) -> Path:
    return place / "bundle"


@pytest.fixture
def image(place: Path) -> Path:
    return place / "pictures" / "imagesTs" / "case_6_0000.png"


def predict_proba(model: object, image: Path, **more: Any) -> np.ndarray:
    return dinounet.load(model, device="cpu", **more).predict_proba(image)


def test_what_is_pushed_predicts_elsewhere_as_it_does_here(
    store: Store, bundle: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "backbone.safetensors").write_bytes(b"somebody's weights")
    assert main(["push", str(bundle), NAME, "--private"]) == 0
    (bundle / "backbone.safetensors").unlink()
    commit = store.branches["main"]
    assert store.private is True
    told = capsys.readouterr().out
    assert commit in told and f"to predict: dinounet predict hf://{NAME} IMAGES -o MASKS" in told
    assert sorted(store.files("main")) == ["README.md", "model.json", "model.safetensors"]
    for name in ("model.json", "model.safetensors"):
        assert store.files("main")[name] == (bundle / name).read_bytes()
    assert f'dinounet.load("hf://{NAME}")' in store.files("main")["README.md"].decode()

    np.testing.assert_array_equal(predict_proba(f"hf://{NAME}", image), predict_proba(bundle, image))
    assert main(["predict", f"hf://{NAME}", str(image), "-o", str(tmp_path / "masks")]) == 0
    made = json.loads((tmp_path / "masks" / "prediction.json").read_text())
    assert made["models"][0]["run"] == f"hf://{NAME}@{commit}"
    assert main(["info", f"hf://{NAME}"]) == 0
    assert "pictures" in capsys.readouterr().out


def test_a_revision_stays_what_it_was(store: Store, place: Path, image: Path, tmp_path: Path) -> None:
    dinounet.push(place / "bundle", NAME)
    first = store.branches["main"]
    other = dinounet.export(place / "runs" / "1", tmp_path / "other")
    dinounet.push(other, NAME)
    dinounet.push(other, NAME, revision="trial")
    old, new = predict_proba(place / "bundle", image), predict_proba(other, image)
    assert not np.array_equal(old, new)
    np.testing.assert_array_equal(predict_proba(f"hf://{NAME}", image), new)
    np.testing.assert_array_equal(predict_proba(f"hf://{NAME}@{first}", image), old)
    np.testing.assert_array_equal(predict_proba(f"hf://{NAME}", image, revision=first), old)
    np.testing.assert_array_equal(predict_proba(f"hf://{NAME}", image, revision="trial"), new)
    store.asked.clear()
    predict_proba(f"hf://{NAME}", image, revision=first)  # a commit's content never changes
    assert store.asked == []
    with pytest.raises(ConfigError, match="has no revision v9; name a branch, a tag or a commit of it"):
        dinounet.load(f"hf://{NAME}@v9")
    with pytest.raises(ConfigError, match=f"names the revision {first}, and the other one given is trial; give one"):
        dinounet.load(f"hf://{NAME}@{first}", revision="trial")


def test_fewer_networks_leave_no_file_of_the_former_ones(store: Store, place: Path, tmp_path: Path) -> None:
    dinounet.push(dinounet.export(place / "runs", tmp_path / "both"), NAME)
    assert {"model_0.safetensors", "model_1.safetensors"} < set(store.files("main"))
    dinounet.push(place / "bundle", NAME)
    assert sorted(store.files("main")) == ["README.md", "model.json", "model.safetensors"]


def test_without_a_connection_the_cache_serves_and_that_is_told(
    store: Store, bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dinounet.push(bundle, NAME)
    before = predict_proba(f"hf://{NAME}", image)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        point_to("http://127.0.0.1:9", patch)
        np.testing.assert_array_equal(predict_proba(f"hf://{NAME}", image), before)
    assert f"no connection to the Hub: {NAME} is as it was downloaded" in capsys.readouterr().out
    offline(monkeypatch, {})
    np.testing.assert_array_equal(predict_proba(f"hf://{NAME}", image), before)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    with pytest.raises(DataError, match=r"lesions cannot be downloaded from .*HF_HUB_OFFLINE is set and"):
        dinounet.load(f"hf://{NAME}")


def test_a_folder_is_a_folder_and_the_hub_is_asked_by_its_name_alone(
    store: Store, place: Path, image: Path, tmp_path: Path
) -> None:
    dinounet.push(place / "bundle", f"hf://{NAME}")
    there = predict_proba(f"hf://{NAME}", image)
    here = dinounet.export(place / "runs" / "1", tmp_path / NAME)
    store.asked.clear()
    np.testing.assert_array_equal(predict_proba(NAME, image), predict_proba(here, image))
    assert store.asked == []
    np.testing.assert_array_equal(predict_proba(f"hf://{NAME}", image), there)
    with pytest.raises(
        ConfigError, match="a revision is given, but ada/lesions is not on the Hub; leave the revision out"
    ):
        dinounet.load(NAME, revision="main")


def test_what_is_wrong_at_the_hub_is_told(store: Store, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"the Hugging Face Hub has no visible repository {NAME}"):
        dinounet.load(f"hf://{NAME}")
    store.commit("main", {"README.md": b"something else"})
    with pytest.raises(DataError, match=r"holds no model\.json, so it is no bundle of dinounet's; name another"):
        dinounet.load(f"hf://{NAME}")
    changed = bytearray((bundle / "model.safetensors").read_bytes())
    changed[-1] ^= 1
    store.commit("main", {"model.json": (bundle / "model.json").read_bytes(), "model.safetensors": bytes(changed)})
    with pytest.raises(WeightsError, match="is damaged or was changed"):
        dinounet.load(f"hf://{NAME}")


def test_what_can_not_be_pushed_is_told(
    store: Store, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lesions", "ada/le sions", "ada/lesions/x", "../lesions", ""):
        with pytest.raises(UserError, match="the name on the Hub must be user/name, of letters"):
            dinounet.push(bundle, name)
    with pytest.raises(DataError, match=r"model\.json does not exist; it should be the record of a bundle"):
        dinounet.push(tmp_path / "nowhere", NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
    with pytest.raises(UserError, match="you may not write there; check the name, and that your token may write"):
        dinounet.push(bundle, NAME)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="doesn't know who you are; log in by `hf auth login`, or set HF_TOKEN"):
        dinounet.push(bundle, NAME)
    with monkeypatch.context() as patch:
        point_to("http://127.0.0.1:9", patch)
        with pytest.raises(UserError, match=r"there is no connection to http://127\.0\.0\.1:9"):
            dinounet.push(bundle, NAME)
    offline(monkeypatch, {})
    with pytest.raises(UserError, match="can't be pushed to ada/lesions: HF_HUB_OFFLINE is set; unset it"):
        dinounet.push(bundle, NAME)
    assert not store.commits
