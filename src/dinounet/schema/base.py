"""Records: dataclasses that check themselves, and the JSON files that hold them.

    @record
    class Plan:
        recipe: Recipe
        format: Literal[2] = 2
        MIGRATIONS: ClassVar[Migrations] = {1: embed_labels}  # by the format that each reads
        PLACE: ClassVar[str] = "plan"  # how messages to callers in Python name it; by default the class

Checks, places in messages and JSON Schema are pydantic's, from the annotations alone. A number is never read from text,
nor a whole one from a fraction. Whatever is wrong is one sentence, for a file as for a caller in Python.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from typing_extensions import dataclass_transform

from dinounet.errors import ConfigError, DataError
from dinounet.io import read_json

T = TypeVar("T")

Positive: TypeAlias = Annotated[int, Field(ge=1)]

Migrations = dict[int, Callable[[dict[str, Any]], dict[str, Any]]]
"""By the format that it reads: what makes a file's content one of the next format, but for the number itself."""

LARGEST_JSON = 1 << 24
"""Bytes that a file of somebody else's may have to be read as a record; those of real bundles have some thousand."""

TAG = "architecture"
"""Field whose value tells the records of a union apart."""

WORDS = {
    "Input should be ": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid array": "a list",
    "a valid ": "a ",
    "'": "",
}
"""In pydantic's messages, what stands for what, in this order."""

CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def record(kind: type[T]) -> type[T]:
    """Make a class a frozen dataclass of which every field has the type and range that its annotation says.

    Raises:
        ConfigError: from the constructor, if a field has not, or isn't there.
    """
    made: Any = dataclass(frozen=True, config=CONFIG)(kind)
    construct = made.__init__

    @functools.wraps(construct)
    def init(self: Any, *arguments: Any, **named: Any) -> None:
        try:
            construct(self, *arguments, **named)
        except ValidationError as error:
            raise ConfigError(
                _describe(error.errors(include_url=False), made, None, getattr(made, "PLACE", made.__name__))
            ) from None

    made.__init__ = init
    return made


def read_record(kind: type[T], path: Path, *, what: str, largest: int | None = None) -> T:
    """The record in a JSON file, migrated if an older version wrote it.

    Args:
        kind: class of the record.
        path: the file.
        what: what it should be, for the message if it is none.
        largest: bytes that it may have, for files of somebody else's; None: any number.

    Raises:
        DataError: the file is missing, too large or no JSON.
        ConfigError: its format is unknown, or a key is unknown (the nearest is named), missing, or wrong.
    """
    if largest is not None and path.is_file() and path.stat().st_size > largest:
        raise DataError(f"{path} has more than {largest:,} bytes, too many for {what}; get it again")
    return to_record(kind, read_json(path, what=what), where=str(path))


def to_record(kind: type[T], content: Any, *, where: str) -> T:
    """The record that JSON's content stands for, read as strictly; `where` begins the message of an error.

    Raises:
        ConfigError: as `read_record`.
    """
    try:
        content = _to_newest(kind, content, where, "")
        text = json.dumps(content)  # since pydantic takes lists for tuples from JSON alone
        found = TypeAdapter(kind).validate_json(text)
        json.dumps(content, allow_nan=False)  # in fields that may hold anything
        return found
    except ValidationError as error:
        raise ConfigError(_describe(error.errors(include_url=False), kind, content, where)) from None
    except RecursionError:
        raise ConfigError(f"{where} nests lists or objects too deeply; correct it") from None
    except ValueError:
        raise ConfigError(f"{where} holds a number that is NaN or infinite; correct it") from None
    except ConfigError as error:  # of what two fields say together, which the record checks itself
        told = str(error)
        raise ConfigError(told if told.startswith(where) else f"{where}: {told}") from None


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON Schema of the newest format of a record's file; docstrings are its descriptions."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(kind).json_schema()}


def field_docstrings(kind: Any) -> dict[str, str]:
    """What stands below each field of a record, by its name."""
    return {name: field.description or "" for name, field in kind.__pydantic_fields__.items()}


