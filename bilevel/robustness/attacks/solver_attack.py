"""An attack made of a follower and a solver."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from bilevel import Iterative, Solver, frozen
from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.experiment.settings import settings_of, shown
from bilevel.fingerprint import fingerprint
from bilevel.problem import networks_of
from bilevel.robustness.attacks.apgd import APGD
from bilevel.robustness.attacks.attack import (
    Attack,
    Kind,
    Role,
    attack,
    for_evaluation,
    kind_of,
)
from bilevel.robustness.attacks.random_sampling import RandomSampling
from bilevel.robustness.attacks.samples import replaced
from bilevel.robustness.attacks.trajectory import Trajectory
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.losses import UNTARGETED, cross_entropy
from bilevel.robustness.threats.perturbation import Perturbation, adds
from bilevel.robustness.threats.threat import Threat, loss_of


class SolverAttack(Attack):
    """A solver used as an attack: hand-designed or learned, white-box or transferred.

    Args:
        name: The name in reports.
        follower: The threat model with the loss that is maximised.
        solver: The solver.
        restarts: Number of random starts; they differ if the follower has one,
            ``Linf(eps, start=eps)``; it warns if it has none.
        targets: Number of target classes, which take the place of restarts: the most likely wrong
            classes of each image, in turn; for a targeted loss.
        surrogate: A classifier to run the solver on instead; the attacked classifier is then only
            shown the result (a transfer attack).
        keep_broken: Whether an image counts as broken if any point that the solver visits is
            misclassified, as in the code of Auto-PGD's authors, or only if the last one is, as PGM
            is reported. Not with a surrogate.
        kind: See :class:`Attack`; by default ``"black-box"`` with a surrogate, else what
            the solver says: a ``kind`` of its own, or that of its update and number of steps.
        alone: Likewise.
        passes: Likewise.
        sample: Likewise.

    Raises:
        BilevelError: If ``restarts`` or ``targets`` is not such a number, ``targets`` is given with
            a loss that has none, or ``keep_broken`` with a surrogate or for a y that is not added
            to the image.

    Example:
        >>> from bilevel import pgm
        >>> from bilevel.robustness import Linf
        >>> SolverAttack("PGM-20", Linf(0.031, start=1e-4), pgm(0.003, 20), restarts=5).tries
        5
    """

    def __init__(
        self,
        name: str,
        follower: Threat,
        solver: Solver,
        *,
        restarts: int = 1,
        targets: int = 0,
        surrogate: nn.Module | None = None,
        keep_broken: bool = False,
        kind: Kind | None = None,
        alone: bool = False,
        passes: float = 1.0,
        sample: int | None = None,
    ) -> None:
        if kind is None:
            kind = "black-box" if surrogate is not None else kind_of(solver)
        super().__init__(name, kind=kind, alone=alone, passes=passes, sample=sample)
        self.follower = follower
        self.solver = solver
        self.restarts = count("restarts", restarts)
        self.targets = count("targets", targets, least=0)
        self.surrogate = surrogate
        self.keep_broken = keep_broken
        if targets and loss_of(follower) in UNTARGETED.values():
            raise BilevelError(
                f"targets is {targets} and the loss is {shown(follower.loss)}, which no target "
                "changes: all tries would be the same; give the threat model loss=targeted_dlr"
            )
        if not targets:
            _check_restarts(follower, solver, restarts)
        if keep_broken and surrogate is not None:
            raise BilevelError(
                "keep_broken and surrogate are given: points on the way are judged by the network "
                "that the solver runs on, and the attacked classifier sees the last one; leave out "
                "keep_broken"
            )
        if keep_broken and not adds(follower):
            raise BilevelError(
                f"keep_broken is given for {type(follower).__name__}: whether a point lies in the "
                "threat model is known for x + δ only; leave it out, the last point then counts, "
                "or restrict δ in project instead of perturbed"
            )

    @property
    def tries(self) -> int:
        """The restarts, or the targets."""
        return self.targets or self.restarts

    @property
    def role(self) -> Role:
        """Derived from the sample, the solver and the objective, not from the name."""
        if self.sample is not None:
            return super().role
        if isinstance(self.solver, RandomSampling):
            return "random sampling"
        if any(True for _ in self.solver.parameters()):
            return "learned"
        return "cross entropy" if loss_of(self.follower) is cross_entropy else ""

    @property
    def settings(self) -> tuple[str, ...]:
        """The name, follower, solver, surrogate, tries, what counts as broken, and weights."""
        held = networks_of(self.follower)  # a loss with weights among them
        weights = fingerprint(*filter(None, (self.solver, self.surrogate)), *held)
        tries = f"{self.tries} tries" + ", broken points kept" * self.keep_broken
        parts = self.follower, self.solver, *filter(None, [self.surrogate])
        return self.name, *map(settings_of, parts), tries, weights

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """The solver's last point; with ``keep_broken`` the first misclassified one."""
        queried = model if self.surrogate is None else self.surrogate
        tried = self._targeted(queried, batch, attempt) if self.targets else batch
        solver = for_evaluation(self.solver)
        if not self.keep_broken:
            return attack(queried, self.follower, solver, tried).x
        assert adds(self.follower), "checked in __init__"
        trajectory = Trajectory(model, self.follower, tried)
        with trajectory.recorded():
            answer = attack(model, self.follower, solver, tried).x
        return trajectory.broken_or(answer)

    def _targeted(self, model: nn.Module, batch: Batch, rank: int) -> Any:
        """The batch with each image's wrong class of that rank by its logit, from 0, as target."""
        with torch.no_grad(), frozen(model):
            # A copy: the classifier may normalise it in place.
            logits = model(batch.x.clone()).scatter(1, batch.y.unsqueeze(1), -torch.inf)
        if self.targets >= logits.shape[1]:
            raise BilevelError(
                f"targets is {self.targets} and the classifier has {logits.shape[1]} classes: each "
                f"target is a wrong class; give targets={logits.shape[1] - 1} at most"
            )
        return replaced(batch, target=logits.argsort(1, descending=True)[:, rank])


def _check_restarts(follower: Threat, solver: Solver, restarts: int) -> None:
    """Warns of several tries that all begin at the image, and so end at the same point.

    No error, since a classifier that draws at random gives each try another gradient.
    """
    if not isinstance(follower, Perturbation) or type(follower).init is not Perturbation.init:
        return
    if restarts == 1 or follower.start or type(solver) not in (Iterative, APGD):
        return
    name = type(follower).__name__
    warnings.warn(
        f"restarts is {restarts} and {name} starts at the image: of a classifier that does not "
        f"draw at random all tries are the same; give a random start, {name}(eps, start=eps)",
        stacklevel=3,
    )
