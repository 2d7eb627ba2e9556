"""Arguments of public functions: which were given, and whether each is of the kind that its annotation says.

An argument that is given counts as given also at its default value, as in httpx: such parameters stand at `UNSET`, and
`Default` says in their annotation what happens then. Python has no check of its own, so that a string where a number is
meant would be met somewhere deep; `checked` puts one in front, by the same annotations from which flags are made.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

from dinounet.errors import ConfigError, naming_the_extra

P = ParamSpec("P")
T = TypeVar("T")


class Unset:
    """Type of `UNSET`."""

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


UNSET: Any = Unset()
"""Stands for an argument that nobody gave."""


@dataclass(frozen=True)
class Default:
    """In an annotation: what an argument is where nobody gave it, as `--help` shows it."""

    value: Any


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that were given: all but those at `UNSET`."""
    return {name: value for name, value in arguments.items() if value is not UNSET}


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The function, whose arguments are of the kinds that it names: strings become paths, lists tuples.

    Raises:
        ConfigError: an argument is of another kind, or the function has none of that name.
        MissingPackage: the function needs a module that isn't installed.
    """
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        for name in named:
            if name not in parameters:
                raise ConfigError(_unknown(name, function.__name__, list(parameters)))
        hints = typing.get_type_hints(function)
        bound = inspect.signature(function).bind(*arguments, **named)
        for name, value in bound.arguments.items():
            if value is not UNSET:
                bound.arguments[name] = convert(value, hints[name], f"--{name.replace('_', '-')}")
        with naming_the_extra(f"dinounet {function.__name__.rstrip('_')}"):
            return function(*bound.args, **bound.kwargs)

    return call


def convert(value: Any, hint: Any, name: str) -> Any:
    """A value as the kind that an annotation says.

    Raises:
        ConfigError: it is of another kind; `name` says whose value it is.
    """
    try:
        return _convert(value, hint)
    except TypeError:
        shown = " ".join(reprlib.repr(value).split())  # of arrays the beginning, in one line
        raise ConfigError(f"{name} is {shown}; it must be {describe(hint)}") from None


def _convert(value: Any, hint: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, parts)
    if origin is Literal:
        fits = any(value == part and isinstance(value, type(part)) for part in parts)
    elif hint in (Path, str):
        is_number = hint is str and isinstance(value, Integral) and not isinstance(value, bool)  # of a dataset, a fold
        if fits := isinstance(value, str | os.PathLike) or is_number:
            value = hint(value if is_number else os.fspath(value))
    elif hint in (int, float):
        if fits := isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool):
            value = hint(value)
    elif origin in (list, tuple, Sequence):
        return _convert_items(value, tuple if origin is tuple else list, parts)
    elif origin is not None and issubclass(origin, Mapping):
        fits = isinstance(value, Mapping)
    else:
        fits = isinstance(value, types.NoneType if hint is None else origin or hint)
    if not fits:
        raise TypeError
    return value


def _first_that_fits(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        try:
            return _convert(value, hint)
        except TypeError:
            continue
    raise TypeError


def _convert_items(value: Any, kind: type, parts: Sequence[Any]) -> Any:
    """A list of paths or names may be given as a single one."""
    of_any_number = kind is list or parts[-1] is ...
    items = [value] if isinstance(value, str | os.PathLike) and of_any_number else value
    if not isinstance(items, list | tuple):
        raise TypeError
    hints = [parts[0]] * len(items) if of_any_number else parts
    if len(items) != len(hints):
        raise TypeError
    return kind(_convert(item, hint) for item, hint in zip(items, hints, strict=True))


def describe(hint: Any) -> str:
    """What an annotation asks for, in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin in (list, tuple, Sequence):
        many = origin is not tuple or parts[-1] is ...
        return (
            f"a list of which each is {describe(parts[0])}"
            if many
            else f"{len(parts)} items, each {describe(parts[0])}"
        )
    words = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "True or False", None: "None"}
    named = words | {types.NoneType: "None"}
    if hint in named:
        return named[hint]
    return "a dict" if origin is not None and issubclass(origin, Mapping) else f"a {getattr(hint, '__name__', hint)}"


def _unknown(name: str, function: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if near:
        return f"{function} has no argument {name!r}; did you mean {near[0]!r}?"
    if "changes" in known:
        return f"{function} has no argument {name!r}; fields of the recipe are given as changes={{{name!r}: ...}}"
    return f"{function} has no argument {name!r}; it has {', '.join(known)}"
