"""Cost of the learned updaters, and of seeds that run in parallel."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from gail import Args, plan_runs
from gail_lib.games import make_trainer
from rich.progress import track
from timing import Turn, interleaved, spread

from bilevel import Bilevel
from bilevel.imitation import ImitationBatch, demonstrate, train_expert

GAIL = Path(__file__).parents[2] / "gail.py"
Record = dict[str, Any]


def updaters(rounds: int, kinds: Sequence[str]) -> list[Record]:
    """Milliseconds of an update of CartPole's θ_D, alone and with the updater's own training."""
    env = "CartPole-v1"
    pairs = demonstrate(env, train_expert(env, 1, steps=320), 1, seed=99).subsample()
    records = []
    for kind in track(kinds, "updaters"):
        args = Args(env=(env,), method=("l2l-gail",), updater=kind, steps=320)
        (setting,) = plan_runs(args)
        trainer = make_trainer(setting, *pairs)
        game = trainer.game
        batch = ImitationBatch(trainer.sampler.collect(20), trainer.expert)
        records.append(
            {
                "measured": "updaters of CartPole's discriminator",
                "updater": kind,
                "weights of D": trainer.leader.follower.size,
                "parameters": sum(p.numel() for p in game.solver.parameters()),
                "update, ms": 1e3 * seconds(lambda: game.solve(batch), rounds),  # noqa: B023
                "with training, ms": 1e3 * seconds(lambda: train(game, batch), rounds),  # noqa: B023
            }
        )
    return records


def train(game: Bilevel, batch: ImitationBatch) -> None:
    """An update, and a step of the updater's optimizer."""
    game.move_solver(game.solve(batch).value, batch)


def seconds(run: Turn, rounds: int) -> float:
    """The median over rounds, after one warm-up call."""
    run()
    return median(interleaved({"": run}, range(rounds))[""])


def side_by_side(rounds: int, iterations: int) -> list[Record]:
    """Seconds of ``gail.py`` with one seed and with five, interleaved."""
    turns = {count: partial(run_gail, count, iterations) for count in (1, 5)}
    spent = interleaved(turns, track(range(rounds), "seeds"))
    return [
        {
            "measured": f"gail.py --method l2l-gail --iterations {iterations}",
            "one seed, s": median(spent[1]),
            "five seeds, s": median(spent[5]),
            **spread("ratio", spent[5], spent[1]),
        }
    ]


def run_gail(seeds: int, iterations: int) -> None:
    """Runs the whole command."""
    arguments = "--method", "l2l-gail", "--iterations", iterations, "--seeds", seeds
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, GAIL, *arguments, "--out", folder]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
