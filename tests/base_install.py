"""An installation without extras reads, plans, predicts, evaluates, compares and reports, by the files of `old_files/`.

`make test-wheel` runs it in an environment that holds the wheel and what that requires; `--block` acts so here.
"""

import importlib.util
import os
import sys
import tarfile
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path

ABSENT = ("torch", "timm", "monai", "lightning_fabric", "batchgenerators", "batchgeneratorsv2", "safetensors", "onnx")
"""Modules that come with extras alone."""

VERBS = (
    ("plan data -o plan.json", 0),
    ("predict onnx data/imagesTs -o masks --tta flip --probabilities --uncertainty --overlay", 0),
    ("predict onnx_int8/model.onnx data/imagesTs -o masks_int8", 0),
    ("evaluate masks data/labelsTs", 0),
    ("compare masks masks_int8 --truth data/labelsTs", 0),
    ("report masks data/labelsTs -o report.html --images data/imagesTs --run run", 0),
    ("relabel data/labelsTs -o clean --labels background=0,disc=1,square=2", 0),
    ("info backbones", 0),
    ("info run", 0),
    ("info bundle", 0),
    ("info onnx", 0),
    ("export run -o again", 0),
    ("train data -o new", 2),
    ("plan data --device cpu", 2),
    ("predict run data/imagesTs -o other", 2),
)
"""Command lines and their exit codes."""


class Blocker:
    """Finds the absent modules for nobody."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


if sys.argv[1:] == ["--block"]:
    sys.meta_path.insert(0, Blocker())  # type: ignore[arg-type]
else:
    assert not [name for name in ABSENT if importlib.util.find_spec(name)], "this environment holds extras"

import numpy as np  # noqa: E402

import dinounet  # noqa: E402
from dinounet.cli.main import main  # noqa: E402

with tempfile.TemporaryDirectory() as folder, tarfile.open(Path(__file__).parent / "old_files/1f84803.tar.xz") as old:
    old.extractall(folder, filter="data")
    os.chdir(folder)
    for line, code in VERBS:
        assert main(line.split()) == code, line
    assert dinounet.load("onnx").predict(np.zeros((1, 40, 50), np.float32)).shape == (40, 50)
    for use, sentence in (
        (lambda: dinounet.train("data", "new"), 'dinounet train needs PyTorch: pip install "dinounet[train]"'),
        (lambda: dinounet.DinoUNet, 'dinounet.DinoUNet needs PyTorch: pip install "dinounet[train]"'),
        (lambda: dinounet.load("run"), "a network that isn't exported as ONNX needs PyTorch: pip install"),
    ):
        try:
            use()
        except dinounet.UserError as error:
            assert isinstance(error, ImportError) and str(error).startswith(sentence), error
        else:
            raise AssertionError(sentence)
    os.chdir("/")
assert not [name for name in ABSENT if name in sys.modules]
