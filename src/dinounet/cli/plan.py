"""`dinounet plan`: what is understood of a dataset, and what would be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dinounet.cli.recipe_flags import NAMED, NO_CHANGES, RecipeFlags
from dinounet.files import join_some
from dinounet.network.config import NetworkConfig
from dinounet.plans import Architecture, Plan, Recipe, RecipeName

if TYPE_CHECKING:
    from dinounet.data.dataset import Dataset


def plan(
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    /,
    *,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    recipe: Annotated[Recipe | RecipeName, NAMED] = "default",
    changes: Annotated[Mapping[str, Any], tyro.conf.arg(name="", constructor=RecipeFlags)] = NO_CHANGES,
    network: Architecture = "dinounet",
    backbone: str = NetworkConfig.backbone,
    patch: tuple[int, int] | None = None,
    test: Path | None = None,
    labels: str | None = None,
) -> Plan:
    """Look at a dataset without training on it: print what it holds and every decision about it, or all that is wrong.

    Args:
        data: Dataset, as for `dinounet train`.
        output: File to write the plan to, which may be edited and trained by: `dinounet train --plan FILE`.
        recipe: How to train: default (docs/recipes.md tells why), or paper (what the published code does, which also
            plans spacing, slices, patch and batch its way). From Python also a `Recipe`.
        changes: Of a named recipe, what is to be otherwise; on the command line a flag each.
        network: What to train; unet is nnU-Net's, a baseline without a backbone.
        backbone: Frozen backbone, as listed by `dinounet info`.
        patch: Rows and columns of a patch; by default what covers the median slice, at most 512.
        test: Text file that names, a line each, cases or groups (such as patients) to hold out for a test: they are
            not looked at, and training by this plan leaves them out too.
        labels: Of plain masks, what their numbers stand for, as background=0,lesion=255; by default told by the masks.

    Returns:
        The plan.
    """
    data = Path(data)  # Python users may give strings
    from dinounet.data.dataset import parse_labels, read_dataset
    from dinounet.data.splits import read_test_list
    from dinounet.files import require_file, write_json
    from dinounet.plans import plan_dataset
    from dinounet.progress import say

    if output is not None:
        output = Path(output)
        require_file(output)
    held_out = read_test_list(Path(test)) if test else ()
    dataset = read_dataset(data, parse_labels(labels) if labels else None, test=held_out)
    found = plan_dataset(dataset, recipe, backbone, patch, changes=changes, architecture=network)
    _print(dataset, found)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, found)
        say("plan", f"{output}: edit it, then train by it: dinounet train {data} --plan {output}", plan=str(output))
    return found


def _print(dataset: Dataset, plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    seen, data = plan.data.fingerprint, plan.data
    total = sum(seen.label_pixels.values())
    groups = {case.group for case in dataset.cases if case.group is not None}
    first = dataset.cases[0]
    assert first.mask is not None
    size = " x ".join(map(str, seen.median_shape))
    table = Table("", "", title=Text(dataset.name), show_header=False)
    for name, value in {
        "cases": f"{seen.cases}" + (f" of {len(groups)} groups" if groups else ""),
        "first case": f"{first.name}: {' + '.join(path.name for path in first.images)} with {first.mask.name}",
        "median size": f"{size} (slices, rows, columns)",
        "median spacing": "unknown" if not seen.median_spacing else f"{_times(seen.median_spacing)} mm",
        "channels": ", ".join(f"{channel.name} ({channel.normalisation})" for channel in data.channels),
        **{
            f"label {name} = {label}": f"{seen.label_pixels[name]:,} pixels, {seen.label_pixels[name] / total:.2%}"
            for name, label in data.meaning.given.items()
        },
        **{
            f"region {region.name}": f"labels {', '.join(map(str, region.labels))}, written as {region.written_as}"
            for region in data.regions or ()
        },
        "slices": f"along {'zyx'[data.slice_axis]}"
        + (f", resampled to {_times(data.spacing)} mm" if data.spacing else ", pixels as they are"),
        "patch": f"{data.patch[0]} x {data.patch[1]}, {plan.recipe.batch} a step",
        "folds": ", ".join(f"{len(training)} + {len(watched)}" for training, watched in dataset.splits)
        or "none: one case, or one group of them, can't be split, and is all trained on",
        **({"held out": f"{len(data.test_cases)} cases: {join_some(data.test_cases)}"} if data.test_cases else {}),
        "network": getattr(plan.network, "backbone", plan.network.architecture) + f", {plan.recipe.duration}",
    }.items():
        table.add_row(Text(name), Text(value))
    Console().print(table)


def _times(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)
