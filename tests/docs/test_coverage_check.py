"""The docs build complains of a public name that is not documented, and of nothing else."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import NoReturn

import pytest

pytest.importorskip("sphinx")
from coverage_check import complaints_about


class Told:
    """A class.

    Args:
        size: Its size.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def grow(self, by: int) -> int:
        """Grows.

        Args:
            by: How much.

        Returns:
            The new size.
        """
        return self.size + by


class Heir(Told):
    """A class whose base has told everything."""

    def grow(self, by: int) -> int:
        """Grows twice as fast."""
        return self.size + 2 * by


class Untold:
    """A class."""

    def __init__(self, size: int) -> None:
        self.size = size

    def grow(self) -> int:
        """Grows."""
        return self.size

    def shrink(self) -> None:
        self.size = 0


def silent() -> None: ...


def endless() -> NoReturn:
    """Returns nothing to tell of."""
    raise SystemExit


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("kit")
    module.Told, module.Heir, module.Untold, module.silent = Told, Heir, Untold, silent
    module.LIMIT, module.endless, module.sub = 3, endless, ModuleType("kit.sub")
    monkeypatch.setitem(sys.modules, "kit", module)
    return module


def test_documented_names_pass(module: ModuleType) -> None:
    module.__all__ = ["LIMIT", "Heir", "Told", "endless", "sub"]
    documented = ["kit.Told", "kit.sub.Heir", "kit.constants.LIMIT", "kit.endless"]
    assert not list(complaints_about("kit", documented))


def test_a_name_outside_the_reference_is_named(module: ModuleType) -> None:
    module.__all__ = ["LIMIT", "Told"]
    complaints = list(complaints_about("kit", ["kitten.LIMIT", "kit.Other.Told", "kit.Toldest"]))
    assert [complaint.split(":")[0] for complaint in complaints] == ["kit.LIMIT", "kit.Told"]


def test_what_a_docstring_lacks_is_named(module: ModuleType) -> None:
    module.__all__ = ["Untold", "silent"]
    assert list(complaints_about("kit", ["kit.Untold", "kit.silent"])) == [
        "kit.Untold: its docstring does not tell the argument size",
        "kit.Untold.grow: its docstring has no Returns",
        "kit.Untold.shrink: has no docstring",
        "kit.silent: has no docstring",
    ]


def test_a_module_has_to_say_what_is_public(module: ModuleType) -> None:
    assert list(complaints_about("kit", [])) == ["kit: has no __all__"]
