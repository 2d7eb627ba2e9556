"""The recipe's fields as flags, of which none is required.

Apart from `flags.py`, since the recipe's module imports NumPy, which `--help` and `dinounet info` do without.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, cast, get_type_hints

import tyro

from dinounet.plans import RECIPES, Recipe, RecipeName


def _documentation() -> dict[str, str]:
    """The docstring below each of the recipe's fields."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(Recipe))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = ast.literal_eval(text.value)
    return found


def _flag(name: str, kind: Any, documentation: str) -> Any:
    values = {recipe: getattr(fields, name) for recipe, fields in RECIPES.items()}
    if len(set(values.values())) == 1:
        told = f"{values['default']}"
    else:
        told = ", ".join(f"{recipe}: {value}" for recipe, value in values.items())
    return Annotated[kind, tyro.conf.arg(help=f"{documentation} ({told})", help_behavior_hint="")]


RecipeFlags: Any = TypedDict(  # type: ignore[misc]
    "RecipeFlags",
    {
        name: _flag(name, kind, _documentation()[name])
        for name, kind in get_type_hints(Recipe).items()
        if name != "base"
    },
    total=False,
)
"""A flag for every field, none of them required."""

NO_CHANGES: Mapping[str, Any] = {}  # tyro wants a dict

NAMED = tyro.conf.arg(constructor=cast(Any, RecipeName))
"""On the command line a recipe has a name."""
