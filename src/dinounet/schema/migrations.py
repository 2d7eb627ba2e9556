"""Older formats of our files: what makes a file's content one of the next format, a function a step."""

from __future__ import annotations

from typing import Any


def units_at_the_detector(bundle: dict[str, Any]) -> dict[str, Any]:
    """Bundles, 1 to 2: lengths "at the detector" and `data.readers` came to be; what was there stands as it did."""
    return bundle


def embed_labels(content: dict[str, Any]) -> dict[str, Any]:
    """What masks hold stood in four fields, `labels`, `regions`, `ignore` and `colours`, and is one record now."""
    others = ("regions", "ignore", "colours")
    labels = {"classes": content["labels"], **{name: content.get(name) for name in others}}
    return {**{name: value for name, value in content.items() if name not in others}, "labels": labels}


def resolve_backbone(content: dict[str, Any]) -> dict[str, Any]:
    """What follows from the backbone's name, width, taps and precision, was left open, and stands in the network now.

    Of a name in our table it is known; a model of timm's is asked once, by whoever reads the old file.
    """
    network = content["network"]
    if network.get("architecture", "dinounet") == "dinounet":
        from dinounet.backbones.registry import with_facts  # a room above, which only old files need

        network = with_facts({"architecture": "dinounet", **network})
    return {**content, "network": network}


RECIPE_FIELDS = {
    "batch": "batch_size",
    "minutes": "max_minutes",
    "clip": "max_grad_norm",
    "foreground": "foreground_fraction",
    "validate_every": "eval_interval",
    "average": "ema_decay",
}
"""Fields of a recipe by the names that plans of format 1 have."""


def rename_recipe_fields(plan: dict[str, Any]) -> dict[str, Any]:
    """Some fields of the recipe have other names now."""
    return {**plan, "recipe": {RECIPE_FIELDS.get(name, name): value for name, value in plan["recipe"].items()}}


def resolve_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """Plans, 1 to 2: labels are one record, the backbone's facts stand in the network, and the recipe has new names."""
    return rename_recipe_fields(resolve_backbone({**plan, "data": embed_labels(plan["data"])}))


def rename_micro_batch(run: dict[str, Any]) -> dict[str, Any]:
    """Runs, 1 to 2: `micro_batch` is called `micro_batch_size`."""
    return {("micro_batch_size" if name == "micro_batch" else name): value for name, value in run.items()}


def resolve_bundle(bundle: dict[str, Any]) -> dict[str, Any]:
    """Bundles, 2 to 3: the same, of each network."""
    networks = [resolve_backbone(one) for one in bundle["networks"]]
    return {**bundle, "data": embed_labels(bundle["data"]), "networks": networks}
