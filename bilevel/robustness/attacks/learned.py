"""The attacks of learned attackers by name: ``own`` and ``fresh``."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from bilevel import Iterative
from bilevel.errors import BilevelError
from bilevel.robustness.attacks.attack import Attack, kind_of
from bilevel.robustness.attacks.fresh import FreshAttack
from bilevel.robustness.attacks.settings import AttackSettings
from bilevel.robustness.attacks.solver_attack import SolverAttack
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.methods import Attacker, is_learned, make_solver
from bilevel.robustness.trained import Trained


def own(settings: AttackSettings) -> list[Attack]:
    """The attacker that was trained with the classifier.

    Args:
        settings: Those of the attacks on one classifier.

    Returns:
        None if there is no such attacker, or it was trained in another norm, or for an ε beyond
        which its steps do not reach; otherwise one.
    """
    trained = settings.trained
    if trained is None or not trained.about.learned or trained.about.norm != settings.norm:
        return []
    name = f"own {trained.about.method}"
    if trained.solver is None:
        return [Unavailable(name, f"{trained.name} was saved without its attacker.safetensors")]
    if settings.eps > 1.05 * _reach(trained):  # 0.031 and 8/255 count as the same ε
        return []
    follower = trained.about.follower(settings.eps)
    return [SolverAttack(name, follower, trained.solver, alone=True, passes=30)]


def _reach(trained: Trained) -> float:
    """The largest ε that the attacker's steps can make use of."""
    # A step changes each value by the ε of training at most, which in L2 and L1 leaves the ball.
    if trained.about.norm != "linf" or not isinstance(trained.solver, Iterative):
        return math.inf
    return trained.solver.steps * trained.about.epsilon


def fresh(settings: AttackSettings) -> list[Attack]:
    """A new attacker, trained against the finished classifier.

    Args:
        settings: Those of the attacks on one classifier.

    Returns:
        One attack.

    Raises:
        BilevelError: If the method learns nothing.
    """
    trained, method, train = settings.trained, settings.fresh, settings.train
    if not is_learned(method):
        raise BilevelError(f"fresh is {method!r}, which learns nothing: name a method with l2l")
    if train is None:
        return [Unavailable(f"fresh {method}", "there are no images to train it on")]
    make = partial(
        make_solver,
        method,
        eps=settings.eps,
        channels=train.images.shape[1],
        attacker=trained.about.attacker if trained else Attacker(),
        norm=settings.norm,
    )
    with torch.device("meta"):  # it is only looked at: no random numbers are drawn
        kind = kind_of(make())
    return [
        FreshAttack(
            f"fresh {method}",
            settings.ball(),
            make,
            train,
            steps=settings.fresh_steps,
            kind=kind,
            passes=30,
        )
    ]


class Unavailable(Attack):
    """An attack that was requested and is not available; a battery reports why and continues.

    Args:
        name: The name in reports.
        reason: Why it is not available.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.reason = reason

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """Raises a :class:`BilevelError` with the reason."""
        raise BilevelError(self.reason)
