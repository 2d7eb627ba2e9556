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
    from dinounet.backbones.registry import network_config
    from dinounet.backbones.weights import fill_backbone
    from dinounet.bundle.load import load
    from dinounet.cli.dataset import plan, relabel
    from dinounet.cli.info import info
    from dinounet.cli.predict import predict
    from dinounet.cli.results import compare, evaluate, report
    from dinounet.cli.share import export, import_, push
    from dinounet.cli.train import demo, train
    from dinounet.inference.predictor import Predictor
    from dinounet.network.dinounet import DinoUNet
    from dinounet.schema.network import NetworkConfig
    from dinounet.schema.recipe import Recipe

__version__ = "0.1.0"

_HOMES = {
    "train": "dinounet.cli.train",
    "demo": "dinounet.cli.train",
    "plan": "dinounet.cli.dataset",
    "relabel": "dinounet.cli.dataset",
    "predict": "dinounet.cli.predict",
    "evaluate": "dinounet.cli.results",
    "compare": "dinounet.cli.results",
    "report": "dinounet.cli.results",
    "export": "dinounet.cli.share",
    "import_": "dinounet.cli.share",
    "push": "dinounet.cli.share",
    "info": "dinounet.cli.info",
    "Predictor": "dinounet.inference.predictor",
    "load": "dinounet.bundle.load",
    "NetworkConfig": "dinounet.schema.network",
    "DinoUNet": "dinounet.network.dinounet",
    "build_backbone": "dinounet.backbones.frozen",
    "network_config": "dinounet.backbones.registry",
    "load_published_state_dict": "dinounet.backbones.key_names",
    "fill_backbone": "dinounet.backbones.weights",
    "Recipe": "dinounet.schema.recipe",
}

__all__ = [
    "DinoUNet", "NetworkConfig", "Predictor", "Recipe", "UserError", "build_backbone", "compare", "demo", "evaluate",
    "export", "fill_backbone", "import_", "info", "load", "load_published_state_dict", "network_config", "plan",
    "predict", "push", "relabel", "report", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dinounet' has no attribute {name!r}")
    with naming_the_extra(f"dinounet.{name}"):
        return getattr(importlib.import_module(_HOMES[name]), name)
