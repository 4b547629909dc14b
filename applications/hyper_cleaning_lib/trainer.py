"""The training loop of the sample weights, with checkpoints."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilevel import Bilevel
from bilevel.experiment import checkpoint
from bilevel.experiment.memory import peak_mib
from hyper_cleaning_lib.data import Corrupted
from hyper_cleaning_lib.metrics import found, roc
from hyper_cleaning_lib.problem import SampleWeights

SAVE_EVERY = 10.0
"""Seconds between checkpoints."""

WARMUP_SOLVES = 10
"""Inner solves before the first outer step, where the inner solver is warm-started."""


@dataclass
class WeightTrainer:
    """Trains sample weights.

    Args:
        game: The game of weights and training.
        data: Its images, and which labels are wrong.
        path: The checkpoint.
        config: Plain values that identify the run.
        seconds: Time spent so far.
    """

    game: Bilevel
    data: Corrupted
    path: Path
    config: dict[str, Any]
    seconds: float = 0.0

    @property
    def leader(self) -> SampleWeights:
        """The sample weights."""
        assert isinstance(self.game.leader, SampleWeights)
        return self.game.leader

    def resume(self) -> None:
        """Continues from the checkpoint.

        Raises:
            OtherRunError: If it belongs to another run.
        """
        state = checkpoint.load(self.path)
        checkpoint.check_settings(self.path, state.get("config", {}), self.config)
        self.game.load_state_dict(state["game"])
        self.seconds = state["seconds"]
        checkpoint.set_random_state(state["random"])

    def save(self) -> None:
        """Writes the checkpoint."""
        state = {
            "config": self.config,
            "game": self.game.state_dict(),
            "seconds": self.seconds,
            "random": checkpoint.random_state(),
        }
        checkpoint.save(self.path, state)

    def train(self, iterations: int, report: Callable[[int, dict[str, float]], None]) -> None:
        """Takes outer steps.

        Args:
            iterations: Total number of outer steps.
            report: Called after each step with its number and metrics.
        """
        checkpoint.check_iterations(self.path, self.game.steps, iterations)
        saved = started = time.perf_counter()
        if self.game.steps == 0 and not self.game.solver.repeatable:
            for _ in range(WARMUP_SOLVES):
                self.game.solve(self.data.images)
        self.seconds += time.perf_counter() - started
        while self.game.steps < iterations:
            started = time.perf_counter()
            loss = float(self.game.step(self.data.images)["loss"])
            self.seconds += time.perf_counter() - started
            weights, wrong = self.leader.weights, self.data.wrong
            metrics = {"loss": loss, "auc": roc(weights, wrong).auc, **found(weights, wrong)}
            report(self.game.steps, metrics)
            if time.perf_counter() - saved > SAVE_EVERY:
                self.save()
                saved = time.perf_counter()
        self.save()

    def peak_mib(self) -> float:
        """Peak memory of an outer step, taken on a copy of the game."""
        game = copy.deepcopy(self.game)
        game.step(self.data.images)
        device = self.leader.logits.device
        return peak_mib(lambda: game.step(self.data.images), device)
