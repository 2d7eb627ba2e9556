"""Nothing leaves the machine by a typo: only hf://user/name is looked up on the Hugging Face Hub."""

import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest

import dinounet
from dinounet.bundle.hub import is_on_hub
from dinounet.cli.main import main
from dinounet.errors import UserError
from test_weights import point_to

TYPO = "runs/patient_miller"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Every host that somebody looked up or connected to; there is a Hub whose address is known, and no cache."""
    seen: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        seen.append(arguments)
        raise OSError("no connection from here")

    for where in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, where, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    point_to("http://hub.invalid", monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)
    Path("image.png").write_bytes(b"")
    yield seen


@pytest.mark.parametrize("name", [TYPO, f"{TYPO}@v1"])
@pytest.mark.parametrize(
    "words",
    [
        ["predict", "NAME", "image.png", "-o", "out"],
        ["predict", "image.png", "image.png", "-o", "out", "--also", "NAME"],
        ["info", "NAME"],
        ["export", "NAME", "-o", "out"],
        ["export", "NAME", "-o", "out", "--format", "nnunet"],
    ],
)
def test_a_mistyped_path_is_a_missing_folder(
    asked: list[Any], name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if "--also" in words:
        Path("run").mkdir()
        words = [word.replace("image.png", "run", 1) if place == 1 else word for place, word in enumerate(words)]
    assert main([word.replace("NAME", name) for word in words]) == 2
    told = capsys.readouterr().err
    assert asked == []
    if "--also" not in words:  # where the folder without a run is told first
        assert f"{name} does not exist; give the folder that `dinounet train` or `dinounet export` wrote" in told
        assert f"or hf://{name} for a bundle on the Hugging Face Hub" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["train", TYPO, "--weights", "random"],
        ["plan", TYPO],
        ["evaluate", TYPO, TYPO, "--labels", "background=0,a=1"],
        ["report", TYPO, TYPO, "-o", "r.html", "--images", TYPO, "--run", TYPO],
        ["push", TYPO, "ada/lesions"],
        ["import", TYPO, "-o", "out"],
        ["info", "timm:hf_hub:ada/lesions"],
        ["info", "timm:hf-hub:ada/lesions"],
        ["info", f"hub:{TYPO}"],
        ["predict", "https://huggingface.co/ada/lesions", "image.png", "-o", "out"],
    ],
)
def test_no_verb_asks_anybody_about_a_path(asked: list[Any], words: list[str]) -> None:
    assert main(words) == 2
    assert asked == []


@pytest.mark.parametrize("given", [TYPO, Path(TYPO), [TYPO], [Path(TYPO), "other/name"]])
def test_nor_does_python(asked: list[Any], given: Any) -> None:
    with pytest.raises(
        UserError, match=r"runs/patient_miller does not exist; .* hf://runs/patient_miller for a bundle"
    ):
        dinounet.load(given)
    with pytest.raises(
        UserError, match="a revision is given, but runs/patient_miller is not on the Hub; leave the revision out"
    ):
        dinounet.load(given, revision="v1")
    assert asked == []


def test_weights_that_are_not_there_are_a_missing_file(asked: list[Any]) -> None:
    from dinounet.backbones.weights import find_weights

    with pytest.raises(UserError, match="ada/weights does not exist; download the weights of"):
        find_weights("dinov3_vits16", "ada/weights")
    assert asked == []


@pytest.mark.parametrize("given", ["hf://ada/lesions", "hf://ada/lesions@v1", Path("hf://ada/lesions")])
def test_the_hub_is_asked_by_its_name(asked: list[Any], given: Any) -> None:
    """Of a path's two slashes one is left."""
    with pytest.raises(UserError, match="ada/lesions cannot be downloaded from the Hugging Face Hub"):
        dinounet.load(given)
    assert any("hub.invalid" in str(one) for one in asked)
    before = len(asked)
    assert main(["info", str(given)]) == 2 and len(asked) > before
    before = len(asked)
    assert main(["predict", str(given), "image.png", "-o", "out"]) == 2 and len(asked) > before


@pytest.mark.parametrize("name", ["hf://", "hf://ada", "hf://ada/lesions/x", "hf://ada/le sions", "hf:///x"])
def test_what_is_no_name_on_the_hub_is_told_without_asking(asked: list[Any], name: str) -> None:
    with pytest.raises(UserError, match="names no bundle on the Hugging Face Hub; write hf://user/name"):
        dinounet.load(name)
    assert asked == []


def test_paths_of_every_system_keep_the_name() -> None:
    assert is_on_hub(str(PurePosixPath("hf://ada/lesions"))) and is_on_hub(str(PureWindowsPath("hf://ada/lesions")))
    assert not any(map(is_on_hub, ("ada/lesions", "./hf:/ada", "hf", "hf/ada", "/hf:/ada/lesions")))
