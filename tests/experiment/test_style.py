"""Figures are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from bilevel import BilevelError
from bilevel.experiment.style import STYLE, save_png


def test_a_figure(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figure"
    save_png(path, Figure())
    assert path.read_bytes()[1:4] == b"PNG"


def test_a_figure_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BilevelError, match=r"cannot make the folder .*file.*: write to another"):
        save_png(tmp_path / "file" / "figure.png", Figure())


def test_a_name_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure()
        figure.text(0.5, 0.5, r"from $HOME\runs to $OUT")
        save_png(tmp_path / "figure.png", figure)
    assert (tmp_path / "figure.png").exists()
