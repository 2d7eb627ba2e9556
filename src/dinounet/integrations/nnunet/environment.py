"""nnU-Net's surroundings: whether it is installed, in a version that is known here, and where its folders are.

nnU-Net reads its folders from environment variables. What a flag names instead is set for this process and those
that it starts, and for nothing else.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dinounet.errors import ConfigError, DataError
from dinounet.files import join_some, read_json

KNOWN = (2, 8)
"""The version of nnU-Net that this is tested with; 2.9 may differ."""

PLANS = "DinoUNetPlans"
CONFIGURATION = "2d"
NETWORK_CLASS = "dinounet.integrations.nnunet.network.PlannedDinoUNet"

TRAINERS = Path(__file__).parent / "trainers"
TRAINERS_VARIABLE = "nnUNet_extTrainer"
"""The folder in which nnU-Net finds our trainers, and the variable that tells it."""

Kind = Literal["raw", "preprocessed", "results"]

HOLDS: dict[Kind, str] = {
    "raw": "the datasets",
    "preprocessed": "plans and preprocessed data",
    "results": "trained models",
}
"""What nnU-Net keeps in each of its folders."""


def require_nnunet() -> None:
    """Make sure that a version of nnU-Net that is known here can be imported.

    Raises:
        ConfigError: there is none, or another one.
    """
    wanted = '"nnunetv2>=2.8,<2.9"'
    try:
        found = importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("nnU-Net is not installed; install it by pip install 'dinounet[nnunet]'") from None
    if tuple(map(int, re.findall(r"\d+", found)[:2])) != KNOWN:
        raise ConfigError(f"nnU-Net {found} is installed, and 2.8 is needed; install it by pip install {wanted}")


def set_up(needed: Sequence[Kind], **given: Path | None) -> None:
    """Make nnU-Net find its folders and our trainers, in this process and those that it starts.

    Args:
        needed: which of its folders must be there.
        given: folders by their kind, instead of what its variables name.

    Raises:
        ConfigError: nnU-Net is not there, or a folder is named by nobody, or is none.
    """
    require_nnunet()
    problems = []
    for kind in HOLDS:
        variable, flag, folder = f"nnUNet_{kind}", f"--{kind}", given.get(kind)
        if folder is not None:
            os.environ[variable] = str(folder)
        named = os.environ.get(variable)
        if kind not in needed or (named and Path(named).is_dir()):
            continue
        by = flag if folder is not None else variable
        problems.append(
            f"{by} is {named}, which is not a folder" if named else f"{variable}, where {HOLDS[kind]} lie, is not set"
        )
    if problems:
        flags = ", ".join(f"--{kind}" for kind in needed)
        raise ConfigError(f"{'; '.join(problems)}; name folders that are there by nnU-Net's variables, or by {flags}")
    others = [path for path in os.environ.get(TRAINERS_VARIABLE, "").split(os.pathsep) if path]
    os.environ[TRAINERS_VARIABLE] = os.pathsep.join(dict.fromkeys([*others, str(TRAINERS)]))


def folder_of(kind: Kind) -> Path:
    """One of nnU-Net's folders, once it is set up."""
    return Path(os.environ[f"nnUNet_{kind}"])


def find_dataset(named: str, *kinds: Kind) -> str:
    """The folder's name of a dataset that is given by name or number, in one of these folders of nnU-Net's.

    Raises:
        DataError: there is none, or there are several.
    """
    places = [folder_of(kind) for kind in kinds]
    number = f"Dataset{int(named):03d}_" if named.isdecimal() else None
    folders = {path.name for place in places for path in place.glob("Dataset*/")}
    found = sorted(name for name in folders if name == named or (number and name.startswith(number)))
    looked = " and ".join(map(str, places))
    if not found:
        there = f" among {join_some(sorted(folders))}" if folders else ""
        raise DataError(f"{looked} has no dataset {named}{there}; give its number, or its whole name")
    if len(found) > 1:
        raise DataError(f"{looked} has several datasets {named}: {', '.join(found)}; give the whole name")
    return found[0]


def check_planned(planned: Any, where: str, configuration: str = CONFIGURATION) -> Mapping[str, Any]:
    """The configuration of a plan of nnU-Net's, if it is of slices and for Dino U-Net.

    Args:
        planned: content of the plan.
        where: it comes from.
        configuration: its name in the plan.

    Raises:
        ConfigError: it isn't.
    """
    if configuration.startswith("3d"):
        raise ConfigError(f"the configuration {configuration} is of volumes, and Dino U-Net segments slices; use 2d")
    parts = planned.get("configurations", {}) if isinstance(planned, Mapping) else {}
    if configuration not in parts:
        raise ConfigError(f"{where} has no configuration {configuration} but {', '.join(parts) or 'none'}; use 2d")
    part: Mapping[str, Any] = parts[configuration]
    name = part.get("architecture", {}).get("network_class_name")
    if name != NETWORK_CLASS:
        raise ConfigError(
            f"{where} is for {str(name).rpartition('.')[2]}, and not for Dino U-Net; plan by dinounet nnunet plan, "
            f"and train by that plan (-p {PLANS})"
        )
    return part


def read_planned(dataset: str, plans: str, configuration: str) -> None:
    """Make sure that a dataset was planned for Dino U-Net by this version; see `check_planned`."""
    from dinounet.integrations.nnunet.network import read_arguments

    path = folder_of("preprocessed") / dataset / f"{plans}.json"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; plan the dataset first: dinounet nnunet plan {dataset}")
    part = check_planned(read_json(path, what="a plan of nnU-Net's"), str(path), configuration)
    read_arguments(part["architecture"].get("arch_kwargs"))
    if not any(path.with_name(str(part.get("data_identifier"))).glob("*")):
        raise ConfigError(f"{dataset} is planned, but its slices are not made; plan it without --no-preprocess")
