"""Every command and every Python example of README.md and docs/ is run, in its page's order, or named with a reason."""

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from safetensors.torch import load_file
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

import dinounet
import test_hub
from datasets import picture
from dinounet.backbones.frozen import build_backbone
from dinounet.backbones.registry import BackboneVariant, find_variant, network_config
from dinounet.backbones.weights import find_weights
from dinounet.cli.flags import parse_call
from dinounet.cli.main import VERBS, function_of, main
from dinounet.schema.network import NetworkConfig
from dinounet.schema.recipe import RECIPES
from test_data import write_pairs
from test_hub import store  # noqa: F401
from test_published import write as write_published
from test_weights import weights_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "make": "takes minutes, and installs things",
    "python3 -m venv": "makes an environment",
    "pip install": "installs things",
    "dinounet demo": "trains for minutes; tests/test_demonstration.py shortens it",
    "torchrun": "several processes and machines; tests/test_processes.py runs them",
    "srun": "wants a SLURM cluster; tests/test_processes.py sets its variables",
    "docker": "wants a container engine",
    "nnUNetv2_": "nnU-Net is in an environment of its own; tests/test_nnunet_*.py run in it",
    "export nnUNet_": "sets a shell's variables",
    "python benchmarks/": "takes minutes to hours, some of it on data that is not here",
}
"""Beginnings of commands that are only parsed, and why."""

PUBLISHED_SIZE = NetworkConfig.__post_init__
"""What the fixture `small` takes the place of."""

SEQUENCES = re.compile(r"&&|\||;|>")
"""What makes of a command more than words for a program."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Backbones of few channels, whose files the Hub seems to have, and recipes of two steps: pages say real names."""
    folder = tmp_path_factory.mktemp("weights")

    def shrink(config: NetworkConfig) -> None:
        if not config.backbone_args:
            stages = find_variant(config.backbone).stages
            few = {"dims": (16, 32, 64, 64), "depths": (1, 1, 1, 1)} if stages else {"embed_dim": 64, "num_heads": 4}
            sizes = {"backbone_args": few, "backbone_width": 64, "stem_width": 8, "rank": 16, "widths": (4, 8, 16, 32)}
            for name, value in sizes.items():
                object.__setattr__(config, name, value)
        PUBLISHED_SIZE(config)

    def download(variant: BackboneVariant) -> Path:
        path = folder / f"{variant.name.replace(':', ' ')}.safetensors"
        return path if path.exists() else weights_file(build_backbone(network_config(variant.name)), path)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(NetworkConfig, "__post_init__", shrink)
        patches.setattr("dinounet.backbones.weights.download", download)
        for name, recipe in RECIPES.items():
            patches.setitem(RECIPES, name, replace(recipe, steps=2, batch_size=1, augmentation="flip"))
        yield patches


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, small: pytest.MonkeyPatch) -> Path:
    """All that the pages' commands are given, by the names that they use."""
    root = tmp_path_factory.mktemp("stand_ins")
    small.chdir(root)
    write_pairs(root / "lesions", "images/*.png", "masks/*.png", label=1)
    write_pairs(root / "nerves", "images/*.png", "masks/*.png")
    for path in root.rglob("IMG_000?.png"):  # such numbers would be channels where a model has several
        path.rename(path.with_name("abcd"[int(path.stem[-1])] + ".png"))
    for path in (root / "nerves" / "masks").iterdir():  # 0, 128 and 255
        middle = np.asarray(Image.open(path)).copy()
        middle[:, 25:][middle[:, 25:] == 255] = 128
        Image.fromarray(middle).save(path)
    for index in range(4):
        image, mask = picture((40, 50), index)
        for folder, pixels in (("images", image.astype(np.int16) * 10 - 1000), ("masks", (mask > 0).astype(np.uint8))):
            path = root / "chests" / folder / f"{index}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(pixels[None]), str(path))
    shutil.copytree(root / "lesions", root / "DATA")
    for folder in ("images", "new_images", "training_images"):
        shutil.copytree(root / "lesions" / "images", root / folder)
    shutil.copytree(root / "lesions" / "masks", root / "true_masks")
    rows = [f"{path.stem},{'ada' if path.stem < 'c' else 'bob'}" for path in (root / "true_masks").iterdir()]
    (root / "patients.csv").write_text("\n".join(["case,group", *rows]) + "\n")
    for name in ("image", "scan"):
        sitk.WriteImage(sitk.ReadImage(str(root / "images" / "a.png")), str(root / f"{name}.nii.gz"))
    shutil.copy(root / "images" / "a.png", root / "image.png")
    torch.save(load_file(find_weights("dinov3_convnext_small", "hub")), root / "convnext.pth")

    run = dinounet.train("lesions", "runs/lesions", device="cpu", precision="fp32")
    assert dinounet.train("lesions", "runs/fold_0", plan=run / "plan.json", device="cpu", report=False)
    shutil.copytree(root / "runs" / "fold_0", root / "runs" / "fold_1")
    for copy in ("run", "run_0", "run_1", "runs/folds/0", "runs/folds/1"):
        shutil.copytree(root / "runs" / "fold_0", root / copy)
    dinounet.export("run", "DinoUNetTrainer__nnUNetPlans__2d", format="nnunet")
    for folder in ("other_masks", "masks_s", "masks_l"):
        dinounet.predict("run", ["images"], folder, device="cpu")
    return root


