"""`dinounet info`: the backbones, or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def info(run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None, /) -> None:
    """List the backbones, or tell what is known of a run.

    Args:
        run: Folder that `dinounet train` wrote.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if run is None:
        from dinounet.network.variants import VARIANTS

        table = Table("backbone", "width", "blocks", "taps", "parameters", "licence", title="Backbones")
        for variant in VARIANTS.values():
            taps = ", ".join(map(str, variant.taps))
            size = f"{variant.parameters / 1e6:,.1f} M"
            table.add_row(variant.name, str(variant.width), str(variant.depth), taps, size, variant.licence)
    else:
        from dinounet.run import read_run

        record = read_run(run)
        plan, backbone = record.plan, record.backbone
        table = Table("", "", title=Text(str(run)), show_header=False)
        for name, value in {
            "status": f"{record.status}, {record.steps_done} steps of {plan.recipe.duration}",
            "dataset": f"{record.data.name}, sha256 {record.data.sha256[:12]}",
            "cases": f"{len(record.data.training_cases)} to train on, {len(record.data.validation_cases)} to watch",
            "labels": ", ".join(f"{name} = {label}" for name, label in plan.data.meaning.given.items()),
            "regions": ", ".join(region.name for region in plan.data.regions or ()) or "none",
            "channels": ", ".join(f"{channel.name} ({channel.normalisation})" for channel in plan.data.channels),
            "patch": f"{plan.data.patch[0]} x {plan.data.patch[1]}",
            "network": plan.network.architecture,
            "backbone": f"{backbone.name}, weights {backbone.weights}, {backbone.sha256[:12]}" if backbone else "none",
            "licence of the backbone": backbone.licence if backbone else "none",
            "parameters": f"{record.trained_parameters:,} trained, {record.frozen_parameters:,} frozen",
            "trained": f"{record.started}, {record.seconds / 60:.1f} minutes on {record.device} in {record.precision}",
            "command": " ".join(record.command),
            "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
            "notes": "; ".join(record.notes) or "none",
        }.items():
            table.add_row(name, Text(value))
    Console().print(table)
