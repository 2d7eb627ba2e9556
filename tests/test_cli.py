"""The command line: help, exit codes and messages, as a user meets them in a shell."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinounet
from datasets import write_png_dataset
from dinounet.cli.flags import parse_call
from dinounet.cli.main import VERBS, function_of, main
from dinounet.schema.plan import read_plan


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dinounet", *words], capture_output=True, text=True, check=False)


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from dinounet.cli.main import main; main(['--help']); main(['--version']); "
        "heavy = {'torch', 'timm', 'monai', 'numpy', 'rich'} & sys.modules.keys(); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)
    assert done.stdout.splitlines()[-1] == f"dinounet {dinounet.__version__}"


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_comes_without_torch_and_is_a_python_function(verb: str) -> None:
    code = f"import sys; from dinounet.cli.main import main; main(['{verb}', '--help'])\n"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False)
    assert "usage: dinounet " + verb in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "dinounet.cli.main" in imported
    assert not imported & {"torch", "timm", "monai", "SimpleITK", "lightning_fabric"}
    assert getattr(dinounet, "import_" if verb == "import" else verb) is function_of(verb)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "dinounet: there is no verb 'trian'; did you mean train?"),
        (
            ["train", "nowhere", "-o", "run", "--weights", "random"],
            "dinounet: nowhere does not exist; give the folder",
        ),
        (
            ["predict", "nowhere", "image.png", "-o", "out"],
            "dinounet: nowhere does not exist; give the folder that `dinounet train` or",
        ),
        (["evaluate", "a", "b"], "dinounet: a is not a folder; give one that holds a mask for each case"),
        (["info", "nowhere"], "dinounet: nowhere does not exist; give the folder"),
        (["plan"], "dinounet: the following arguments are required: DATA; see dinounet plan --help"),
        (["plan", "x", "--patc", "3"], "--patc 3; did you mean --patch?; see dinounet plan --help"),
        (["plan", "x", "--patch", "3"], "dinounet: argument --patch: expected 2 arguments; see dinounet plan --help"),
        (["plan", "x", "--patch", "3", "4.5"], "dinounet: --patch is '4.5'; it must be a whole number"),
        (["train", "x", "--recipe", "papr"], "dinounet: --recipe is 'papr'; it must be default or paper"),
        (["train", "x", "--fold", "first"], "dinounet: --fold is 'first'; it must be a whole number or all"),
        (["train", "x", "--steps", "many"], "dinounet: --steps is 'many'; it must be a whole number"),
        (["info", "x", "y"], "dinounet: unrecognized arguments: y; see dinounet info --help"),
        (["train", "x", "-o", "y", "--steps", "0"], "dinounet: recipe.steps is 0; it must be at least 1"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_room_has_the_name_of_a_function() -> None:
    """Else importing the room would put it in the function's place."""
    assert {room.name for room in pkgutil.iter_modules(dinounet.__path__)}.isdisjoint(dinounet.__all__)


def test_words_and_flags_come_in_any_order_and_lists_in_parts() -> None:
    words = "run a.png --also x --batch=4 --also y z -o out --no-offload b.png --step 0.25"
    call = parse_call(dinounet.predict, "predict", words.split())
    assert call.args == (Path("run"), [Path("a.png"), Path("b.png")])
    also = [Path("x"), Path("y"), Path("z")]
    named = {"also": also, "batch": 4, "output": Path("out"), "offload": False, "step": 0.25}
    assert call.keywords == named
    call = parse_call(dinounet.train, "train", ["data", "--steps", "3", "--fold", "all", "--no-deep-supervision"])
    assert call.keywords == {"fold": "all", "changes": {"steps": 3, "deep_supervision": False}}


def test_our_own_failure_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dinounet.schema.run.read_run", lambda _: 1 / 0)
    assert main(["info", str(tmp_path)]) == 1
    assert "internal error (ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["info", str(tmp_path), "--debug"])


def test_info_lists_the_backbones() -> None:
    done = run("info")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("dinov3_vits16", "dinov3_vit7b16"))


@pytest.mark.slow
def test_the_whole_way_by_hand_on_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, trained, out = write_png_dataset(tmp_path / "my data"), tmp_path / "run", tmp_path / "masks"
    size = ["--patch", "64", "64", "--steps", "2", "--precision", "fp32"]
    assert main(["train", str(data), "-o", str(trained), "--weights", "random", *size]) == 0
    assert main(["predict", str(trained), str(data / "imagesTs"), "-o", str(out)]) == 0
    assert main(["evaluate", str(out), str(data / "labelsTs")]) == 0
    page = tmp_path / "report.html"
    words = ["--images", str(data / "imagesTs"), "--run", str(trained), "-o", str(page)]
    assert main(["report", str(out), str(data / "labelsTs"), *words]) == 0
    assert main(["info", str(trained)]) == 0
    told = capsys.readouterr().out
    events = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert {"training", "trained", "predicting", "predicted", "evaluated", "report"} <= {e["event"] for e in events}
    metrics = json.loads((out / "metrics.json").read_text())
    assert [case["case"] for case in metrics["cases"]] == ["case_6", "case_7"]
    assert metrics["cases"][0]["unit"] == "px"
    assert "finished, 2 steps of 2 steps" in told
    assert page.stat().st_size > 10_000


@pytest.mark.slow
def test_plain_pictures_with_masks_of_0_and_255(tmp_path: Path) -> None:
    from test_data import write_pairs

    data = write_pairs(tmp_path / "pictures", "images/*.jpg", "masks/*_mask.png")
    size = ["--patch", "64", "64", "--steps", "2", "--batch-size", "1", "--precision", "fp32", "--device", "cpu"]
    assert main(["train", str(data), "-o", str(tmp_path / "run"), "--weights", "random", *size]) == 0
    assert main(["predict", str(tmp_path / "run"), str(data / "images"), "-o", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [f"IMG_000{i}.png" for i in range(4)]
    assert main(["evaluate", str(tmp_path / "out"), str(data / "masks"), "-o", str(tmp_path / "metrics.json")]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["labels"]["classes"] == {"background": 0, "foreground": 255}
    assert len(metrics["cases"]) == 4


@pytest.mark.slow
def test_plan_tells_what_a_dataset_holds_and_writes_what_train_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_png_dataset(tmp_path / "pictures")
    assert main(["plan", str(data), "-o", str(tmp_path / "plan.json"), "--patch", "64", "32", "--steps", "7"]) == 0
    told = capsys.readouterr().out
    for text in ("pictures", "case_0: case_0_0000.png with case_0.png", "label disc = 1", "64 x 32", "4 + 2, 5 + 1"):
        assert text in told
    plan = read_plan(tmp_path / "plan.json")
    assert (plan.data.patch, plan.recipe.steps, plan.data.fingerprint.cases) == ((64, 32), 7, 6)

    (data / "labelsTr" / "case_1.png").write_text("hello")
    (data / "imagesTr" / "case_2_0000.png").write_text("hello")
    assert main(["plan", str(data), "-o", str(tmp_path / "other.json")]) == 2
    told = capsys.readouterr().err
    assert all(text in told for text in ("case_1.png can't be read", "case_2_0000.png can't be read"))
    assert not (tmp_path / "other.json").exists()


def test_masks_without_names_of_classes_are_asked_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / folder / "case.png")
    words = ["evaluate", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(words) == 2
    assert "says which classes the masks hold; pass --labels" in capsys.readouterr().err
    assert main([*words, "--labels", "x"]) == 2
    assert "dinounet: --labels is 'x'; write it as background=0,lesion=1" in capsys.readouterr().err
