"""`dinounet info`: the backbones, a run, or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dinounet.schema.arguments import UNSET, Default, checked

if TYPE_CHECKING:
    from rich.table import Table

    from dinounet.schema.bundle import BundleRecord
    from dinounet.schema.network import BackboneRecord, NetworkConfig, UNetConfig
    from dinounet.schema.plan import DataPlan
    from dinounet.schema.run import RunRecord


BACKBONES = "backbones"
WIDTH_OF_NUMBERS = 59
"""Of the table of costs, without the names: 80 characters with the longest of the table's."""


@checked
def info(
    what: str = BACKBONES,
    /,
    *,
    backbone_scale: Annotated[float, Default(1.0)] = UNSET,
    json: bool = False,
) -> None:
    """List the backbones and their cost, or describe a run or a bundle.

    Args:
        what: One of: backbones, for all named backbones; timm:NAME, for a model of timm; a folder written by `dinounet
            train` or `dinounet export`, ONNX included; a bundle on the Hugging Face Hub, hf://user/name or
            hf://user/name@revision; or nnunet, for the folder of our nnU-Net trainers: export
            nnUNet_extTrainer=$(dinounet info nnunet).
        backbone_scale: Factor by which the feature grid is finer, for the cost of the backbones.
        json: Print JSON.
    """
    import json as files

    from rich.console import Console
    from rich.markup import escape

    from dinounet.errors import ConfigError
    from dinounet.schema.network import check_scale

    scale = backbone_scale or 1.0
    check_scale(scale)
    told: Any
    parts: list[Any]
    is_of_backbones = what == BACKBONES or what.startswith("timm:")
    if backbone_scale is not UNSET and not is_of_backbones:
        raise ConfigError("--backbone-scale is for the list of backbones; a run has its own")
    if is_of_backbones:
        from dinounet.backbones.registry import VARIANTS, find_variant

        listed = VARIANTS.values() if what == BACKBONES else [find_variant(what)]
        told = [_tell(variant, scale) for variant in listed]
        parts = [*_costs(told, scale), *_sources(told)]
    elif what == "nnunet":
        from dinounet.nnunet import TRAINERS

        told, parts = {"trainers": str(TRAINERS)}, [escape(str(TRAINERS))]
    else:
        from dataclasses import asdict

        from dinounet.bundle.hub import fetch_record, is_on_hub, missing
        from dinounet.bundle.load import is_bundle
        from dinounet.bundle.verify import read_bundle, read_exported
        from dinounet.schema.bundle import EXPORTED, is_onnx_file
        from dinounet.schema.run import read_run

        folder = fetch_record(what) if is_on_hub(what) else Path(what)
        folder = folder.parent if is_onnx_file(folder) else folder
        if not folder.exists():
            raise missing(folder)
        if (folder / EXPORTED).is_file():
            exported = read_exported(folder)
            facts = {
                "ONNX": f"{', '.join(exported.names)}, opset {exported.opset}, int8: {exported.int8}",
                "sides of the input": f"multiples of {exported.multiple[0]} and {exported.multiple[1]}",
            }
            told, parts = asdict(exported), [_bundle(what, exported.bundle, facts)]
        elif is_bundle(folder):
            bundle = read_bundle(folder)
            told, parts = asdict(bundle), [_bundle(what, bundle)]
        else:
            record = read_run(folder)
            told, parts = asdict(record), [_run(what, record)]
    if json:
        print(files.dumps(told, indent=2))
        return
    longest = max(len(backbone["name"]) for backbone in told) if isinstance(told, list) else 0
    console = Console(width=max(Console().width, longest + WIDTH_OF_NUMBERS))  # no number and no name is cut
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=False)


def _tell(variant: Any, scale: float) -> dict[str, Any]:
    """All that is known of a backbone."""
    from dinounet.backbones.registry import gmac_at, memory_at, trained_parameters

    predict, train = memory_at(variant, scale)
    return {
        "name": variant.name,
        "width": variant.width,
        "depth": variant.depth,
        "taps": variant.taps,
        "stages": variant.stages,
        "patch": variant.patch,
        "frozen": variant.frozen,
        "trained": trained_parameters(variant),
        "backbone_scale": scale,
        "gmac": round(gmac_at(variant, scale), 1),
        "predict_gb": round(predict, 2),
        "train_gb": round(train, 2),
        "memory": "measured" if variant.measured and scale == 1 else "estimated",
        "licence": variant.licence,
        "commercial_use": variant.commercial,
        "weights": variant.repository and f"https://huggingface.co/{variant.repository}",
        "timm_name": variant.timm_name,
        "page": variant.page,
    }


