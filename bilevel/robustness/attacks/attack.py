"""An attack: whatever turns labelled images into adversarial ones of the same threat model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from bilevel import Solver, ZeroSum, frozen
from bilevel.errors import BilevelError
from bilevel.robustness.batches import Batch
from bilevel.robustness.losses import Targeted
from bilevel.robustness.threats import Perturbation
from bilevel.tree import leaves

Kind = Literal["one-step", "iterative", "black-box"]
"""How an attack looks: at one gradient, at many, or at none of the classifier's own."""


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
        targets: Try this many wrong classes instead, the likeliest first; for a targeted loss.
        surrogate: Take gradients of this classifier and let what comes out attack the other.
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
        kind: Kind = "iterative",
        alone: bool = False,
        passes: float = 1.0,
    ) -> None:
        super().__init__(name, kind=kind, alone=alone, passes=passes)
        self.follower = follower
        self.solver = solver
        self.restarts = restarts
        self.targets = targets
        self.surrogate = surrogate

    @property
    def tries(self) -> int:
        """The restarts, or the targets."""
        return self.targets or self.restarts

    @property
    def settings(self) -> tuple[str, ...]:
        """The name, the follower, the solver and the number of tries."""
        return self.name, repr(self.follower), repr(self.solver), f"{self.tries} tries"

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """The solver's answer; with targets, toward the ``attempt``-th likeliest wrong class."""
        queried = model if self.surrogate is None else self.surrogate
        tried = _toward(queried, batch, attempt) if self.targets else batch
        return attack(queried, self.follower, self.solver, tried).x


class Foreign(Attack):
    """Another package's attack, as long as it is called as torchattacks' are.

    Args:
        name: What a report calls it.
        make: Given the classifier, gives ``attack(images, labels) -> images``.
        kind: See :class:`Attack`.
        alone: Likewise.
        passes: Likewise.

    Example:
        >>> noise = lambda model: lambda images, labels: (images + 0.1).clamp(0, 1)
        >>> Foreign("brighter", noise, kind="black-box")
        Foreign('brighter')
    """

    def __init__(
        self,
        name: str,
        make: Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]],
        *,
        kind: Kind = "iterative",
        alone: bool = False,
        passes: float = 1.0,
    ) -> None:
        super().__init__(name, kind=kind, alone=alone, passes=passes)
        self.make = make

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """What the package returns; it may ask for gradients of the classifier's parameters."""
        with torch.enable_grad():
            return self.make(model)(batch.x, batch.y).detach()


class Missing(Attack):
    """An attack that was asked for and cannot be made; a battery says so and goes on.

    Args:
        name: What a report calls it.
        reason: Why.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.reason = reason

    def prepare(self, model: nn.Module) -> None:
        """Says why, as a :class:`BilevelError`."""
        raise BilevelError(self.reason)

    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """The images as they are."""
        return batch.x


def _toward(model: nn.Module, batch: Batch, rank: int) -> Targeted:
    """The batch with its ``rank``-th likeliest wrong classes, from 0, as targets."""
    with torch.no_grad(), frozen(model):
        logits = model(batch.x).scatter(1, batch.y.unsqueeze(1), -torch.inf)
    return Targeted(batch.x, batch.y, logits.argsort(1, descending=True)[:, rank])
