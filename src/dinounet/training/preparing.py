"""What a run works on before its loop begins: the backbone, preprocessed slices, and perhaps cached features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dinounet.allocator import give_back_freed
from dinounet.data.cache import CachedCase, build_cache
from dinounet.data.dataset import read_dataset
from dinounet.errors import DataError, WeightsError
from dinounet.files import write_json
from dinounet.network.backbone import FrozenBackbone, build_backbone
from dinounet.network.config import NetworkConfig
from dinounet.network.dinounet import DinoUNet
from dinounet.network.weights import fill_backbone
from dinounet.progress import progress, say
from dinounet.run import PLAN, RunRecord
from dinounet.team import Team
from dinounet.training.features import CachedFeatures, cache_features
from dinounet.training.planning import build_planned


def fill_again(record: RunRecord, output: Path) -> FrozenBackbone:
    """The backbone as it was when the run was started."""
    plan = record.plan
    assert isinstance(plan.network, NetworkConfig) and record.backbone is not None
    frozen = build_backbone(plan.network, offload=record.offload)
    found = fill_backbone(frozen, record.backbone.name, record.backbone.weights, plan.recipe.seed)
    if found.sha256 != record.backbone.sha256:
        raise WeightsError(f"the weights in {found.weights} have changed since {output} was started; train anew")
    return frozen


def cache_slices(
    record: RunRecord, data: Path, output: Path, cache: Path, team: Team
) -> tuple[list[CachedCase], list[CachedCase]]:
    """The training and validation cases' preprocessed slices, in the run's own folder unless another is named."""
    by_name = {case.name: case for case in read_dataset(data, group="none").cases}
    training, validation = record.data.training_cases, record.data.validation_cases
    cases = [by_name[name] for name in (*training, *validation)]
    if team.leads and not (output / PLAN).exists():
        write_json(output / PLAN, record.plan)
    with progress("caching", len(cases)) as advance:
        found = build_cache(cases, record.plan.data, cache, advance, lambda text: say("cache", text))
    return found[: len(training)], found[len(training) :]


def note_absent_classes(record: RunRecord, training: Sequence[CachedCase]) -> RunRecord:
    """The record with the classes that no training case holds, which is told.

    Raises:
        DataError: none holds any, so that there is nothing to learn.
    """
    meaning = record.plan.data.meaning
    places = {label: place for place, label in enumerate(meaning.labels.values())}
    held = {place for case in training for place in case.classes}
    absent = tuple(
        name for name, labels in meaning.foreground.items() if not held & {places[label] for label in labels}
    )
    if len(absent) == len(meaning.foreground):
        raise DataError(
            f"no training case of the fold {record.fold} holds anything but background, so that there is nothing to "
            "learn; train another --fold, or on all cases by --fold all"
        )
    notes = tuple(
        f"No training case has a pixel of {name}: it can't be learned, and is in no mean over classes."
        for name in absent
    )
    for note in notes:
        say("note", note)
    return replace(
        record,
        data=replace(record.data, absent_classes=absent),
        notes=tuple(dict.fromkeys((*record.notes, *notes))),
    )


def see_features(
    record: RunRecord,
    output: Path,
    cache: Path,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    frozen: FrozenBackbone | None,
) -> tuple[CachedFeatures, FrozenBackbone]:
    """What the backbone sees, kept on disk, and a backbone without weights, which is all that is needed then."""
    assert isinstance(record.plan.network, NetworkConfig)
    with torch.device("meta"):
        without_weights = build_backbone(record.plan.network)

    def network() -> DinoUNet:
        planned = build_planned(record.plan, frozen or fill_again(record, output))
        assert isinstance(planned, DinoUNet)
        return planned.to(record.device)

    features = cache_features(network, record, training, validation, cache, without_weights)
    for backbone in (frozen, without_weights):
        if backbone is not None:
            backbone.drop_weights()
    give_back_freed()
    return features, without_weights