def _table(title: str, columns: dict[str, bool]) -> Table:
    """A table whose numbers stand to the right, and narrow: the longest lines have 80 characters."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name, is_number in columns.items():
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    return table


def _costs(told: list[dict[str, Any]], scale: float) -> tuple[Table, str]:
    numbers = ("frozen", "trained", "GMAC", "predict", "train")
    table = _table(
        "Backbones" if scale == 1 else f"Backbones, at a scale of {scale:g}",
        {"backbone": False, "width": True, "blocks": True, "taps": False, **dict.fromkeys(numbers, True)},
    )
    for backbone in told:
        about = "" if backbone["memory"] == "measured" else "~"
        table.add_row(
            backbone["name"],
            str(backbone["width"]),
            str(backbone["depth"]),
            ",".join(map(str, backbone["taps"])),
            _short(backbone["frozen"] / 1e6),
            _short(backbone["trained"] / 1e6),
            f"{backbone['gmac']:,.0f}",
            about + _short(backbone["predict_gb"]),
            about + _short(backbone["train_gb"]),
        )
    return table, (
        "taps: the blocks that are read, or the stages of a pyramid\n"
        "frozen, trained: millions of parameters (one channel, two classes)\n"
        "GMAC: billions of multiplications of the backbone alone, one image of 512 x 512\n"
        "predict, train: GB for such an image on a CPU in float32, weights included,\n"
        "    measured, or (~) estimated from what was measured\n"
    )


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def _sources(told: list[dict[str, Any]]) -> tuple[Table, str]:
    hub = "https://huggingface.co/timm/"
    table = _table("Weights", {"backbone": False, "licence": False, f"--weights hub: {hub}...": False})
    licences = {}
    for backbone in told:
        short = backbone["licence"].split()[0]
        table.add_row(backbone["name"], short, (backbone["weights"] or "none").removeprefix(hub))
        licences[short] = (
            f"{backbone['licence']}\n    commercial use: {backbone['commercial_use']}; the project: {backbone['page']}"
        )
    return table, "\n".join(licences.values())


def _facts(title: str, facts: dict[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", title=Text(title), show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table


def _data(data: DataPlan) -> dict[str, str]:
    return {
        "labels": ", ".join(f"{name} = {label}" for name, label in data.labels.with_ignore.items()),
        "regions": ", ".join(region.name for region in data.labels.regions or ()) or "none",
        "channels": ", ".join(f"{channel.name} ({channel.normalisation})" for channel in data.channels),
        "patch": f"{data.patch[0]} x {data.patch[1]}",
    }


def _network(network: NetworkConfig | UNetConfig, backbone: BackboneRecord | None) -> dict[str, str]:
    return {
        "network": network.architecture,
        "backbone": getattr(network, "backbone_in_words", "none"),
        "weights of the backbone": f"{backbone.weights}, {backbone.sha256[:12]}" if backbone else "none",
        "licence of the backbone": backbone.licence if backbone else "none",
    }


def _run(title: str, record: RunRecord) -> Table:
    plan = record.plan
    return _facts(title, {
        "status": f"{record.status}, {record.steps_done} steps of {plan.recipe.duration}",
        "dataset": f"{record.data.name}, sha256 {record.data.sha256[:12]}",
        "cases": f"{len(record.data.training_cases)} for training, {len(record.data.validation_cases)} for validation",
        **_data(plan.data),
        **_network(plan.network, record.backbone),
        "parameters": f"{record.trained_parameters:,} trained, {record.frozen_parameters:,} frozen",
        "trained": f"{record.started}, {record.seconds / 60:.1f} minutes on {record.device} in {record.precision}",
        "command": " ".join(record.command),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        **{
            f"Dice of {found.cases} {part} cases": _dice(found.dice, found.dice_where_present, found.floor)
            for part, found in record.results.items()
        },
        "notes": "; ".join(record.notes) or "none",
    })  # fmt: skip


def _dice(mean: float, where_present: float | None, floor: float) -> str:
    """A mean Dice with what it rests on."""
    from dinounet.evaluation.metrics import write_number

    there = "" if where_present is None else f", over those that have the class {write_number('dice', where_present)}"
    return f"{write_number('dice', mean)}{there}, of an all-background prediction {write_number('dice', floor)}"


def _bundle(title: str, record: BundleRecord, more_facts: dict[str, str] | None = None) -> Table:
    from dinounet.evaluation.metrics import write_number
    from dinounet.inference.postprocessing import describe

    facts = {
        "bundle": f"exported {record.made} by dinounet {record.versions.get('dinounet', 'unknown')}",
        "dataset": record.data.dataset,
        **_data(record.data),
        "postprocessing": (describe(record.postprocessing) if record.postprocessing else "") or "none",
        "licence": record.licence or "none named",
        "origin": record.origin or "trained by dinounet",
        **(more_facts or {}),
    }
    for index, one in enumerate(record.networks):
        run, place = one.training, f" {index}" if len(record.networks) > 1 else ""
        more = _network(one.network, one.backbone) | {"weights": f"sha256 {one.sha256[:12]}"}
        if run:
            more |= {
                "cases": f"{run.training_cases} for training, {run.validation_cases} for validation",
                "trained": f"{run.started}, {run.steps} steps, {run.seconds / 60:.1f} minutes on {run.device}",
                "notes": "; ".join(run.notes) or "none",
            }
        for found in one.metrics:
            dice, basis = found.mean.get("dice"), found.basis_over_classes
            told = "unknown" if dice is None else write_number("dice", dice.mean)
            if dice and basis:
                told = _dice(dice.mean, basis.dice.mean if basis.dice else None, basis.floor)
            more[f"Dice of {found.cases} {found.part} cases"] = told
        facts |= {f"{name}{place}": value for name, value in more.items()}
    return _facts(title, facts)
