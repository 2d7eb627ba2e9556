"""Medical image segmentation with a frozen DINOv3 backbone.

    run = dinounet.train("Dataset152_ICBM", "run", weights="hub")
    mask = dinounet.load("run").predict("image.nii.gz")

Every verb of the command line is a function of the same name and arguments.
Importing this package imports neither torch nor timm; the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dinounet.errors import UserError, naming_the_extra

if TYPE_CHECKING:
    from dinounet.backbones.frozen import build_backbone
    from dinounet.backbones.key_names import load_published_state_dict
    from dinounet.backbones.weights import fill_backbone
    from dinounet.bundle.load import load
    from dinounet.cli.compare import compare
    from dinounet.cli.demo import demo
    from dinounet.cli.evaluate import evaluate
    from dinounet.cli.export import export
    from dinounet.cli.import_ import import_
    from dinounet.cli.info import info
    from dinounet.cli.plan import plan
    from dinounet.cli.predict import predict
    from dinounet.cli.push import push
    from dinounet.cli.relabel import relabel
    from dinounet.cli.report import report
    from dinounet.cli.train import train
    from dinounet.inference.predictor import Predictor
    from dinounet.network.dinounet import DinoUNet
    from dinounet.schema.network import NetworkConfig
    from dinounet.schema.recipe import Recipe

__version__ = "0.1.0"

_VERBS = (
    "compare", "demo", "evaluate", "export", "import_", "info", "plan", "predict", "push", "relabel", "report", "train",
)  # fmt: skip

_HOMES = {
    **{verb: f"dinounet.cli.{verb}" for verb in _VERBS},
    "Predictor": "dinounet.inference.predictor",
    "load": "dinounet.bundle.load",
    "NetworkConfig": "dinounet.schema.network",
    "DinoUNet": "dinounet.network.dinounet",
    "build_backbone": "dinounet.backbones.frozen",
    "load_published_state_dict": "dinounet.backbones.key_names",
    "fill_backbone": "dinounet.backbones.weights",
    "Recipe": "dinounet.planning.planner",
}

__all__ = [
    "DinoUNet", "NetworkConfig", "Predictor", "Recipe", "UserError", "build_backbone", "compare", "demo", "evaluate",
    "export", "fill_backbone", "import_", "info", "load", "load_published_state_dict", "plan", "predict", "push",
    "relabel", "report", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dinounet' has no attribute {name!r}")
    with naming_the_extra(f"dinounet.{name}"):
        return getattr(importlib.import_module(_HOMES[name]), name)
