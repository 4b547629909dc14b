"""Command lines by ``argparse``, for use without tyro: plain types, and help without descriptions.

A command line gives the same arguments as with tyro, except that a negative number with an exponent
needs an equals sign: ``--step=-1e-3``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from bilevel.errors import BilevelError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Arguments = TypeVar("Arguments", bound="DataclassInstance")


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise BilevelError(f"{message}; --help tells the arguments")


def read(arguments: type[Arguments]) -> tuple[Arguments, list[str]]:
    """Reads the command line into a dataclass.

    Args:
        arguments: The dataclass. Its fields are ``str``, ``int``, ``float``, ``Path``, ``bool`` or
            a ``Literal`` of strings; all but ``bool`` also as ``tuple[X, ...]`` and ``X | None``.

    Returns:
        The parsed arguments, and the unknown ones.

    Raises:
        BilevelError: If a value is missing or bad, or a field has another type.
    """
    parser = _Parser(
        description=(arguments.__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # the dataclass has the defaults
    )
    types = get_type_hints(arguments)
    for field in fields(arguments):
        default = field.default
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            required=default is MISSING and field.default_factory is MISSING,
            help=f"default: {default}".replace("%", "%%") if default is not MISSING else None,
            **_settings(field.name, types[field.name]),
        )
    # Accepts --a_b for --a-b, as tyro does.
    dashed = [re.sub("^--[^=]+", lambda flag: flag[0].replace("_", "-"), w) for w in sys.argv[1:]]
    given, unknown = parser.parse_known_args(dashed)
    return arguments(**{name: _value(words) for name, words in vars(given).items()}), unknown


def _settings(name: str, kind: Any) -> dict[str, Any]:
    """The keyword arguments of ``add_argument`` for a type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    settings: dict[str, Any] = {}
    parts = [part for part in get_args(kind) if part is not NoneType]
    optional = get_origin(kind) in (Union, UnionType) and len(parts) == 1
    inner = parts[0] if optional else kind
    if get_origin(inner) is tuple and get_args(inner)[1:] == (...,):
        inner = get_args(inner)[0]
        settings["nargs"] = "*"
    if get_origin(inner) is Literal and all(isinstance(word, str) for word in get_args(inner)):
        settings["choices"] = (*get_args(inner), *([None] if optional else []))
        inner = str
    if inner not in (str, int, float, Path):
        raise BilevelError(
            f"argument {name} is of type {kind}: argparse reads plain types only; install tyro"
        )
    return settings | {"type": _or_none(inner) if optional else inner}


def _or_none(kind: type[Any]) -> Callable[[str], Any]:
    """A converter to ``kind | None``."""

    def convert(word: str) -> Any:
        return None if word == "None" else kind(word)

    convert.__name__ = kind.__name__  # for argparse's error messages
    return convert


def _value(found: Any) -> Any:
    """A field's value: argparse returns lists for tuples."""
    if found == [None]:
        return None
    return tuple(found) if isinstance(found, list) else found
