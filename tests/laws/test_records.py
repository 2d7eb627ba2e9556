"""What a record refuses, and in which words; whatever a file holds, reading it gives a record or one sentence."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from dinounet.errors import ConfigError, DataError, UserError
from dinounet.io import write_json
from dinounet.schema.base import Migrations, json_schema, read_record, record, to_record


@record
class Circle:
    """A shape."""

    radius: Annotated[float, Field(gt=0)]
    """In mm."""

    architecture: Literal["circle"] = "circle"


@record
class Polygon:
    corners: tuple[tuple[int, int], ...]
    architecture: Literal["polygon"] = "polygon"

    def __post_init__(self) -> None:
        if len(self.corners) < 3:
            raise ConfigError(f"a polygon has {len(self.corners)} corners; give it three at least")


def rename_size(content: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in content.items() if key != "size"}, "patch": content["size"] * 2}


@record
class Inner:
    patch: tuple[int, int]
    format: Literal[3] = 3
    MIGRATIONS: ClassVar[Migrations] = {1: rename_size, 2: lambda content: {**content, "patch": content["patch"][::-1]}}
    PLACE: ClassVar[str] = "inner"


@record
class Outer:
    inner: Inner
    shape: Annotated[Circle | Polygon, Field(discriminator="architecture")]
    more: dict[str, Inner] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    told: dict[str, str | int | None] = dataclasses.field(default_factory=dict)


OUTER = Outer(
    Inner((3, 4)), Circle(2), {"a": Inner((5, 6))}, ("x",), {"depths": [1, 2]}, {"learned": 3, "by": None, "of": "y"}
)
CONTENT = json.loads(json.dumps(dataclasses.asdict(OUTER)))


def edited(value: Any, *path: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    inside: Any = content
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return content


def test_a_record_of_records_is_what_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "outer.json", OUTER)
    assert read_record(Outer, tmp_path / "outer.json", what="shapes") == OUTER
    jsonschema.validate(CONTENT, json_schema(Outer))
    assert "In mm." in json.dumps(json_schema(Outer))


def test_older_formats_are_migrated_wherever_they_stand() -> None:
    old = edited({"size": [4], "format": 1}, "inner")
    old["more"] = {"b": {"patch": [8, 7], "format": 2}}
    found = to_record(Outer, old, where="o.json")
    assert (found.inner, found.more) == (Inner((4, 4)), {"b": Inner((7, 8))})
    assert to_record(Inner, {"patch": [1, 2]}, where="by hand") == Inner((1, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "o.json holds [1]; it must be an object"),
        (edited(1, "nams"), "o.json has the unknown key 'nams'; did you mean 'names'?"),
        (edited(1, "more", "a", "pach"), "o.json has the unknown key 'more.a.pach'; did you mean 'patch'?"),
        (edited(1, "shape", "radios"), "o.json has the unknown key 'shape.radios'; did you mean 'radius'?"),
        (edited({"format": 3}, "inner"), "o.json lacks inner.patch; add it"),
        (edited([3], "inner", "patch"), "o.json lacks inner.patch[1]; add it"),
        (edited([3, "a"], "inner", "patch"), "o.json: inner.patch[1] is 'a'; it must be a whole number"),
        (edited([3, 4.5], "inner", "patch"), "o.json: inner.patch[1] is 4.5; it must be a whole number"),
        (edited(True, "inner", "patch", 0), "o.json: inner.patch[0] is True; it must be a whole number"),
        (edited("3", "inner", "patch", 0), "o.json: inner.patch[0] is '3'; it must be a whole number"),
        (edited(5, "inner", "patch"), "o.json: inner.patch is 5; it must be a list"),
        (edited([1, 2, 3], "inner", "patch"), "o.json: inner.patch is [1, 2, 3]: Tuple should have at most 2 items"),
        (edited([], "inner"), "o.json: inner is []; it must be an object"),
        (edited(0, "shape", "radius"), "o.json: shape.radius is 0; it must be greater than 0"),
        (edited(float("inf"), "shape", "radius"), "o.json: shape.radius is inf; it must be a finite number"),
        (edited({"x": float("nan")}, "options"), "o.json holds a number that is NaN or infinite; correct it"),
        (edited("cube", "shape", "architecture"), "architecture is 'cube'; it must be 'circle' or 'polygon'"),
        (edited({"radius": 1}, "shape"), "o.json lacks shape.architecture; add it"),
        (edited([], "told", "by"), "o.json: told.by is []; it must be a string or a whole number"),
        (
            edited({"architecture": "polygon", "corners": [[1, 2]]}, "shape"),
            "o.json: a polygon has 1 corners; give it three at least",
        ),
        (edited(4, "inner", "format"), "inner has the format 4, of a newer dinounet than this one, which reads 3"),
        (edited(0, "inner", "format"), "o.json: inner has the format 0, which this dinounet can't read"),
        (edited([3], "inner", "format"), "o.json: inner has the format [3], which this dinounet can't read"),
        (edited(1, "inner", "format"), "o.json: inner has the format 1 but not its keys (KeyError 'size')"),
        (edited(json.loads("[" * 900 + "]" * 900), "options", "x"), "o.json"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(content: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        to_record(Outer, content, where="o.json")
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": ("a", 1)}, "inner.patch[0] is 'a'; it must be a whole number"),
        ({"patch": (1, 2), "ptch": 3}, "inner has no field 'ptch'; did you mean 'patch'?"),
        ({}, "inner lacks patch; add it"),
        ({"patch": (1, 2), "format": 2}, "inner.format is 2; it must be 3"),
    ],
)
def test_a_caller_in_python_is_told_the_same(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Inner(**arguments)
    assert str(caught.value) == message
    with pytest.raises(dataclasses.FrozenInstanceError):
        OUTER.names = ()  # type: ignore[misc]


def test_files_of_others_are_limited_in_size(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_text(json.dumps(CONTENT))
    assert read_record(Outer, path, what="shapes", largest=10_000) == OUTER
    with pytest.raises(DataError, match=r"large\.json has more than 100 bytes, too many for shapes; get it again"):
        read_record(Outer, path, what="shapes", largest=100)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=4), parts, max_size=3),
)


@given(st.data())
@pytest.mark.slow
def test_whatever_a_file_holds_reading_it_gives_a_record_or_one_sentence(data: st.DataObject) -> None:
    content: Any = copy.deepcopy(CONTENT)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, inside = None, content
        while isinstance(inside, dict | list) and inside and data.draw(st.booleans()):
            holder, key = (
                inside,
                data.draw(st.sampled_from(range(len(inside)) if isinstance(inside, list) else sorted(inside))),
            )
            inside = holder[key]
        if holder is None:
            content = data.draw(anything)
        elif data.draw(st.booleans()):
            holder[key] = data.draw(anything | st.integers(0, 4))
        else:
            del holder[key]
    try:
        found = to_record(Outer, content, where="o.json")
    except UserError as error:
        assert "o.json" in str(error) and "\n" not in str(error)
    else:
        assert to_record(Outer, json.loads(json.dumps(dataclasses.asdict(found))), where="o.json") == found