def commands_of(block: str) -> list[str]:
    """Its lines, those that end in a backslash joined with the next."""
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def outputs_of(document: Document) -> Iterator[str]:
    """Where its commands write to."""
    for example in document:
        yield from re.findall(r" (?:-o|--output) (\S+)", example.parsed)
        yield from (f"runs/{data}" for data in re.findall(r"dinounet train (\S+)(?!.* -o)", example.parsed))


def words_of(command: str) -> list[str]:
    """As a shell gives them to a program, patterns replaced by what fits."""
    words = shlex.split(command, comments=True)
    return [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else []) or [word]]


def parse(command: str) -> None:
    """Fail unless the program would understand the command, as far as that can be told without running it."""
    words = shlex.split(command, comments=True)
    starts = [place + 1 for place, word in enumerate(words[:-1]) if word.split(":")[0] == "dinounet"]
    verbs = [place for place in starts if words[place] in VERBS]
    for place in verbs:
        parse_call(function_of(words[place]), words[place], words[place + 1 :])
    assert verbs or (words[0] not in ("dinounet", "torchrun", "srun") and words[:2] != ["docker", "run"]), command
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    if words[:2] == ["pip", "install"]:
        extras = re.findall(r"\[([\w,]+)\]", command)
        assert {extra for some in extras for extra in some.split(",")} <= set(
            metadata("dinounet").get_all("Provides-Extra")
        )
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        parse_benchmark(words[1], [word for word in words[2:] if word != "&"])


def parse_benchmark(script: str, words: list[str]) -> None:
    class Understood(Exception):
        pass

    understand = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser) -> None:
        understand(parser)
        raise Understood

    with pytest.MonkeyPatch.context() as patches, pytest.raises(Understood):
        patches.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        patches.syspath_prepend(ROOT / "benchmarks")  # as for a script
        patches.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(ROOT / script), run_name="__main__")


def run_commands(example: Example) -> None:
    for command in commands_of(example.parsed):
        if command.startswith(tuple(NOT_RUN)):
            parse(command)
            continue
        words = words_of(command)
        assert words[0] == "dinounet" and not SEQUENCES.search(command.split(" #")[0]), (
            f"{command!r} is neither a command of dinounet nor listed in NOT_RUN"
        )
        assert main([*words[1:], "--debug"]) == 0, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_works(
    page: Path, stand_ins: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = Document.parse(
        str(page), CodeBlockParser("sh", evaluator=run_commands), CodeBlockParser("python", evaluator=PythonEvaluator())
    )
    if not list(document):
        return
    work = tmp_path / "work"
    shutil.copytree(stand_ins, work)
    if page.stem == "python":  # where nothing is too slow, and shapes are told
        monkeypatch.setattr(NetworkConfig, "__post_init__", PUBLISHED_SIZE)
    if page.stem == "onnx":  # of a U-Net, which takes seconds; tests/test_onnx.py exports the other network
        shutil.rmtree(work / "runs" / "lesions")
        dinounet.train(work / "lesions", work / "runs" / "lesions", network="unet", device="cpu", report=False)
    if "dinounet push" in document.text:  # to a Hub on this machine
        request.getfixturevalue("store")
        monkeypatch.setattr(test_hub, "NAME", "user/lesions")
    if "dinounet import" in document.text:
        write_published(work)
        for image in (work / "images").iterdir():  # of three channels, as the published network's
            Image.open(image).convert("RGB").save(image)
    for output in outputs_of(document):  # is not there before
        shutil.rmtree(work / output, ignore_errors=True)
    monkeypatch.chdir(work)
    document.namespace["array"] = np.zeros((40, 50), np.uint8)
    for example in document:
        example.evaluate()
    if page.stem == "python":
        check_checkpoints(document.namespace)


def check_checkpoints(left: dict[str, Any]) -> None:
    """That what the page's loops left holds what is trained, nothing of the backbone, and no other numbers."""
    trained = left["again"]
    names = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    norms = {name for name, _ in trained.named_buffers() if not name.startswith("backbone.")}
    for file in ("network.safetensors", "segmentation.safetensors"):
        assert load_file(file).keys() == names | norms
    held = torch.load("lightning.ckpt", weights_only=True)["state_dict"]
    assert held.keys() == {f"network.{name}" for name in names | norms}


def test_no_other_block_holds_commands() -> None:
    """Those that nobody would run: in a block without language, or of a language that is run by nothing here."""
    for page in PAGES:
        for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.M | re.S):
            assert language in ("", "sh", "python", "json", "yaml"), f"{page.name}: {language} is run by nothing here"
            named = [
                line for line in block.splitlines() if re.match(r" *(\$|dinounet|pip|python|docker|make|import) ", line)
            ]
            assert language in ("sh", "python") or not named, f"{page.name}: {named} stand in a block that isn't run"


def test_what_the_text_says_in_passing_has_flags_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, str] = {}
    for page in PAGES:
        for verb, words in re.findall(r"`dinounet (\w+)([^`]*)`", page.read_text()):
            if verb not in told:
                with pytest.raises(SystemExit):
                    main([verb, "--help"])
                told[verb] = capsys.readouterr().out
            for flag in re.findall(r"(?<= )--?[a-z][\w-]*", words):
                assert re.search(rf"(?<![\w-]){flag}(?![\w-])", told[verb]), f"{page.name}: {verb} has no {flag}"
