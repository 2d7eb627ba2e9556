"""What is written is what is read: records, labels, views, masks with their place in space."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from dinounet.data.arrays import SYMMETRIES, View
from dinounet.data.geometry import Geometry, Volume, require_same_grid
from dinounet.data.images import ENDINGS, FLAT_ENDINGS, ending_for_labels, write_mask
from dinounet.data.masks import read_mask
from dinounet.errors import ConfigError
from dinounet.io import write_json
from dinounet.schema.base import read_record
from dinounet.schema.bundle import Estimate, Measured, OnnxFile, Training
from dinounet.schema.labels import name_labels, parse_labels, write_labels
from dinounet.schema.metrics import Basis, Bin, Calibration, CaseMetrics, ClassMetrics, EmptyCounts
from dinounet.schema.network import BackboneRecord, UNetConfig
from dinounet.schema.plan import ChannelPlan, FeatureChoice, StepMemory
from dinounet.schema.prediction import ModelRecord, Postprocessing, Steps
from dinounet.schema.recipe import Recipe

RECORDS: list[type[Any]] = [
    BackboneRecord, Basis, Bin, Calibration, CaseMetrics, ChannelPlan, ClassMetrics, EmptyCounts, Estimate,
    FeatureChoice, Measured, ModelRecord, OnnxFile, Postprocessing, Recipe, StepMemory, Steps, Training, UNetConfig,
]  # fmt: skip


def any_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any record of a kind, every field drawn, whatever its default."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: st.from_type(hints[field.name]) for field in dataclasses.fields(kind)}
    return st.fixed_dictionaries(fields).map(lambda values: (kind, values))


st.register_type_strategy(  # within a Postprocessing, where what it refuses can't be rejected
    Steps,
    st.builds(
        Steps,
        keep_largest=st.booleans(),
        smallest=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
        fill_holes=st.booleans(),
        dice_before=st.none() | st.floats(0, 1),
        dice_after=st.none() | st.floats(0, 1),
    ),
)


@pytest.mark.slow
@settings(max_examples=100)
@given(st.one_of([any_of(kind) for kind in RECORDS]))
def test_a_record_is_what_was_written(tmp_path: Path, drawn: tuple[type[Any], dict[str, Any]]) -> None:
    kind, values = drawn
    try:
        record = kind(**values)
    except ConfigError:
        reject()
    write_json(tmp_path / "record.json", record)
    assert read_record(kind, tmp_path / "record.json", what="a record") == record


class_names = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters=","), min_size=1, max_size=12)
numbers = st.integers(0, 10**6)
colours = st.from_regex(r"#[0-9a-f]{6}", fullmatch=True)


@given(st.one_of(st.dictionaries(class_names, marks, min_size=1, max_size=8) for marks in (numbers, colours)))
def test_labels_are_what_was_written(given_labels: dict[str, Any]) -> None:
    if len(set(given_labels.values())) < len(given_labels):
        with pytest.raises(ConfigError, match="duplicate"):
            parse_labels(write_labels(given_labels))
        return
    assert parse_labels(write_labels(given_labels)) == given_labels
    try:
        named = name_labels(given_labels)
    except ConfigError:
        return
    again = named.colours if named.colours else named.with_ignore
    assert dict(again) == given_labels
    assert name_labels(named.as_cli) == named


@given(st.text("=,# 0a1fF", max_size=20))
def test_any_text_names_labels_or_is_refused(text: str) -> None:
    try:
        labels = parse_labels(text)
    except ConfigError:
        return
    assert parse_labels(write_labels(labels)) == labels


@given(
    view=st.sampled_from(SYMMETRIES),
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    by_torch=st.booleans(),
)
def test_a_view_is_put_back(view: View, shape: list[int], by_torch: bool) -> None:
    tile: Any = np.random.default_rng(0).standard_normal(shape)
    tile = torch.from_numpy(tile) if by_torch else tile
    seen = view.see(tile)
    assert sorted(np.asarray(seen).ravel()) == sorted(np.asarray(tile).ravel())
    np.testing.assert_array_equal(view.put_back(seen), tile)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Oblique, mirrored or not, near the scanner's origin or far from it."""
    parts = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda parts: np.linalg.norm(parts) > 0.1)))
    w, x, y, z = parts / np.linalg.norm(parts)
    direction = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ) * draw(st.sampled_from([1, -1]))
    spacing = draw(st.tuples(*[st.floats(0.05, 20)] * 3))
    origin = draw(st.tuples(*[st.floats(-1000, 1000)] * 3))
    return Geometry(spacing, origin, tuple(direction.ravel().tolist()))


@pytest.mark.slow
@settings(max_examples=150)
@given(
    ending=st.sampled_from(ENDINGS),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 7)),
    largest=st.sampled_from([1, 2, 255, 256, 65535, 65536, 2**24 - 1]),
    geometry=geometries(),
    seed=st.integers(0, 9),
)
def test_a_mask_is_what_was_written_where_it_was(
    ending: str, shape: tuple[int, int, int], largest: int, geometry: Geometry, seed: int, tmp_path: Path
) -> None:
    ending = ending_for_labels(ending, largest)
    is_flat = ending in FLAT_ENDINGS
    labels = np.random.default_rng(seed).integers(0, largest + 1, (1, *shape[1:]) if is_flat else shape)
    labels.flat[0] = largest
    like = Volume(labels, None if is_flat else geometry, Path("image"))
    write_mask(tmp_path / f"mask{ending}", labels, like)
    found = read_mask(tmp_path / f"mask{ending}")
    np.testing.assert_array_equal(found.array, labels)
    require_same_grid(found, like)
    if found.geometry and like.geometry:
        np.testing.assert_allclose(found.geometry.affine, like.geometry.affine, atol=1e-3)
