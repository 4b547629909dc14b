"""Figures are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bilevel import BilevelError
from bilevel.experiment.style import save_png


def test_a_figure(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figure"
    save_png(path, Figure())
    assert path.read_bytes()[1:4] == b"PNG"


def test_a_figure_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BilevelError, match=r"cannot make the folder .*file.*: write to another"):
        save_png(tmp_path / "file" / "figure.png", Figure())
