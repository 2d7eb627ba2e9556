"""What was asked is what is done: an argument acts, or it is refused in a sentence, from the shell and in Python."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dinounet
from datasets import write_png_dataset
from dinounet.cli.main import VERBS, function_of, main
from dinounet.data.dataset import read_dataset
from dinounet.errors import ConfigError, UserError
from dinounet.io import write_json
from dinounet.planning.data_plan import plan_data
from dinounet.schema.plan import Plan, read_plan
from dinounet.schema.recipe import Recipe
from networks import planned
from untrained import write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of another backbone, scale, recipe and patch than the defaults, and a run that was interrupted."""
    root = tmp_path_factory.mktemp("asked")
    data = plan_data(read_dataset(write_png_dataset(root / "pictures", cases=1, size=(40, 48))), (32, 32))
    recipe = Recipe(base="paper", steps=7, batch_size=1, optimizer="sgd", ema_decay=0.5, schedule="poly")
    network = planned(num_classes=3, backbone="dinov3_vitb16", backbone_scale=2.0)
    write_json(root / "plan.json", Plan(data, network, recipe))
    run = write_run(root / "run", data)
    record = json.loads((run / "run.json").read_text())
    record["plan"] |= {
        key: value for key, value in json.loads((root / "plan.json").read_text()).items() if key != "data"
    }
    record["backbone"] |= {"name": "dinov3_vitb16", "weights": "/w.safetensors"}
    record |= {
        "status": "interrupted",
        "precision": "bf16",
        "deterministic": True,
        "offload": True,
        "micro_batch_size": 3,
    }
    (run / "run.json").write_text(json.dumps(record))
    return root


AT_DEFAULT: list[tuple[list[str], dict[str, Any], str, str]] = [
    (["--backbone", "dinov3_vits16"], {"backbone": "dinov3_vits16"}, "backbone (dinov3_vitb16)", "(dinov3_vits16)"),
    (["--backbone-scale", "1"], {"backbone_scale": 1.0}, "backbone_scale (2.0)", "--backbone-scale asks for (1.0)"),
    (["--recipe", "default"], {"recipe": "default"}, "recipe (paper)", "(default)"),
    (["--steps", "1000"], {"changes": {"steps": 1000}}, "steps (7)", "(1000)"),
    (["--batch-size", "2"], {"changes": {"batch_size": 2}}, "batch_size (1)", "(2)"),
    (["--ema-decay", "0"], {"changes": {"ema_decay": 0.0}}, "ema_decay (0.5)", "(0.0)"),
    (["--schedule", "cosine"], {"changes": {"schedule": "cosine"}}, "schedule (poly)", "(cosine)"),
    (["--network", "unet"], {"network": "unet"}, "network (dinounet)", "(unet)"),
    (["--patch", "64", "64"], {"patch": (64, 64)}, "patch (32, 32)", "(64, 64)"),
    (["--backbone-precision", "bf16"], {"backbone_precision": "bf16"}, "backbone_precision (fp32)", "(bf16)"),
    (["--taps", "0", "1", "2", "4"], {"taps": (0, 1, 2, 4)}, "taps (0, 1, 2, 3)", "(0, 1, 2, 4)"),
]
OF_A_RUN: list[tuple[list[str], dict[str, Any], str, str]] = [
    (["--weights", "hub"], {"weights": "hub"}, "weights (/w.safetensors)", "(hub)"),
    (["--precision", "fp32"], {"precision": "fp32"}, "precision (bf16)", "(fp32)"),
    (["--no-deterministic"], {"deterministic": False}, "deterministic (True)", "(False)"),
    (["--fold", "0"], {"fold": 0}, "fold (all)", "(0)"),
]


