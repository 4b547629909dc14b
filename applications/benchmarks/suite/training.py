"""Training runs by the fast recipe, and what their classifiers withstand."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from bilevel import Bilevel, BilevelError, ZeroSum
from bilevel.robustness import (
    About,
    AttackSettings,
    Battery,
    Linf,
    Recipe,
    Splits,
    Trainer,
    compile_network,
    computing,
    make_attacks,
    make_game,
)
from bilevel.robustness.data.sources import Dataset
from bilevel.robustness.networks.compilation import is_compiled
from bilevel.robustness.networks.precision import Precision
from suite.ledger import Clock, Record, StageOver
from suite.steps import learned

ATTACKS = ("pgm-20", "pgm-100", "apgd-ce", "apgd-t")
"""Cheap ones first: each is tried on what the others have left, and PGM for its own figure too."""


@dataclass(frozen=True)
class Training:
    """One method's run: trained in as many stages as it takes, then attacked.

    Args:
        method: See :data:`bilevel.robustness.METHODS`.
        recipe: The recipe, which names the classifier.
        dataset: The name of the dataset.
        precision: Of training.
        fast: Whether its networks are compiled and its steps captured in a CUDA graph.
        seed: Of everything.
        folder: Where its checkpoints are.
        attack_minutes: What must be left of a stage for the attacks to begin.
    """

    method: str
    recipe: Recipe
    dataset: Dataset
    precision: Precision
    fast: bool
    seed: int
    folder: Path
    attack_minutes: float = 0.0

    def run(self, data: Splits, clock: Clock) -> list[Record]:
        """The record of the run, once its last stage is done."""
        about = About.of(self.method, self.recipe, data.train, dataset=self.dataset, seed=self.seed)
        game = self._game(about, data.train.images.device)
        trainer = self._trainer(game, data, clock)
        # Epochs are chosen, and classifiers attacked, in what matrix units make of float32.
        with computing("tf32", data.train.images.device):
            progress = trainer.fit()
            clock.check(self.attack_minutes)
            model = game.leader.get_submodule("model")
            accuracies = self._attack(about, model, data)
        return [
            {
                "method": self.method,
                "model": self.recipe.model,
                "dataset": self.dataset,
                "precision": self.precision,
                "compiled": all(map(is_compiled, [model, *learned(game.solver)])),
                "graphs": self.fast,
                "seed": self.seed,
                "epochs": self.recipe.epochs,
                "best_epoch": progress.best_epoch,
                "attacker": about.attacker.form if about.learned else None,
                "attacker_width": about.attacker.width if about.learned else None,
                "attacker_lr": self.recipe.attacker_lr if about.learned else None,
                "warm_start": self.recipe.warm_start,
                "seconds": median(progress.seconds) * self.recipe.epochs,
                "seconds_with_compilation": sum(progress.seconds),
                "test_images": len(data.test),
                **accuracies,
            }
        ]

    def _game(self, about: About, device: torch.device) -> Bilevel:
        torch.manual_seed(self.seed)
        model, solver = about.classifier(), about.solver()
        for network in (model, *learned(solver)):
            network.to(device, memory_format=torch.channels_last)
            if self.fast:
                compile_network(network)
        follower = Linf(about.epsilon)
        return make_game(ZeroSum(model, follower), follower, solver, self.recipe)

    def _trainer(self, game: Bilevel, data: Splits, clock: Clock) -> Trainer:
        def report(steps: int, metrics: dict[str, float]) -> None:
            if "epoch" in metrics:
                told = {key: round(value, 4) for key, value in metrics.items()}
                print(f"  {steps} steps: {told}", flush=True)
            else:
                self._pause(trainer, clock)

        config: dict[str, Any] = {"method": self.method, "images": len(data.train)}
        trainer = Trainer(
            game,
            data,
            self.recipe,
            seed=self.seed,
            path=self.folder / "checkpoint.pt",
            config=config,
            precision=self.precision,
            cuda_graphs=self.fast,
            monitor="validation_clean" if self.method == "plain" else "validation_robust",
            report=report,
        )
        if trainer.path.exists():
            trainer.resume()
        return trainer

    def _pause(self, trainer: Trainer, clock: Clock) -> None:
        try:
            clock.check()
        except StageOver:
            trainer.save()
            raise

    def _attack(self, about: About, model: nn.Module, data: Splits) -> dict[str, float]:
        """Accuracy: clean, under each attack, under all of them."""
        model = copy.deepcopy(model)  # which is not compiled: the last images come in odd numbers
        settings = AttackSettings(about.epsilon, about.classes, seed=self.seed)
        path = self.folder / "battery.pt"
        battery = Battery(
            make_attacks(ATTACKS, settings),
            eps=about.epsilon,
            seed=self.seed,
            batch_size=512,
            path=path,
        )
        right, outcomes = battery.run(model, data.test, resume=path.exists())
        left = right.clone()
        found = {"clean": right.double().mean().item()}
        for outcome in outcomes:
            if outcome.problem:
                raise BilevelError(f"{outcome.name}: {outcome.problem}")
            left &= ~outcome.broken
            key = outcome.name.lower().replace("-", "")
            if outcome.attacked[right].all():
                found[key] = (right & ~outcome.broken).double().mean().item()
            found[f"left_after_{key}"] = left.double().mean().item()
        return {**found, "worst_case": left.double().mean().item()}
