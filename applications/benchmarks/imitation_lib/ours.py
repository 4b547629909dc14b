"""Cost of the learned updaters, and of seeds that run in parallel."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gail_lib.games import Setting, make_apprentice
from rich.progress import track

from bilevel import Bilevel
from bilevel.imitation import Imitation, demonstrate, train_expert

GAIL = Path(__file__).parents[2] / "gail.py"
Record = dict[str, Any]


def updaters(rounds: int, kinds: Sequence[str]) -> list[Record]:
    """Milliseconds of an update of CartPole's θ_D, alone and with the updater's own training."""
    env = "CartPole-v1"
    pairs = demonstrate(env, train_expert(env, 1, steps=320), 1, seed=99).subsample()
    records = []
    for kind in track(kinds, "updaters"):
        setting = Setting(
            env=env,
            method="l2l-gail",
            seed=0,
            updater=kind,
            gradient_skip=0.1,
            reward="survive",
            follower_lr=None,
            follower_steps=5,
            max_kl=0.01,
            max_norm=None,
            steps=320,
            environments=16,
        )
        apprentice = make_apprentice(setting, *pairs)
        game = apprentice.game
        batch = Imitation(apprentice.sampler.collect(20), apprentice.expert)
        records.append(
            {
                "measured": "updaters of CartPole's discriminator",
                "updater": kind,
                "weights of D": apprentice.leader.follower.size,
                "parameters": sum(p.numel() for p in game.solver.parameters()),
                "update, ms": 1e3 * seconds(lambda: game.solve(batch), rounds),  # noqa: B023
                "with training, ms": 1e3 * seconds(lambda: train(game, batch), rounds),  # noqa: B023
            }
        )
    return records


def train(game: Bilevel, batch: Imitation) -> None:
    """An update, and a step of the updater's optimizer."""
    game.move_solver(game.solve(batch).value, batch)


def seconds(run: Callable[[], object], rounds: int) -> float:
    """The median over rounds, after one warm-up call."""
    spent = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent[1:])


def side_by_side(rounds: int, iterations: int) -> list[Record]:
    """Seconds of ``gail.py`` with one seed and with five, interleaved."""
    spent: dict[int, list[float]] = {1: [], 5: []}
    for _ in track(range(rounds), "seeds"):
        for count, times in spent.items():
            times.append(run_gail(count, iterations))
    ratios = [five / one for one, five in zip(spent[1], spent[5], strict=True)]
    return [
        {
            "measured": f"gail.py --method l2l-gail --iterations {iterations}",
            "one seed, s": statistics.median(spent[1]),
            "five seeds, s": statistics.median(spent[5]),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    ]


def run_gail(seeds: int, iterations: int) -> float:
    """Seconds of the whole command."""
    arguments = "--method", "l2l-gail", "--iterations", iterations, "--seeds", seeds
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, GAIL, *arguments, "--out", folder]
        begun = time.perf_counter()
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun
