"""The accuracies by which the epochs of a run are compared."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import nn

from bilevel import Bilevel, Solver, distributed
from bilevel.arguments import one_of
from bilevel.errors import BilevelError, NonFiniteError
from bilevel.problem import FollowerProblem
from bilevel.randomness import derived_seed, random_state_kept
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.evaluation.accuracy import accuracy
from bilevel.robustness.evaluation.logits import logits_of
from bilevel.robustness.methods import TRAINING_STEP
from bilevel.robustness.networks.failures import explain_out_of_memory
from bilevel.robustness.threats.interpolation import Interpolation
from bilevel.robustness.threats.l1 import L1
from bilevel.robustness.threats.perturbation import L2, Linf, Perturbation
from bilevel.robustness.threats.threat import Threat

Monitor = Literal["validation_robust", "validation_clean"]

# The ball of a follower; a subclass of one may mean another set.
_BALLS: dict[type, type[Perturbation]] = {Linf: Linf, L2: L2, L1: L1, Interpolation: Linf}


class Validation:
    """Clean accuracy, and accuracy under an attack, on images that are held out.

    Args:
        game: The game that is trained.
        images: The images.
        monitor: The metric by which epochs are compared, see :class:`Trainer`.
        attack: The threat model and the attack; :func:`default_attack` unless given.
        batch_size: Images a batch.
        seed: Of the attack's random numbers.

    Raises:
        BilevelError: If there is no such metric, or an attack has to be given.
    """

    def __init__(
        self,
        game: Bilevel,
        images: ImageSet,
        *,
        monitor: Monitor,
        attack: tuple[Threat, Solver] | None,
        batch_size: int,
        seed: int,
    ) -> None:
        self.game = game
        self.images = images
        self.monitor = one_of("monitor", monitor, get_args(Monitor))
        self.attack = attack or default_attack(game.follower)
        self.batch_size = batch_size
        self.seed = seed
        self._in_followers_ball = attack is None

    def check(self, model: nn.Module) -> None:
        """Checks one batch of what is measured after each epoch, before the first.

        Args:
            model: The classifier.

        Raises:
            BilevelError: If it is for other images, or its output is not one logit for each class.
        """
        first = self.images.subset(torch.arange(min(self.batch_size, len(self.images))))
        with (
            random_state_kept(self.images.images.device),
            explain_out_of_memory(self.batch_size),
        ):
            logits_of(model, first, batch_size=self.batch_size)

    def measure(self, model: nn.Module, epoch: int) -> dict[str, float]:
        """Both accuracies of a classifier. Collective.

        Args:
            model: The classifier.
            epoch: The number of the epoch, from 0.

        Returns:
            ``validation_clean`` and ``validation_robust``.

        Raises:
            NonFiniteError: If a logit is NaN or infinite.
        """
        if self._in_followers_ball:
            _check_radius_stays(self.game.follower, self.attack[0])
        measure = partial(accuracy, model, self.images, batch_size=self.batch_size)
        stream = derived_seed(self.seed, epoch, distributed.rank())
        try:
            with (
                random_state_kept(self.images.images.device),
                explain_out_of_memory(self.batch_size),
            ):
                torch.manual_seed(stream)  # training draws as it would without validation
                clean, robust = measure(), measure(*self.attack)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.game.steps}: {error}") from error
        return {"validation_clean": clean, "validation_robust": robust}

    def score(self, record: dict[str, float]) -> tuple[float, float]:
        """The score that decides which epoch is best; of equal ones, the clean accuracy decides.

        Args:
            record: Of an epoch, with both accuracies.

        Returns:
            The higher, the better.
        """
        return record[self.monitor], record["validation_clean"]


def default_attack(follower: FollowerProblem) -> tuple[Threat, Solver]:
    """PGM-10 on the cross entropy, in the ball of a game's follower.

    Args:
        follower: The follower of a game on images; of :class:`~bilevel.robustness.Interpolation`
            only the ball is used, not its objective.

    Returns:
        A threat model of the follower's norm, radius and bounds, and the attack on it.

    Raises:
        BilevelError: If the follower is of another class: its ball is not known.

    Example:
        >>> default_attack(L2(0.5))[0]
        L2(eps=0.5, start=0.0, loss=cross_entropy)
    """
    kind = _BALLS.get(type(follower))
    if kind is None or not isinstance(follower, Perturbation):
        raise BilevelError(
            f"{type(follower).__name__} is none of Linf, L2 and L1: epochs are compared by "
            "accuracy under attack, within the adversary's reach; give validation_attack=(threat "
            "model, attack)"
        )
    ball = kind(follower.eps, bounds=follower.bounds)
    return ball, ball.pgm(TRAINING_STEP * ball.eps, 10)


def _check_radius_stays(follower: FollowerProblem, threat: Threat) -> None:
    """Checks that the ball of :func:`default_attack` is still the follower's."""
    now, then = (getattr(one, "eps", None) for one in (follower, threat))
    if now != then:
        raise BilevelError(
            f"the follower's eps was {then} when the trainer was made and is {now} now: epochs are "
            "compared by accuracy under one attack; give validation_attack=(threat model, attack) "
            "with the eps of the last epoch"
        )
