"""Training a classifier against a follower by epochs, so that it can be stopped and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from bilevel import Bilevel, MetricLog, checkpoint, distributed, pgm
from bilevel.batchnorm import average_statistics
from bilevel.errors import BilevelError, NonFiniteError
from bilevel.robustness.averaging import Averaged
from bilevel.robustness.batches import shuffled_batches
from bilevel.robustness.data import Splits
from bilevel.robustness.evaluation.accuracy import accuracy
from bilevel.robustness.methods import TRAINING_STEP
from bilevel.robustness.recipe import Recipe
from bilevel.robustness.speed import Precision, computing, enough_memory
from bilevel.robustness.threats import Linf

WINDOW = 50
"""Steps between two readings of the metrics: each is one device synchronisation."""


@dataclass
class Progress:
    """Where a run stands; with the networks and the optimizers it is all that a checkpoint holds.

    Args:
        epoch: The epoch under way, from 0.
        position: Batches of it that are done.
        seconds: Training time of each finished epoch, without evaluation.
        elapsed: Training seconds of the epoch under way.
        history: A record for each finished epoch.
        best: The highest validation accuracy so far.
        best_epoch: The epoch that had it.
    """

    epoch: int = 0
    position: int = 0
    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -1.0
    best_epoch: int = -1


class Trainer:
    """Runs the epochs of a game on images and keeps the weights that validate best.

    Epochs are compared on the validation split; the test set has no say (the paper's code chooses
    on it). Many processes train on their shares of each batch and have, up to rounding, the weights
    that one process would have; up to its statistics, where batch normalisation has its own.

    Args:
        game: The game, see :func:`make_game`; its leader has the classifier as ``model``.
        data: The images, on the training device.
        recipe: Epochs, batch size, learning rates and augmentation.
        seed: Of the order of the batches and their augmentation.
        path: The checkpoint's file.
        config: Plain values that tell this run from others; a checkpoint of another run is refused.
        choose_by: The record that the best epoch has the highest of: ``"validation_pgm"``, accuracy
            under PGM-10, or ``"validation_clean"`` for a method that does not defend.
        precision: See :func:`~bilevel.robustness.computing`; evaluation is not affected.
        report: Called with the number of steps done and metrics, at each reading of the metrics and
            after each epoch; it may save the run, and end it by raising.
        save_every: Seconds after which a checkpoint is written within an epoch.

    Attributes:
        averaged: The leader with its averaged weights, which are validated and kept, where the
            recipe asks for them.
    """

    def __init__(
        self,
        game: Bilevel,
        data: Splits,
        recipe: Recipe,
        *,
        seed: int,
        path: Path,
        config: dict[str, Any],
        choose_by: Literal["validation_pgm", "validation_clean"] = "validation_pgm",
        precision: Precision = "float32",
        report: Callable[[int, dict[str, float]], None] = lambda steps, metrics: None,
        save_every: float = 60.0,
    ) -> None:
        self.game = game
        self.data = data
        self.recipe = recipe
        self.seed = seed
        self.path = path
        self.config = {**config, **asdict(recipe), "seed": seed, "precision": precision}
        self.choose_by = choose_by
        self.precision = precision
        self.report = report
        self.save_every = save_every
        self.progress = Progress()
        self.best_weights: dict[str, Any] = {}
        self.averaged = Averaged(game.leader, recipe.ema) if recipe.ema else None
        self.steps_per_epoch = -(-len(data.train) // recipe.batch_size)
        if distributed.processes() > 1:
            game.pool = distributed.Pool()
            self._seed_apart()

    def fit(self) -> Progress:
        """Trains from where the run stands to its last epoch, and puts the best weights in place.

        Returns:
            The history of the run.

        Raises:
            NonFiniteError: If a loss, or what the classifier answers to the validation images,
                becomes NaN or infinite; the last checkpoint is kept.
            BilevelError: If a checkpoint cannot be written.
        """
        if distributed.processes() > 1:
            self.save()  # so that there is one, however soon a process is lost
        while self.progress.epoch < self.recipe.epochs:
            self._train_epoch()
            self._close_epoch()
            self.save()
        for name, weights in self.best_weights.items():
            getattr(self.game, name).load_state_dict(weights)
        return self.progress

    def save(self) -> None:
        """Writes everything that the rest of the run depends on. Collective."""
        state = {
            "config": self.config,
            "game": self.game.state_dict(),
            "averaged": self.averaged and self.averaged.state_dict(),
            "progress": asdict(self.progress),
            "best_weights": self.best_weights,
            "random": distributed.everyone(checkpoint.random_state()),
        }
        checkpoint.save(self.path, state)

    def resume(self) -> None:
        """Goes back to the state of the checkpoint.

        Raises:
            BilevelError: If there is none, or it belongs to another run.
        """
        state = checkpoint.load(self.path, self.data.train.images.device)
        try:
            saved = state["config"]
            for key in {**self.config, **saved}:
                if saved.get(key) != self.config.get(key):
                    raise BilevelError(
                        f"{self.path} is a run with {key} = {saved.get(key)}, this one has "
                        f"{self.config.get(key)}: a run is resumed as it was begun; give the same "
                        "arguments, or another --out"
                    )
            self.game.load_state_dict(state["game"])
            if self.averaged:
                self.averaged.load_state_dict(state["averaged"])
            self.progress = Progress(**state["progress"])
            self.best_weights = state["best_weights"]
            if len(state["random"]) == distributed.processes():
                checkpoint.set_random_state(state["random"][distributed.rank()])
            else:
                self._seed_apart()
        except (KeyError, TypeError) as error:
            raise BilevelError(
                f"{self.path} is not the checkpoint of a training run ({error}): it was written by "
                "something else; give another --out"
            ) from error

    def _train_epoch(self) -> None:
        now = self.progress
        self.game.leader.train()
        self.game.solver.train()
        saved = time.monotonic()
        for seconds, metrics in self._windows():
            now.elapsed += seconds
            if distributed.first(time.monotonic() - saved > self.save_every):
                self.save()
                saved = time.monotonic()
            self.report(self.game.steps, metrics)

    def _windows(self) -> Iterator[tuple[float, dict[str, float]]]:
        """Trains the rest of the epoch; yields seconds and metrics at each reading of them."""
        now, log = self.progress, MetricLog()
        stream = shuffled_batches(
            self.data.train,
            self.recipe.batch_size,
            seed=self.seed,
            epoch=now.epoch,
            augment=self.recipe.augment,
            start=now.position,
            share=distributed.mine,
        )
        begun = time.perf_counter()
        device, size = self.data.train.images.device, self.recipe.batch_size
        for batch in stream:
            self._share()
            self._set_lr()
            with computing(self.precision, device), enough_memory(size):
                log.add(self.game.step(batch))
            if self.game.pool:
                average_statistics(self.game.pool, [self.game.leader, self.game.solver])
            if self.averaged:
                self.averaged.follow(self.game.leader)
            now.position += 1
            if now.position % WINDOW == 0 or now.position == self.steps_per_epoch:
                metrics = _mean(distributed.everyone(log.means()))
                yield time.perf_counter() - begun, metrics
                begun = time.perf_counter()

    def _set_lr(self) -> None:
        assert isinstance(self.game.leader_opt, torch.optim.Optimizer)
        epoch = self.progress.epoch + self.progress.position / self.steps_per_epoch
        for group in self.game.leader_opt.param_groups:
            group["lr"] = self.recipe.lr_at(epoch)

    def _share(self) -> None:
        """Tells the pool how much of the next batch this process has."""
        if self.game.pool:
            begin = self.progress.position * self.recipe.batch_size
            count = min(self.recipe.batch_size, len(self.data.train) - begin)
            own = distributed.mine(count)
            self.game.pool.share = (own.stop - own.start) / count

    def _seed_apart(self) -> None:
        """Other random numbers for each process, whatever a run with fewer or more had drawn."""
        parts = self.seed, self.game.steps, distributed.processes(), distributed.rank()
        torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))

    def _close_epoch(self) -> None:
        now = self.progress
        record = {"epoch": now.epoch, "lr": self.recipe.lr_at(now.epoch), **self._validate()}
        score = record[self.choose_by]
        if score > now.best:
            now.best, now.best_epoch = score, now.epoch
            self.best_weights = {
                name: {
                    key: value.clone() if isinstance(value, torch.Tensor) else value
                    for key, value in network.state_dict().items()
                }
                for name, network in (("leader", self._leader()), ("solver", self.game.solver))
            }
        now.history.append(record)
        now.seconds.append(now.elapsed)
        now.epoch, now.position, now.elapsed = now.epoch + 1, 0, 0.0
        self.report(self.game.steps, record)

    def _leader(self) -> nn.Module:
        """The leader as it is evaluated."""
        return self.averaged.module if self.averaged else self.game.leader

    def _validate(self) -> dict[str, float]:
        model, images = self._leader().get_submodule("model"), self.data.validation
        eps = self.recipe.epsilon
        pgm10 = pgm(TRAINING_STEP * eps, 10)
        try:
            return {
                "validation_clean": accuracy(model, images),
                "validation_pgm": accuracy(model, images, Linf(eps), pgm10),
            }
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.game.steps}: {error}") from error


def _mean(reports: list[dict[str, float]]) -> dict[str, float]:
    """What the processes have seen, each on its share."""
    return {name: sum(r[name] for r in reports) / len(reports) for name in reports[0]}
