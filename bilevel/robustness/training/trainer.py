"""Training a classifier against a follower, epoch by epoch, with validation and checkpoints."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bilevel import Bilevel, Solver, distributed
from bilevel.arguments import instance_of
from bilevel.cuda_graphs import CapturedStep
from bilevel.errors import BilevelError
from bilevel.experiment import checkpoint
from bilevel.experiment.progress import unreported
from bilevel.experiment.settings import settings_of
from bilevel.fingerprint import fingerprint
from bilevel.problem import networks_of
from bilevel.robustness.data.batches import Batch, shuffled_batches
from bilevel.robustness.data.images import image_set
from bilevel.robustness.data.splits import Splits
from bilevel.robustness.networks.averaging import EMA
from bilevel.robustness.networks.failures import explain_out_of_memory
from bilevel.robustness.networks.precision import Precision, computing
from bilevel.robustness.recipe import Recipe
from bilevel.robustness.threats.memory import Memory
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.robustness.threats.threat import Threat
from bilevel.robustness.training.modes import set_training
from bilevel.robustness.training.optimizers import optimizer_settings, scale_rates
from bilevel.robustness.training.progress import Progress
from bilevel.robustness.training.shares import Shares, seed_process
from bilevel.robustness.training.validation import Monitor, Validation
from bilevel.robustness.training.windows import MetricWindows

WINDOW = 50
"""Steps over which metrics are averaged."""

DERIVED = (
    "checksum of images", "validation attack",
    "leader", "follower", "solver", "leader_opt", "solver_opt",
)  # fmt: skip
"""Settings of a run that follow from the recipe and from the further ones."""


class Trainer:
    """Trains a game on images and keeps the weights of the best epoch.

    Epochs are compared on the validation split; the test set is not used (the paper's code chooses
    on it). Several processes train on their shares of each batch. Up to rounding they have the
    weights that one process would have, unless each draws random numbers of its own (random starts
    of a follower, dropout), pairs the images of its share (``Interpolation``), or has its own
    statistics in batch normalisation.

    An epoch's last, smaller batch is left out if the game's solver starts from its last answer,
    which may be of one batch size.

    Args:
        game: The game, see :func:`make_game`; its leader has the classifier as ``model``. The
            recipe's factor multiplies the learning rate of each of ``leader_opt``'s groups.
        data: The images, on the training device.
        recipe: Epochs, batch size, learning rates and augmentation.
        seed: Seed of the order of the images and of their augmentation.
        path: The checkpoint's file.
        config: Further settings as plain values. A checkpoint is refused if its settings or its
            images differ.
        monitor: The metric by which the best epoch is chosen: ``"validation_robust"``, accuracy
            under attack, or ``"validation_clean"``, for training without an adversary. Of epochs
            with equal robust accuracy the one of the highest clean accuracy, else the first.
        validation_attack: The threat model and the attack of ``"validation_robust"``; for ``Linf``,
            ``L2``, ``L1`` and ``Interpolation`` PGM-10 in the follower's ball unless given.
        precision: See :func:`~bilevel.robustness.computing`; evaluation is not affected.
        cuda_graphs: Whether steps are captured in a CUDA graph, which launches their kernels
            without Python.
        report: Called with the number of steps done and metrics, for each window of steps and
            after each epoch; it may save the run, and end it by raising.
        save_every: Seconds between checkpoints. One is also written before the first step and at
            the end.

    Attributes:
        validation: Measures each epoch, and gives the score that decides which one is best.
        averaged: The leader with its averaged weights, which are validated and kept; None if the
            recipe has no averaging.
        memory: Where the follower starts each image's attack; None if the recipe has none.

    Raises:
        BilevelError: If there are no image sets to train and to validate on, a label is none of
            their classes, ``leader_opt`` is none of ``torch.optim``, ``validation_attack`` has to
            be given, there is no such ``monitor``, the device has no CUDA graphs, or the follower's
            answers are no perturbations to keep, or are kept by its solver already.
    """

    def __init__(
        self,
        game: Bilevel,
        data: Splits,
        recipe: Recipe,
        *,
        seed: int,
        path: str | os.PathLike[str],
        config: dict[str, Any] | None = None,
        monitor: Monitor = "validation_robust",
        validation_attack: tuple[Threat, Solver] | None = None,
        precision: Precision = "float32",
        cuda_graphs: bool = False,
        report: Callable[[int, dict[str, float]], None] = unreported,
        save_every: float = 60.0,
    ) -> None:
        instance_of("data", data, Splits, "Splits(train, validation, test)")
        for name, part in zip(("train", "validation"), data, strict=False):
            if not len(image_set(f"the {name} split", part)):
                raise BilevelError(
                    f"the {name} split is empty: each epoch trains on images and is validated on "
                    "others; give one image or more of each"
                )
            part.check()
        self.game = game
        self.data = data
        self.recipe = recipe
        self.seed = seed
        self.path = Path(path)
        self.validation = Validation(
            game,
            data.validation,
            monitor=monitor,
            attack=validation_attack,
            batch_size=recipe.evaluation_batch_size,
            seed=seed,
        )
        self.precision = precision
        self._lend(None)  # an earlier trainer's would count among the follower's settings
        self.config = {**(config or {}), **asdict(recipe), **self._settings()}
        self.report = report
        self.save_every = save_every
        self.progress = Progress()
        self.best_weights: dict[str, Any] = {}
        self.averaged = EMA(game.leader, recipe.ema) if recipe.ema else None
        self.memory = self._memory() if recipe.warm_start else None
        remedy = "one of torch.optim, since the recipe changes its learning rates"
        self._leader_opt: Any = instance_of(
            "leader_opt", game.leader_opt, torch.optim.Optimizer, remedy
        )
        full, left = divmod(len(data.train), recipe.batch_size)
        # A warm start needs batches of one size; of one image batch normalisation has no variance.
        self._drop_last = full > 0 and (left == 1 or not game.solver.repeatable)
        self._shares = Shares(self._networks(), recipe.batch_size)
        self.steps_per_epoch = full + (left > 0 and not self._drop_last)
        self._windows = MetricWindows(data.train.images.device)
        if distributed.world_size() > 1:
            game.pool = distributed.Pool()
            seed_process(seed, game.steps)
        self._captured = CapturedStep(game) if cuda_graphs else None

    def _memory(self) -> Memory:
        """Lets the follower start at its last answers."""
        use = "warm_start lets an attack start where the last one on its image has ended"
        self.game.solver.check_repeatable(use)
        remedy = "Linf, L2, L1 or a subclass, or a recipe without warm_start"
        instance_of("follower", self.game.follower, Perturbation, remedy)
        return Memory(self.data.train, self.recipe.augment)

    def _lend(self, memory: Memory | None) -> None:
        """Gives the follower this memory only: several trainers may share a follower, in turn."""
        follower = self.game.follower
        if isinstance(getattr(follower, "memory", None), Memory):
            del follower.memory
        if memory is not None:
            follower.memory = memory

    def _merge_memory(self) -> None:
        if self.memory and self.game.pool:
            self.memory.merge(self.game.pool)

    def _settings(self) -> dict[str, Any]:
        """What a run is made of, apart from the recipe; a resumed one must share it."""
        splits = (self.data.train, self.data.validation)
        tensors = [values for split in splits for values in (split.images, split.labels)]
        parts = ("leader", "follower", "solver", "schedule", "adjoint")
        optimizers = ("leader_opt", "solver_opt")
        return {
            "seed": self.seed,
            "precision": self.precision,
            "monitor": self.validation.monitor,
            "checksum of images": fingerprint(*tensors),
            "validation attack": "; ".join(map(settings_of, self.validation.attack)),
            **{name: settings_of(getattr(self.game, name)) for name in parts},
            **{name: optimizer_settings(getattr(self.game, name)) for name in optimizers},
        }

    def fit(self) -> Progress:
        """Trains to the last epoch, then loads the weights of the best one.

        Returns:
            The history of the run.

        Raises:
            NonFiniteError: If a loss, or a logit on the validation images, becomes NaN or infinite;
                the last checkpoint is kept.
            BilevelError: If the classifier's output is not one logit for each class, or a
                checkpoint cannot be written.
        """
        self._lend(self.memory)
        self.validation.check(self._leader().get_submodule("model"))
        self.save()  # so that a run that is stopped early can be resumed
        while self.progress.epoch < self.recipe.epochs:
            self._train_epoch()
            self._end_epoch()
            if self.progress.epoch == self.recipe.epochs or self._save_is_due():
                self.save()
        for name, weights in self.best_weights.items():
            getattr(self.game, name).load_state_dict(weights)
        return self.progress

    def save(self) -> None:
        """Writes the checkpoint. Collective.

        Raises:
            NonFiniteError: If the run has diverged; the last checkpoint is kept.
            BilevelError: If it cannot be written.
        """
        self.progress.elapsed += self._windows.check()
        self._merge_memory()
        state = {
            "config": self.config,
            "game": self.game.state_dict(),
            "averaged": self.averaged and self.averaged.state_dict(),
            "progress": asdict(self.progress),
            "best_weights": self.best_weights,
            "processes": distributed.all_gather(self._own_state()),
        }
        checkpoint.save(self.path, state)
        self._saved = time.monotonic()

    def _own_state(self) -> Any:
        """What each process has of its own: random numbers, and answers for its last images."""
        kept = self.game.solver.kept, self.game.adjoint.state_dict()
        return checkpoint.random_state(), *tree_map_only(Tensor, Tensor.cpu, kept)

    def resume(self) -> None:
        """Restores the state of the checkpoint.

        Raises:
            BilevelError: If there is none, or it belongs to another run.
        """
        state = checkpoint.load(self.path)
        try:
            checkpoint.check_settings(self.path, state["config"], self.config, DERIVED)
            self._lend(self.memory)
            same = len(state["processes"]) == distributed.world_size()
            random, kept, adjoint = state["processes"][distributed.rank() if same else 0]
            self.game.load_state_dict({**state["game"], "adjoint": adjoint})
            # With other shares of a batch the next solve starts anew.
            self.game.solver.kept = kept if same else None
            if self.averaged:
                self.averaged.load_state_dict(state["averaged"])
            self.progress = Progress(**state["progress"])
            self.best_weights = state["best_weights"]
            self._windows = MetricWindows(self.data.train.images.device)
            if same:
                checkpoint.set_random_state(random)
            else:
                seed_process(self.seed, self.game.steps)
        except (KeyError, TypeError) as error:
            raise BilevelError(
                f"{self.path} is not the checkpoint of a training run ({error}): it was written by "
                "something else; give another --out"
            ) from error

    def _train_epoch(self) -> None:
        """Trains the rest of the epoch; only steps count as its seconds."""
        now = self.progress
        self._merge_memory()  # in the next epoch an image may be in another process
        set_training(self.game.leader)
        set_training(self.game.solver)
        begun = time.perf_counter()
        for batch in self._batches():
            self._windows.add(self._step(batch))
            now.position += 1
            last = now.position == self.steps_per_epoch
            if last or now.position % WINDOW == 0:
                due = not last and self._save_is_due()
                # All are read and reported before a checkpoint: a resumed run goes on after it.
                windows = self._windows.close(self.game.steps, last=last or due)
                now.elapsed += time.perf_counter() - begun
                for window in windows:
                    self.report(*window)
                if due:
                    self.save()
                begun = time.perf_counter()

    def _save_is_due(self) -> bool:
        return distributed.broadcast(time.monotonic() - self._saved > self.save_every)

    def _batches(self) -> Iterator[Batch]:
        """The remaining batches of the epoch."""
        return shuffled_batches(
            self.data.train,
            self.recipe.batch_size,
            seed=self.seed,
            epoch=self.progress.epoch,
            augment=self.recipe.augment,
            start=self.progress.position,
            share=self._shares.images,
            drop_last=self._drop_last,
            tracked=self.memory is not None,
        )

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        epoch = self.progress.epoch + self.progress.position / self.steps_per_epoch
        scale_rates(self._leader_opt, self.recipe.lr_factor(epoch))
        size = self.recipe.batch_size
        if self.game.pool:
            left = len(self.data.train) - self.progress.position * size
            self.game.pool.share = self._shares.weight(min(size, left))
        with computing(self.precision, batch.x.device, one_size=True), explain_out_of_memory(size):
            metrics = (self._captured or self.game.step)(batch)
        if self.game.pool:
            distributed.average_statistics(self.game.pool, self._networks())
        if self.averaged:
            self.averaged.update_parameters(self.game.leader)
        return metrics

    def _networks(self) -> list[nn.Module]:
        return [self.game.leader, self.game.solver, *networks_of(self.game.follower)]

    def _end_epoch(self) -> None:
        now = self.progress
        lr = self._leader_opt.param_groups[0]["initial_lr"] * self.recipe.lr_factor(now.epoch)
        model, score = self._leader().get_submodule("model"), self.validation.score
        record = {"epoch": now.epoch, "lr": lr, **self.validation.measure(model, now.epoch)}
        if now.best_epoch < 0 or score(record) > score(now.history[now.best_epoch]):
            now.best_epoch = now.epoch
            best = {"leader": self._leader(), "solver": self.game.solver}
            self.best_weights = {k: copy.deepcopy(net.state_dict()) for k, net in best.items()}
        now.history.append(record)
        now.seconds.append(now.elapsed)
        now.epoch, now.position, now.elapsed = now.epoch + 1, 0, 0.0
        self.report(self.game.steps, record)

    def _leader(self) -> nn.Module:
        """The leader that is evaluated."""
        return self.averaged.module if self.averaged else self.game.leader
