"""What is packaged: its version, and the pages that the documentation includes."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

import bilevel

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.*?)\]", changelog, re.MULTILINE)[0] == bilevel.__version__


def test_the_version_is_that_of_what_is_installed() -> None:
    try:
        installed = importlib.metadata.version("bilevel")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert installed == bilevel.__version__


def test_the_source_archive_has_the_pages_that_the_documentation_includes() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
    included = {name for page in pages for name in re.findall(r"\{include\} \.\.(/\w+\.md)", page)}
    assert included > {"/README.md"}  # which is always in
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [name for name in included - {"/README.md"} if f'"{name}"' not in listed] == []
