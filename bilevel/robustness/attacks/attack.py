"""An attack: whatever turns labelled images into adversarial ones of the same threat model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from bilevel import Solver, ZeroSum, frozen
from bilevel.errors import BilevelError
from bilevel.robustness.attacks.fingerprint import fingerprint
from bilevel.robustness.attacks.random_sampling import RandomSampling
from bilevel.robustness.attacks.samples import check_count
from bilevel.robustness.attacks.trajectory import recorded
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.losses import Targeted, cross_entropy
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.tree import leaves

Kind = Literal["one-step", "iterative", "black-box"]
"""How an attack looks: at one gradient, at many, or at none of the classifier's own."""

Role = Literal["", "cross entropy", "random sampling"]
"""What an attack is to the checklist beside its kind: hand-designed ascent on the cross entropy,
uniform points of the ball, or nothing of its own."""


def attack(
    model: nn.Module, follower: Perturbation, solver: Solver, batch: Batch | Targeted
) -> Batch:
    """The images as an adversary changes them.

    Args:
        model: The classifier, left as it was.
        follower: The threat model.
        solver: The attack; a learned one computes in evaluation mode.
        batch: Clean images.

    Returns:
        Adversarial images with the same labels.
    """
    with torch.no_grad(), frozen(solver):
        solution = solver.solve(follower, ZeroSum(model, follower), batch, evaluate=False)
    (delta,) = leaves(solution.value)
    return Batch(batch.x + delta, batch.y)


class Attack(ABC):
    """A named attack, which may try several times.

    Args:
        name: What a report calls it.
        kind: ``"one-step"``, ``"iterative"``, or ``"black-box"`` where it needs no gradient.
        alone: Whether its own figure is wanted, so that it is run on every image that the
            classifier gets right, and not only on what other attacks have left.
        passes: Forward passes that an image may cost, a backward pass as two; for the time left.
    """

    def __init__(
        self, name: str, *, kind: Kind = "iterative", alone: bool = False, passes: float = 1.0
    ) -> None:
        self.name = name
        self.kind: Kind = kind
        self.alone = alone
        self.passes = passes

    @property
    def tries(self) -> int:
        """How often it tries; an image that one try breaks is spared the others.

        Returns:
            A number from 1 on.
        """
        return 1

    @property
    def role(self) -> Role:
        """What it is to the checklist.

        Returns:
            The role; nothing unless it has one.
        """
        return ""

    @property
    def settings(self) -> tuple[str, ...]:
        """All that its answers depend on, in words, by which a resumed battery knows it.

        Returns:
            Its name, and what else could differ between two attacks of that name.
        """
        return (self.name,)

    def prepare(self, model: nn.Module) -> None:
        """What it does once before it sees an image, such as training; nothing unless it wants to.

        Args:
            model: The classifier in evaluation mode.
        """

    @abstractmethod
    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """One try.

        Args:
            model: The classifier in evaluation mode; it is left as it was.
            batch: Clean images that it gets right.
            attempt: Number of the try, from 0.

        Returns:
            Images, of which some may be adversarial.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Solved(Attack):
    """A follower's solver used as an attack: hand-designed or learned, white-box or transferred.

    Args:
        name: What a report calls it.
        follower: The threat model with the loss that is raised.
        solver: The solver.
        restarts: Random starts.
        targets: Try this many wrong classes instead, one after the other, the likeliest first; for
            a targeted loss.
        surrogate: Take gradients of this classifier and let what comes out attack the other.
        keep_broken: Whether any misclassified point on the solver's way breaks an image, as in
            the code of Auto-PGD's authors, or only by the solver's answer, as PGM is reported.
        kind: See :class:`Attack`.
        alone: Likewise.
        passes: Likewise.

    Example:
        >>> from bilevel import pgm
        >>> from bilevel.robustness import Linf
        >>> Solved("PGM-20", Linf(0.031, start=1e-4), pgm(0.003, 20), restarts=5).tries
        5
    """

    def __init__(
        self,
        name: str,
        follower: Perturbation,
        solver: Solver,
        *,
        restarts: int = 1,
        targets: int = 0,
        surrogate: nn.Module | None = None,
        keep_broken: bool = False,
        kind: Kind = "iterative",
        alone: bool = False,
        passes: float = 1.0,
    ) -> None:
        super().__init__(name, kind=kind, alone=alone, passes=passes)
        self.follower = follower
        self.solver = solver
        self.restarts = check_count("restarts", restarts)
        self.targets = targets and check_count("targets", targets)
        self.surrogate = surrogate
        self.keep_broken = keep_broken

    @property
    def tries(self) -> int:
        """The restarts, or the targets."""
        return self.targets or self.restarts

    @property
    def role(self) -> Role:
        """Derived from the solver and the objective, not from the name."""
        if isinstance(self.solver, RandomSampling):
            return "random sampling"
        learned = any(True for _ in self.solver.parameters())
        raises_loss = type(self.follower).objective is Perturbation.objective
        ascends = raises_loss and self.follower.loss is cross_entropy and not learned
        return "cross entropy" if ascends else ""

    @property
    def settings(self) -> tuple[str, ...]:
        """The name, the follower, the solver, what counts of its tries, and all weights."""
        weights = fingerprint(*filter(None, (self.solver, self.surrogate)))
        tries = f"{self.tries} tries" + ", broken points kept" * self.keep_broken
        return self.name, repr(self.follower), repr(self.solver), tries, weights

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """Where the solver ends; with ``keep_broken`` the first misclassified point on its way."""
        queried = model if self.surrogate is None else self.surrogate
        tried = self._toward(queried, batch, attempt) if self.targets else batch
        # What breaks a surrogate on the way proves nothing.
        if self.surrogate is not None or not self.keep_broken:
            return attack(queried, self.follower, self.solver, tried).x
        with recorded(model, self.follower, tried) as trajectory:
            answer = attack(model, self.follower, self.solver, tried).x
        return trajectory.broken_or(answer)

    def _toward(self, model: nn.Module, batch: Batch, rank: int) -> Targeted:
        """The batch with its ``rank``-th likeliest wrong classes, from 0, as targets."""
        with torch.no_grad(), frozen(model):
            logits = model(batch.x).scatter(1, batch.y.unsqueeze(1), -torch.inf)
        if self.targets >= logits.shape[1]:
            raise BilevelError(
                f"targets is {self.targets} and the classifier has {logits.shape[1]} classes: each "
                f"target is a wrong class; give targets={logits.shape[1] - 1} at most"
            )
        return Targeted(batch.x, batch.y, logits.argsort(1, descending=True)[:, rank])
