"""From a verb's function to its flags: none of them is passed on but those that are typed.

So a flag at its default value counts as given, `--recipe paper --steps 100` changes one thing, and `--help` still shows
what holds where a flag is left out: a parameter's default, or `Default` in its annotation where that is UNSET.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any, TypedDict, get_type_hints

import tyro

from dinounet.arguments import UNSET, Default

OPTIONS = "options"
"""The parameter that takes all flags which may be left out."""


def to_command(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """The function as tyro needs it: called with what was typed, it returns the call to make."""
    signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
    texts = _argument_docs(function)
    kept: list[Parameter] = []
    options: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.default is Parameter.empty or parameter.kind is Parameter.POSITIONAL_ONLY:
            kept.append(parameter.replace(annotation=hints[name]))
            continue
        shown = _shown_default(parameter.default, hints[name])
        told = tyro.conf.arg(help=texts.get(name), help_behavior_hint=f"(default: {shown})")
        options[name] = Annotated[hints[name], told]

    @functools.wraps(function)
    def later(*arguments: Any, **named: Any) -> Callable[[], Any]:
        chosen = named.pop(OPTIONS, {})
        return functools.partial(function, *arguments, **named, **chosen)

    if options:
        make: Any = TypedDict  # of fields that only the function tells
        kind: Any = Annotated[make("Options", options, total=False), tyro.conf.arg(name="")]
        kept.append(Parameter(OPTIONS, Parameter.KEYWORD_ONLY, annotation=kind))
    later.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    later.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    del later.__wrapped__  # by which tyro would read the function's own
    return later


def _argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument, in one line."""
    import docstring_parser

    parsed = docstring_parser.parse(function.__doc__ or "")
    return {one.arg_name: " ".join((one.description or "").split()) for one in parsed.params}


def _shown_default(default: Any, hint: Any) -> str:
    if default is UNSET:
        default = next(extra.value for extra in typing.get_args(hint) if isinstance(extra, Default))
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
