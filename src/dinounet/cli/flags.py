"""A verb's command line, made from its Python function: the annotations are its flags, the docstring their help.

Positional-only parameters are words; all others are flags, of which only those that are typed are passed on. So a flag
at its default value counts as given, `--recipe paper --steps 100` changes one thing, and `--help` still shows what
holds where a flag is left out: a parameter's default, or `Default` in its annotation where that is UNSET. `output` is
also `-o`, and `changes` stands for a flag for each field of the recipe.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import inspect
import shutil
import textwrap
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import docstring_parser

from dinounet.errors import ConfigError
from dinounet.schema.arguments import UNSET, Default, describe

METAVARS = {int: "INT", float: "NUMBER", Path: "PATH", str: "TEXT"}
"""What help calls the values of each type that is read from a word."""


class Parser(argparse.ArgumentParser):
    """A parser that raises a ConfigError where argparse's prints two lines and ends the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parse_call(function: Callable[..., Any], verb: str, words: Sequence[str]) -> Callable[[], Any]:
    """The call of a verb's function that the words after the verb ask for.

    Raises:
        ConfigError: a word or a flag is missing, unknown or wrong.
        SystemExit: they ask for help, which was printed.
    """
    parser = Parser(
        prog=f"dinounet {verb}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parameters = inspect.signature(function).parameters
    _add_parameters(parser, function)
    recipe = _add_recipe(parser) if "changes" in parameters else []
    parsed, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        flags = [f"--{name.replace('_', '-')}" for name in (*parameters, *recipe)]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
    given = vars(parsed)
    if changes := {name: given.pop(name) for name in recipe if name in given}:
        given["changes"] = changes
    positional = [given.pop(name) for name, one in parameters.items() if _is_word(one) and name in given]
    return functools.partial(function, *positional, **given)


def _is_word(parameter: Parameter) -> bool:
    return parameter.kind is Parameter.POSITIONAL_ONLY


def _add_parameters(parser: Parser, function: Callable[..., Any]) -> None:
    """Describe the function and its parameters to the parser."""
    documented, hints = docstring_parser.parse(function.__doc__ or ""), get_type_hints(function, include_extras=True)
    texts = {one.arg_name: one.description or "" for one in documented.params}
    width = shutil.get_terminal_size().columns - 2
    paragraphs = f"{documented.short_description}\n\n{documented.long_description or ''}".strip().split("\n\n")
    parser.description = "\n\n".join(textwrap.fill(" ".join(text.split()), width) for text in paragraphs)
    usage = [parser.prog]
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "changes":
            continue
        options, is_required = _reading(name, hints[name]), parameter.default is Parameter.empty
        text = texts.get(name, "") + _tell_default(parameter.default, hints[name])
        if _is_word(parameter):
            many = options.setdefault("nargs", None if is_required else "?") == "*"
            word = options["metavar"] = name.upper()
            parser.add_argument(name, **options | {"nargs": "+"} if many else options, help=_escape(text))
            usage.append((f"{word} ..." if many else word) if is_required else f"[{word}]")
            continue
        action = _add_flag(parser, name, options, text, required=is_required)
        usage += [f"{action.option_strings[0]} {action.metavar}"] if is_required else []
    parser.usage = " ".join([*usage, "[options]"])


def _add_recipe(parser: Parser) -> list[str]:
    """Add a flag for each field of the recipe but its name, and return their names.

    Records are imported here, since they import pydantic, which most verbs' help does without.
    """
    from dinounet.schema.base import field_docstrings
    from dinounet.schema.recipe import RECIPES, Recipe

    group = parser.add_argument_group("recipe", "Overrides of the named recipe.")
    hints = get_type_hints(Recipe)
    texts = {name: text for name, text in field_docstrings(Recipe).items() if name != "base"}
    for name in texts:
        values = {recipe: getattr(record, name) for recipe, record in RECIPES.items()}
        if len(set(values.values())) == 1:
            told = _tell_default(values["default"], hints[name])
        else:
            told = f" ({', '.join(f'{recipe}: {value}' for recipe, value in values.items())})"
        _add_flag(group, name, _reading(name, hints[name]), texts[name] + told)
    return list(texts)


def _add_flag(group: Any, name: str, options: dict[str, Any], text: str, required: bool = False) -> argparse.Action:
    """Add a flag to a parser or a group of it."""
    flags = [*(["-o"] if name == "output" else []), f"--{name.replace('_', '-')}"]
    action: argparse.Action = group.add_argument(*flags, dest=name, help=_escape(text), required=required, **options)
    return action


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("%", "%%")


def _reading(name: str, hint: Any) -> dict[str, Any]:
    """How argparse reads a parameter of this annotation."""
    kinds = _kinds(hint)
    if kinds == [bool]:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kinds[0]) not in (list, tuple):
        shown = "|".join("|".join(get_args(kind)) or METAVARS[kind] for kind in kinds)
        return {"type": functools.partial(_read, kinds, f"--{name.replace('_', '-')}"), "metavar": shown}
    first, *others = get_args(kinds[0])
    options = _reading(name, first)
    if get_origin(kinds[0]) is tuple and Ellipsis not in others:
        return {**options, "nargs": 1 + len(others)}
    return {**options, "nargs": "*", "action": "extend"}


def _kinds(hint: Any) -> list[Any]:
    """The parts of an annotation that can be read from words: neither None nor a class of ours."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kinds(parts[0])
    if origin in (Union, types.UnionType):
        return [kind for part in parts for kind in _kinds(part)]
    return [hint] if origin in (Literal, list, tuple) or hint is bool or hint in METAVARS else []


def _read(kinds: Sequence[Any], flag: str, word: str) -> Any:
    """A word as the first of these kinds that it can be."""
    for kind in kinds:
        if get_origin(kind) is not Literal:
            with suppress(ValueError):
                return kind(word)
        elif word in get_args(kind):
            return word
    raise ConfigError(f"{flag} is {word!r}; it must be {' or '.join(map(describe, kinds))}")


def _tell_default(default: Any, hint: Any) -> str:
    """The default in brackets, if there is one to tell."""
    if default is UNSET:
        default = next(extra.value for extra in get_args(hint) if isinstance(extra, Default))
    is_worth_telling = default is not False and default not in (None, (), Parameter.empty)
    return f" (default: {default})" if is_worth_telling else ""