def _to_newest(hint: Any, content: Any, where: str, place: str) -> Any:
    """The content with every record in it of today's format, and of known keys alone."""
    parts = typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(content, Mapping):
        content = _migrate(hint, content, f"{where}: {place}" if place else where)
        hints = typing.get_type_hints(hint)
        names = [field.name for field in dataclasses.fields(hint)]
        for key in content:
            if key not in names:
                raise ConfigError(f"{where} has the unknown key {_join(place, key)!r}; {_nearest(key, names)}")
        return {key: _to_newest(hints[key], part, where, _join(place, key)) for key, part in content.items()}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        records = [part for part in parts if dataclasses.is_dataclass(part)]
        others = [part for part in records if len(records) > 1 and _is_of_another_tag(typing.cast(type, part), content)]
        for part in parts:
            content = content if part in others else _to_newest(part, content, where, place)
    elif isinstance(content, Mapping) and len(parts) == 2:
        return {key: _to_newest(parts[1], part, where, _join(place, key)) for key, part in content.items()}
    elif isinstance(content, list) and parts:
        return [_to_newest(parts[0], part, where, f"{place}[{index}]") for index, part in enumerate(content)]
    return content


def _is_of_another_tag(kind: type, content: Any) -> bool:
    return isinstance(content, Mapping) and content.get(TAG) != getattr(kind, TAG)


def _migrate(kind: Any, content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The content of a record, of whatever format, in today's; where none is named it is taken for today's."""
    newest = getattr(kind, "format", None)
    while (found := content.get("format", newest)) != newest:
        if isinstance(found, int) and isinstance(newest, int) and found > newest:
            raise ConfigError(
                f"{where} has the format {found}, of a newer dinounet than this one, which reads {newest}; upgrade "
                "dinounet (pip install -U dinounet)"
            )
        steps: Migrations = getattr(kind, "MIGRATIONS", {})
        if not isinstance(found, int) or found not in steps:
            raise ConfigError(f"{where} has the format {found!r}, which this dinounet can't read; create it again")
        try:
            content = {**steps[found](dict(content)), "format": found + 1}
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"{where} has the format {found} but not its keys ({type(error).__name__} {error}); create it again"
            ) from None
    return content


def _describe(errors: Sequence[ErrorDetails], kind: type, content: Any, where: str) -> str:
    """The first of pydantic's errors in a sentence, and what else would do at the same place."""
    first = errors[0]
    place, key, value = _place(first["loc"], content), first["loc"][-1:], first["input"]
    name = f"{where}.{place}" if content is None else f"{where}: {place}"
    if first["type"] == "unexpected_keyword_argument":
        names = [field.name for field in dataclasses.fields(typing.cast(Any, kind))]
        return f"{where} has no field {str(key[0])!r}; {_nearest(str(key[0]), names)}"
    if first["type"] in ("missing", "union_tag_not_found"):
        return f"{where} lacks {place if first['type'] == 'missing' else _join(place, TAG)}; add it"
    if first["type"] == "union_tag_invalid":
        return f"{name}.{TAG} is {value[TAG]!r}; it must be {first['ctx']['expected_tags'].replace(', ', ' or ')}"
    said = " or ".join(dict.fromkeys(error["msg"] for error in errors if _place(error["loc"], content) == place))
    wanted = functools.reduce(lambda text, word: text.replace(word, WORDS[word]), WORDS, said)
    shown = " ".join(reprlib.repr(value).split())
    if not place:
        return f"{where} holds {shown}; it must be {wanted}"
    return f"{name} is {shown}; it must be {wanted}" if "Input should be" in said else f"{name} is {shown}: {wanted}"


def _place(loc: Sequence[str | int], content: Any) -> str:
    """Where an error is, as a path of keys; pydantic's also names members of unions, which content doesn't hold."""
    place = ""
    for index, key in enumerate(loc):
        inside = isinstance(content, Mapping) and key in content
        if isinstance(key, int):
            place += f"[{key}]"
            content = content[key] if isinstance(content, list | tuple) and key < len(content) else None
        elif inside or (content is None and index == 0) or (isinstance(content, Mapping) and index == len(loc) - 1):
            place = _join(place, key)
            content = content[key] if inside else None
    return place


def _join(place: str, key: str) -> str:
    shown = key if key.isprintable() else repr(key)
    return f"{place}.{shown}" if place else shown


def _nearest(key: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    return f"did you mean {near[0]!r}?" if near else "leave it out"