def refused(words: list[str], arguments: Any, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """From the shell and in Python, in one sentence that is the same."""
    verb, positional, named = arguments
    function = getattr(dinounet, verb)
    capsys.readouterr()
    assert main(words) == 2
    shell = capsys.readouterr().err
    assert all(part in shell for part in told) and shell.count("\n") == 1, shell
    with pytest.raises(UserError) as stop:
        function(*positional, **named)
    assert all(part in str(stop.value) for part in told), str(stop.value)


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "named", "held", "asked"), AT_DEFAULT)
def test_an_argument_beside_a_plan_counts_also_at_its_default(
    place: Path, tmp_path: Path, capsys: Any, flags: list[str], named: dict[str, Any], held: str, asked: str
) -> None:
    words = ["train", "nowhere", "-o", str(tmp_path / "run"), "--plan", str(place / "plan.json"), *flags]
    call = ("train", ["nowhere", tmp_path / "run"], {"plan": place / "plan.json", **named})
    refused(words, call, [f"plan.json has another {held}", asked, "change it there, or leave that option out"], capsys)


@pytest.mark.parametrize(("flags", "named", "held", "asked"), AT_DEFAULT + OF_A_RUN)
def test_an_argument_beside_resume_counts_also_at_its_default(
    place: Path, capsys: Any, flags: list[str], named: dict[str, Any], held: str, asked: str
) -> None:
    words = ["train", "nowhere", "-o", str(place / "run"), "--resume", *flags]
    call = ("train", ["nowhere", place / "run"], {"resume": True, **named})
    refused(words, call, [f"was started with another {held}", asked, "resume it without that option"], capsys)


def test_a_finished_run_without_its_report_is_no_other_run_either(place: Path, tmp_path: Path, capsys: Any) -> None:
    import shutil

    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    (run / "run.json").write_text((run / "run.json").read_text().replace('"interrupted"', '"finished"'))
    words = ["train", "nowhere", "-o", str(run), "--resume", "--backbone", "dinov3_vits16"]
    call = ("train", ["nowhere", run], {"resume": True, "backbone": "dinov3_vits16"})
    refused(words, call, ["was started with another backbone (dinov3_vitb16)"], capsys)


