"""What every test and doctest starts from: one thread a worker, a seed, and torch by name."""

from __future__ import annotations

import os
from typing import Any

# Before torch and numpy are there, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

# Before pytest imports single files for their examples, outside of their packages.
import bilevel.imitation  # noqa: F401
import bilevel.robustness  # noqa: F401

settings.register_profile("shared", deadline=None)  # on a busy machine any example may be slow
settings.load_profile("shared")


def pytest_collectstart() -> None:
    """What a module draws on import does not depend on the modules that were imported before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A test gives the same result alone, in any order and on any worker."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _packages_for_examples(request: pytest.FixtureRequest) -> None:
    """An example is skipped where the optional package that it imports is not installed."""
    if isinstance(request.node, pytest.DoctestItem) and "foolbox" in request.node.dtest.docstring:
        pytest.importorskip("foolbox")


@pytest.fixture(autouse=True)
def _names_for_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch
