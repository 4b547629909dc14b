"""Fails the build when a public name is missing from the API reference or is poorly documented.

Public is what the ``__all__`` of the modules in ``coverage_check_modules`` lists. Each needs a
place in the reference and a docstring; its functions and methods, unless they override one that
has it, tell their arguments and results.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def check(app: Sphinx, exception: Exception | None) -> None:
    """Warns of each complaint; ``sphinx-build -W`` then fails."""
    if exception is None:
        documented = app.env.get_domain("py").objects
        for module in app.config.coverage_check_modules:
            for complaint in complaints_about(module, documented):
                logger.warning(complaint)


def complaints_about(module_name: str, documented: Iterable[str]) -> Iterator[str]:
    """What is missing for the public names of a module."""
    module = importlib.import_module(module_name)
    if not hasattr(module, "__all__"):
        yield f"{module_name}: has no __all__"
    for name in getattr(module, "__all__", ()):
        value, full_name = getattr(module, name), f"{module_name}.{name}"
        if inspect.ismodule(value):
            continue
        # A name may be documented where it is defined: in a module further down.
        places = re.compile(rf"{re.escape(module_name)}(\.[a-z_]+)*\.{name}")
        if not any(map(places.fullmatch, documented)):
            yield f"{full_name}: not in the API reference; add it to docs/api"
        if inspect.isclass(value):
            yield from _about_class(full_name, value)
        elif inspect.isfunction(value):
            yield from _about_function(full_name, value)


def _about_class(name: str, cls: type[Any]) -> Iterator[str]:
    # A dataclass without a docstring is given its signature as one.
    doc = cls.__doc__ or ""
    if not doc or doc.startswith(f"{cls.__name__}("):
        yield f"{name}: has no docstring"
    elif "__init__" in vars(cls):
        yield from _missing_arguments(name, doc, cls.__init__)
    for method_name, member in vars(cls).items():
        method = inspect.unwrap(getattr(member, "__func__", member))
        overrides = any(hasattr(base, method_name) for base in cls.__mro__[1:])
        if inspect.isfunction(method) and not method_name.startswith("_") and not overrides:
            yield from _about_function(f"{name}.{method_name}", method)


def _about_function(name: str, function: Any) -> Iterator[str]:
    if not function.__doc__:
        yield f"{name}: has no docstring"
        return
    yield from _missing_arguments(name, function.__doc__, function)
    nothing = inspect.signature(function).return_annotation in (None, "None", "NoReturn")
    if not nothing and not _has_line("(Returns|Yields):", function.__doc__):
        yield f"{name}: its docstring has no Returns"


def _missing_arguments(name: str, doc: str, function: Any) -> Iterator[str]:
    for argument in inspect.signature(function).parameters:
        if argument not in ("self", "cls") and not _has_line(rf"\**{argument}( \(.*\))?:", doc):
            yield f"{name}: its docstring does not tell the argument {argument}"


def _has_line(start: str, doc: str) -> bool:
    return re.search(rf"^\s*{start}", doc, re.MULTILINE) is not None


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the check."""
    app.add_config_value("coverage_check_modules", [], "env")
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}
