"""The model card: a bundle's `README.md`, written from its record, with a part that people write and exports keep.

It begins with the facts that the Hugging Face Hub reads, as YAML (huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from typing import Any

from dinounet.backbones.hub import pages
from dinounet.backbones.registry import DINOV3_LICENCE, find_variant
from dinounet.errors import DataError
from dinounet.evaluation.metrics import TITLES, write_interval, write_number
from dinounet.inference.postprocessing import describe
from dinounet.io import atomic_write
from dinounet.schema.bundle import BundleRecord, Estimate

TEMPLATE = "card.md.jinja"

BEGIN = "<!-- yours: what stands between these two lines is kept when the bundle is exported again -->"
END = "<!-- end of yours -->"

KEPT = "\nWhat the images are, who it is for, who made it, how to cite it.\n"
"""Initial text of the card's editable part."""

SHOWN = ("dice", "iou", "nsd", "precision", "recall", "hd95", "assd")
"""Measures in the card; `model.json` has the others."""


def write_card(path: Path, record: BundleRecord, kept: str | None = None) -> None:
    """Write a bundle's card; `kept` is what people wrote into an older one."""
    with atomic_write(path) as temporary:
        temporary.write_text(make_card(record, kept), encoding="utf-8")


def read_kept(path: Path) -> str | None:
    """What people wrote into the editable part of a card; None if there is no card.

    Raises:
        DataError: its two marks are not there once each, in order, so that it can't be known what was written.
    """
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    kept, ended, after = rest.partition(END)
    if not found or not ended or BEGIN in before + rest or END in before + after:
        raise DataError(
            f"{path} has lost the two comments around its editable part ({BEGIN} and {END}); put them back around what "
            "you wrote, or remove the file"
        )
    return kept


def make_card(record: BundleRecord, kept: str | None = None, name: str = "user/name") -> str:
    """The text of a bundle's card.

    Args:
        record: of the bundle.
        kept: what people wrote into an older one.
        name: of the bundle on the Hub.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "plain": plain,
        "estimate": _write_estimate,
        "number": lambda number, name: write_number(name, number),
    }
    template = environment.from_string((importlib.resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8"))
    backbones = {one.backbone.sha256: one.backbone for one in record.networks if one.backbone}
    return template.render(
        record=record,
        data=record.data,
        name=name,
        front=_front_matter(record),
        begin=BEGIN,
        end=END,
        kept=KEPT if kept is None else kept,
        shown={measure: TITLES[measure] for measure in SHOWN},
        pages=pages,
        backbones=[(one, find_variant(one.name)) for one in backbones.values()],
        postprocessing=describe(record.postprocessing) if record.postprocessing else "",
        notes=list(dict.fromkeys(note for one in record.networks if one.training for note in one.training.notes)),
    )


def plain(text: Any) -> str:
    """A name, such that Markdown shows it as it is, in one line."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", one_line)


def _write_estimate(estimate: Estimate, measure: str) -> str:
    """A mean and where it lies."""
    ends = None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
    return f"{write_number(measure, estimate.mean)} ({write_interval(measure, ends)})"


def _front_matter(record: BundleRecord) -> str:
    """The lines that the Hub reads, without the dashes around them."""
    from huggingface_hub import ModelCardData

    licences = {one.backbone.licence for one in record.networks if one.backbone}
    licence = {"license": record.licence or "unknown"}
    if record.licence is None and DINOV3_LICENCE in licences:  # which goes with what is made of the weights
        link = DINOV3_LICENCE.partition("(")[2].rstrip(")")
        licence = {"license": "other", "license_name": "dinov3-license", "license_link": link}
    tags = ["dinounet", "medical-imaging", "image-segmentation"] + ["dinov3"] * (DINOV3_LICENCE in licences)
    facts: dict[str, Any] = {"library_name": "dinounet", "pipeline_tag": "image-segmentation", "tags": tags, **licence}
    return ModelCardData(**facts).to_yaml()