def test_what_agrees_is_no_contradiction(place: Path, tmp_path: Path, capsys: Any) -> None:
    """It goes on to the dataset, which isn't there."""
    same = {
        "backbone": "dinov3_vitb16",
        "backbone_scale": 2,
        "recipe": "paper",
        "network": "dinounet",
        "patch": [32, 32],
    }
    same |= {"changes": {"steps": 7, "momentum": 0.99}, "backbone_precision": "auto", "taps": [0, 1, 2, 3]}
    with pytest.raises(UserError, match="nowhere does not exist"):
        dinounet.train("nowhere", tmp_path / "run", plan=place / "plan.json", **same)
    of_run = {"precision": "bf16", "deterministic": True, "fold": "all", "weights": "/w.safetensors", "group": "auto"}
    with pytest.raises(UserError, match="nowhere does not exist"):
        dinounet.train("nowhere", place / "run", resume=True, plan=place / "plan.json", **same, **of_run)
    words = ["--backbone", "dinov3_vitb16", "--recipe", "paper", "--steps", "7", "--momentum", "0.99"]
    assert main(["train", "nowhere", "-o", str(place / "run"), "--resume", *words]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


CONTRADICTING: list[tuple[list[str], str, list[Any], dict[str, Any], str]] = [
    (["train", "d", "--network", "unet", "--backbone", "dinov3_vits16"], "train", ["d"],
     {"network": "unet", "backbone": "dinov3_vits16"}, "a U-Net has no backbone; leave --backbone out"),
    (["train", "d", "--network", "unet", "--weights", "hub"], "train", ["d"],
     {"network": "unet", "weights": "hub"}, "a U-Net has no backbone; leave --weights out"),
    (["train", "d", "--network", "unet", "--offload", "--backbone-scale", "1"], "train", ["d"],
     {"network": "unet", "offload": True, "backbone_scale": 1}, "leave --backbone-scale and --offload out"),
    (["train", "d", "--network", "unet", "--no-deep-supervision"], "train", ["d"],
     {"network": "unet", "changes": {"deep_supervision": False}}, "a U-Net always has deep supervision"),
    (["plan", "d", "--network", "unet", "--taps", "0", "1", "2", "3"], "plan", ["d"],
     {"network": "unet", "taps": (0, 1, 2, 3)}, "a U-Net has no backbone; leave --taps out"),
    (["plan", "d", "--network", "unet", "--deep-supervision"], "plan", ["d"],
     {"network": "unet", "changes": {"deep_supervision": True}}, "a U-Net always has deep supervision"),
    (["train", "d", "--steps", "10", "--epochs", "2"], "train", ["d"],
     {"changes": {"steps": 10, "epochs": 2}}, "recipe has both steps and epochs; choose one length"),
    (["plan", "d", "--steps", "1000", "--max-minutes", "2"], "plan", ["d"],
     {"changes": {"steps": 1000, "max_minutes": 2}}, "recipe has both steps and max_minutes; choose one length"),
    (["train", "d", "--momentum", "0.9"], "train", ["d"],
     {"changes": {"momentum": 0.9}}, "recipe.momentum is sgd's, and the optimizer is adamw"),
    (["train", "d", "--feature-variants", "2"], "train", ["d"],
     {"changes": {"feature_variants": 2}}, "recipe.feature_variants is of cached features"),
    (["info", "RUN", "--backbone-scale", "1"], "info", ["RUN"],
     {"backbone_scale": 1}, "--backbone-scale is for the list of backbones; a run has its own"),
    (["export", "RUN", "-o", "out", "--weights", "hub"], "export", ["RUN", "out"],
     {"weights": "hub"}, "--weights is for ONNX files"),
    (["export", "RUN", "-o", "out", "--int8", "static"], "export", ["RUN", "out"],
     {"int8": "static"}, "--int8 static and --calibrate IMAGES belong together"),
    (["export", "RUN", "-o", "out", "--format", "nnunet", "--licence", "mit"], "export", ["RUN", "out"],
     {"format": "nnunet", "licence": "mit"}, "no place for --licence"),
    (["report", "p", "t", "-o", "r.html", "--images", "i", "--pictures", "-1"], "report", ["p", "t", "r.html"],
     {"images": "i", "pictures": -1}, "pictures is -1; give 0 or more"),
    (["predict", "RUN", "i.png", "-o", "out", "--step", "0"], "predict", ["RUN", ["i.png"], "out"],
     {"step": 0}, "step is 0"),
    (["predict", "RUN", "i.png", "-o", "out", "--postprocessing", "none.json"], "predict", ["RUN", "i.png", "out"],
     {"postprocessing": Path("none.json")}, "none.json does not exist"),
    (["demo", "-o", "DEMO", "--resume", "--weights", "hub"], "demo", [],
     {"output": "DEMO", "resume": True, "weights": "hub"}, "was started with another weights (/w.safetensors) than"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "verb", "positional", "named", "told"), CONTRADICTING)
def test_what_contradicts_or_would_be_passed_over_is_refused(
    place: Path, tmp_path: Path, monkeypatch: Any, capsys: Any,
    words: list[str], verb: str, positional: list[Any], named: dict[str, Any], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    demo = tmp_path / "demo"
    (demo / "Dataset152_ICBM").mkdir(parents=True)
    (demo / "run").symlink_to(place / "run")
    Path("p").mkdir()
    Path("p", "metrics.json").write_text("{}")
    Path("d").mkdir()
    meant = {"RUN": str(place / "run"), "DEMO": str(demo)}
    if verb == "report":  # whose metrics come first
        pytest.importorskip("matplotlib")
        monkeypatch.setattr("dinounet.evaluation.means.read_metrics", lambda _: None)
    words = [meant.get(word, word) for word in words]
    call = [meant.get(one, one) if isinstance(one, str) else one for one in positional]
    refused(words, (verb, call, {key: meant.get(str(value), value) for key, value in named.items()}), [told], capsys)


WRONG: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("train", ["d"], {"fold": "1"}, "--fold is '1'; it must be a whole number or all or None"),
    ("train", ["d"], {"fold": 1.0}, "--fold is 1.0; it must be a whole number"),
    ("train", ["d"], {"patch": 64}, "--patch is 64; it must be 2 items, each a whole number or None"),
    ("train", ["d"], {"patch": (64,)}, "--patch is (64,); it must be 2 items"),
    ("train", ["d"], {"patch": ("64", "64")}, "--patch is ('64', '64'); it must be 2 items"),
    ("train", ["d"], {"device": "gpu"}, "--device is 'gpu'; it must be auto or"),
    ("train", ["d"], {"recipe": "papr"}, "--recipe is 'papr'; it must be a Recipe or default or paper"),
    ("train", ["d"], {"micro_batch_size": True}, "--micro-batch-size is True; it must be a whole number or auto"),
    ("train", ["d"], {"offload": "yes"}, "--offload is 'yes'; it must be True or False"),
    ("train", ["d"], {"resume": 1}, "--resume is 1; it must be True or False"),
    ("train", ["d"], {"track": ["wandb", "x"]}, "--track is ['wandb', 'x']; it must be a list of which each is tensor"),
    ("train", ["d"], {"checkpoint_minutes": "1"}, "--checkpoint-minutes is '1'; it must be a number"),
    ("train", ["d"], {"checkpoint_minutes": -1}, "--checkpoint-minutes is -1"),
    ("train", ["d"], {"changes": {"stepz": 3}}, "a recipe has no 'stepz'; did you mean 'steps'?"),
    ("train", ["d"], {"changes": {"stepz": 3}, "resume": True}, "a recipe has no 'stepz'; did you mean 'steps'?"),
    ("train", ["d"], {"changes": {"steps": "3"}}, "recipe.steps is '3'; it must be a whole number"),
    ("train", ["d"], {"changes": {"ema_decay": None}}, "recipe.ema_decay is None; it must be a number"),
    ("train", ["d"], {"changes": ["steps"]}, "--changes is ['steps']; it must be a dict"),
    ("train", ["d"], {"steps": 3}, "train has no argument 'steps'; fields of the recipe are given as changes={'steps'"),
    ("train", ["d"], {"lables": "a=0"}, "train has no argument 'lables'; did you mean 'labels'?"),
    ("train", [7.5], {}, "--data is 7.5; it must be a path"),
    ("train", ["d"], {"recipe": Recipe(), "changes": {"steps": 3}}, "changes (steps) are of a named recipe"),
    ("train", ["d"], {"recipe": Recipe(), "changes": {"steps": 3}, "resume": True}, "changes (steps) are of a named"),
    ("train", ["d"], {"recipe": Recipe(), "changes": {"stepz": 3}}, "a recipe has no 'stepz'"),
    ("plan", ["d"], {"recipe": Recipe(), "changes": {"steps": 3}}, "changes (steps) are of a named recipe"),
    ("plan", ["d"], {"recipe": Recipe(), "changes": {"stepz": 3}}, "changes (stepz) are of a named recipe"),
    ("plan", ["d"], {"changes": {"stepz": 3}}, "a recipe has no 'stepz'; did you mean 'steps'?"),
    ("plan", ["d"], {"backbone_scale": "2"}, "--backbone-scale is '2'; it must be a number"),
    ("predict", ["r", 5, "o"], {}, "--inputs is 5; it must be a list of which each is a path"),
    ("predict", ["r", np.zeros((4, 4)), "o"], {}, "; it must be a list of which each is a path"),
    ("predict", ["r", ["a.png"], "o"], {"tta": "flipp"}, "--tta is 'flipp'; it must be none or flip or full"),
    ("predict", ["r", ["a.png"], "o"], {"batch": "4"}, "--batch is '4'; it must be a whole number or auto"),
    ("predict", ["r", ["a.png"], "o"], {"axes": "HWC"}, "predict has no argument 'axes'; it has run, inputs, output"),
    ("load", ["r"], {"step": "0.5"}, "--step is '0.5'; it must be a number"),
    ("load", ["r"], {"precision": "fp8"}, "--precision is 'fp8'; it must be auto or"),
    ("load", ["r"], {"revison": "v1"}, "load has no argument 'revison'; did you mean 'revision'?"),
    ("load", [[]], {}, "no run is named"),
    ("evaluate", ["p", "t"], {"tolerance": "2"}, "--tolerance is '2'; it must be a number"),
    ("compare", [["a", "b"], "t"], {"tolerance": None}, "--tolerance is None; it must be a number"),
    ("compare", ["a", "t"], {}, "nothing to compare a"),
    ("report", ["p", "t", "r.html"], {"images": "i", "pictures": 2.5}, "--pictures is 2.5; it must be a whole number"),
    ("export", ["r", "o"], {"format": "zip"}, "--format is 'zip'; it must be bundle or onnx or nnunet"),
    ("info", [], {"json": "yes"}, "--json is 'yes'; it must be True or False"),
    ("push", ["b", None], {}, "--repository is None; it must be text"),
    ("relabel", ["m", "o"], {"labels": {"a": 0}}, "--labels is {'a': 0}; it must be text"),
    ("demo", [], {"output": 3.5}, "--output is 3.5; it must be a path"),
    ("import_", ["c", "o"], {"licence": 1.5}, "--licence is 1.5; it must be text or None"),
    ("Recipe", [], {"steps": "3"}, "recipe.steps is '3'; it must be a whole number"),
    ("Recipe", [], {"learning_rate": "1e-3"}, "recipe.learning_rate is '1e-3'; it must be a number"),
    ("Recipe", [], {"schedule": "linear"}, "recipe.schedule is 'linear'; it must be cosine or poly"),
    ("network_config", [], {"in_channels": "3"}, "network.in_channels is '3'; it must be a whole number"),
    ("network_config", [], {"backbone_scale": "2"}, "network.backbone_scale is '2'; it must be a number"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "positional", "named", "told"), WRONG)
def test_python_refuses_what_the_shell_would(
    tmp_path: Path, monkeypatch: Any, name: str, positional: list[Any], named: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as stop:
        getattr(dinounet, name)(*positional, **named)
    assert told in str(stop.value) and "\n" not in str(stop.value)
    assert not list(tmp_path.iterdir())


def test_what_python_users_give_instead_is_understood(tmp_path: Path, monkeypatch: Any) -> None:
    """Strings for paths, one path for a list of them, NumPy's numbers."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run does not exist; give the folder"):
        dinounet.predict("run", "images", "out", step=np.float32(0.5), batch=np.int64(2), also="other")
    with pytest.raises(UserError, match="data does not exist"):
        dinounet.train("data", fold=np.int64(0), patch=np.array([32, 32]).tolist(), track="tensorboard")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_help_tells_what_holds_where_a_flag_is_left_out(verb: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    told = capsys.readouterr().out
    assert "UNSET" not in told
    shown = " ".join(told.split())
    assert "None" not in shown
    for parameter in inspect.signature(function_of(verb)).parameters.values():
        if parameter.default is not inspect.Parameter.empty and parameter.name != "changes":
            assert f"--{parameter.name.replace('_', '-')}" in shown or parameter.kind is parameter.POSITIONAL_ONLY
    if verb in ("train", "plan"):
        assert "(default: dinov3_vits16)" in shown and "(default: 1.0)" in shown


def test_a_plan_of_a_unet_takes_nothing_of_a_backbone(place: Path, tmp_path: Path) -> None:
    from dinounet.schema.network import plan_unet

    plan = json.loads((place / "plan.json").read_text())
    data = read_plan(place / "plan.json").data
    assert plan["network"]["backbone"] == "dinov3_vitb16"
    write_json(tmp_path / "unet.json", Plan(data, plan_unet((32, 32), in_channels=1, num_classes=3), Recipe(steps=1)))
    for named in ({"weights": "hub"}, {"offload": True}):
        with pytest.raises(ConfigError, match=f"a U-Net has no backbone; leave --{next(iter(named))} out"):
            dinounet.train("nowhere", tmp_path / "run", plan=tmp_path / "unet.json", **named)
    with pytest.raises(ConfigError, match=r"has another backbone \(none\) than --backbone asks for \(dinov3_vits16\)"):
        dinounet.train("nowhere", tmp_path / "run", plan=tmp_path / "unet.json", backbone="dinov3_vits16")
