"""Trajectories as a GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib import rc_context
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from bilevel.experiment.files import atomic_write
from bilevel.experiment.style import STYLE
from bilevel.games import Game
from limit_cycles_lib.panels import COLOR, half_width, portrait
from limit_cycles_lib.play import Run

FRAMES = 120


def animate(path: Path, game: Game, runs: Sequence[Run]) -> None:
    """Animates the players of every schedule along their trajectories.

    Args:
        path: The GIF file.
        game: A game of scalars x and y.
        runs: The runs of one setting.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 4.4), layout="constrained")
        axis = figure.subplots()
        portrait(axis, game, runs, half_width(runs))
        for line in axis.lines:
            line.set_alpha(0.25)
        for arrowhead in list(axis.texts):
            arrowhead.remove()
        players = [
            axis.plot([], [], "o", color=COLOR[run.schedule], label=run.schedule)[0] for run in runs
        ]
        figure.legend(loc="outside right upper", frameon=False)

        def draw(frame: int) -> Sequence[Artist]:
            step = runs[0].setting.steps * frame // (FRAMES - 1)
            for player, run in zip(players, runs, strict=True):
                row = min(int((run.at < step).sum()), len(run.at) - 1)
                player.set_data(*run.path[row].reshape(2, 1).tolist())
            axis.set_title(f"{runs[0].setting.title}: step {step:,}", loc="left")
            return players

        movie = FuncAnimation(figure, draw, frames=FRAMES)
        with atomic_write(path) as part, TemporaryDirectory(dir=part.parent) as folder:
            whole = Path(folder) / path.name  # whose suffix tells Pillow the format
            movie.save(whole, writer=PillowWriter(fps=20), dpi=100)
            whole.replace(part)
