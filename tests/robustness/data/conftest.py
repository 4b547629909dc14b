"""A small image folder, and what is decoded of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bilevel.robustness.data import cache, decoding
from tests.images import write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(tmp_path / "pets" / "train")
    write_tree(tmp_path / "pets" / "test", count=3, seed=5000)
    return tmp_path / "pets"


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the tests out of the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bilevel"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded from now on."""
    seen: list[Path] = []
    pixels = decoding.pixels

    def spy(content: bytes, path: Path, side: int | None) -> cache.Bytes:
        seen.append(path)
        return pixels(content, path, side)

    monkeypatch.setattr(decoding, "pixels", spy)
    return seen
