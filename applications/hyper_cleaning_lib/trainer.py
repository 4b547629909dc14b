"""Weights learned step by step, so that it can be stopped and resumed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilevel import Bilevel, BilevelError
from bilevel.experiment import checkpoint
from bilevel.experiment.memory import peak_mib
from hyper_cleaning_lib.data import Corrupted
from hyper_cleaning_lib.metrics import found, roc
from hyper_cleaning_lib.problem import SampleWeights

EVERY = 10.0
"""Seconds between two checkpoints."""

AHEAD = 10
"""Solves before the first move, where each solve goes on from the last one's answer."""


@dataclass
class Learning:
    """A game of weights and training that is played for some steps.

    Args:
        game: The players.
        data: What they read, and what they do not know.
        path: The checkpoint's file.
        config: Plain values that tell this run from others.
        seconds: What was spent so far.
    """

    game: Bilevel
    data: Corrupted
    path: Path
    config: dict[str, Any]
    seconds: float = 0.0

    @property
    def leader(self) -> SampleWeights:
        """Whose weights are learned."""
        assert isinstance(self.game.leader, SampleWeights)
        return self.game.leader

    def resume(self) -> None:
        """Goes on from the checkpoint.

        Raises:
            BilevelError: If it is of another run.
        """
        state = checkpoint.load(self.path)
        written = state.get("config", {})
        for name, value in self.config.items():
            if written.get(name) != value:
                raise BilevelError(
                    f"{self.path} is a run with {name} = {written.get(name)}, this one has "
                    f"{value}: give the same arguments, or leave out --resume"
                )
        self.game.load_state_dict(state["game"])
        self.seconds = state["seconds"]

    def save(self) -> None:
        """Writes the checkpoint."""
        state = {"config": self.config, "game": self.game.state_dict(), "seconds": self.seconds}
        checkpoint.save(self.path, state)

    def learn(self, iterations: int, report: Callable[[int, dict[str, float]], None]) -> None:
        """Plays until so many steps are done.

        Args:
            iterations: Steps in all.
            report: Called after each with its number and what it came to.
        """
        saved = begun = time.perf_counter()
        if self.game.steps == 0 and not self.game.solver.repeatable:
            for _ in range(AHEAD):
                self.game.solve(self.data.images)
        self.seconds += time.perf_counter() - begun
        while self.game.steps < iterations:
            begun = time.perf_counter()
            loss = float(self.game.step(self.data.images)["loss"])
            self.seconds += time.perf_counter() - begun
            weights, wrong = self.leader.logits.detach().sigmoid(), self.data.wrong
            metrics = {"loss": loss, "auc": roc(weights, wrong).area, **found(weights, wrong)}
            report(self.game.steps, metrics)
            if time.perf_counter() - saved > EVERY:
                self.save()
                saved = time.perf_counter()
        self.save()

    def peak_mib(self) -> float:
        """The memory of a step; the game does not move."""
        game = copy.deepcopy(self.game)
        game.step(self.data.images)
        device = self.leader.logits.device
        return peak_mib(lambda: game.step(self.data.images), device)
