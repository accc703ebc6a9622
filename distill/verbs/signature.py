"""Options of a verb, written once: a frozen dataclass of annotated fields makes the function that typer reads."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from distill import clean
from distill.errors import UserError
from distill.wording import is_utf8

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)
else:
    Options = TypeVar("Options")

AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output, for machines")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]


def echo_json(document: object) -> None:
    """Print a document as JSON on standard output."""
    typer.echo(clean.json_text(json.dumps(document, indent=1)))


def command(run: Callable[[Options], None], options: type[Options]) -> Callable[..., None]:
    """Return a function with one parameter a field of ``options``, which calls ``run`` with an instance.

    A field is annotated as typer has it: ``Annotated[type, typer.Option(help=…)]``. A field of ``tuple[type, …]`` is an
    option that may be repeated. The help of the verb is ``run``'s docstring.
    """
    hints = get_type_hints(options, include_extras=True)
    names = [field.name for field in fields(options)]

    def verb(**values: Any) -> None:
        # Typer gives a list, or None, for what may be repeated, and None for what was left out.
        read = options(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if v is not None})
        _require_texts(read)
        arguments = sys.argv
        sys.argv = arguments[:1]  # none of ours is for an argparse in the user's files
        try:
            run(read)
        finally:
            sys.argv = arguments

    parameters = [_parameter(field, hints[field.name]) for field in fields(options)]
    verb.__name__, verb.__doc__ = run.__name__.strip("_"), run.__doc__
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = dict(zip(names, (parameter.annotation for parameter in parameters), strict=True))
    return verb


def _require_texts(options: DataclassInstance) -> None:
    """Refuse what no option means: an empty text, as a variable that is not set leaves, and a name that is no text.

    Neither onnxruntime nor a JSON document takes a name that is not UTF-8.
    """
    values = [(field.name, getattr(options, field.name)) for field in fields(options)]
    entries = [(name, entry) for name, value in values for entry in (value if isinstance(value, tuple) else (value,))]
    for name, entry in entries:
        if isinstance(entry, str) and not entry.strip():
            raise UserError(f"{name.strip('_').replace('_', '-')}: is empty; give a value, or leave it out")
    for name, entry in [*entries, ("the current folder", os.getcwd())]:
        if isinstance(entry, str | Path) and not is_utf8(str(entry)):
            raise UserError(f"{name.strip('_')}: {str(entry)!r} is not UTF-8; give the file or folder another name")


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    base, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(base) is tuple:
        repeated: Any = GenericAlias(list, (get_args(base)[0],))
        hint, default = Annotated[repeated | None, *notes], None
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
