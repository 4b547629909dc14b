"""The interface of attacks, and the attack of a solver on a batch."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bilevel import Iterative, Solver, ZeroSum, frozen
from bilevel.arguments import count, one_of
from bilevel.errors import BilevelError
from bilevel.problem import networks_of
from bilevel.robustness.attacks.checks import check_clean, check_images, check_labels, check_start
from bilevel.robustness.attacks.samples import replaced
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.losses import OF_CLASSES, Targeted
from bilevel.robustness.threats.threat import Threat, loss_of

Kind = Literal["one-step", "iterative", "black-box"]
"""What an attack uses of the attacked classifier: one gradient, many, or none."""

Role = Literal["", "cross entropy", "learned", "random sampling", "spot check"]
"""How the checklist treats an attack, besides its kind: as hand-designed ascent on the cross
entropy, as a trained attacker, which the classifier may have learned to withstand, as uniform
sampling of the ball, as a longer attack on a sample of the images, or as none of these."""


def kind_of(solver: Solver) -> Kind:
    """What a solver uses of the attacked classifier.

    Args:
        solver: The solver.

    Returns:
        That of its attribute ``kind``, as ``Square`` has one, or of its update; of a solver that
        does not tell, such as one of your own, ``"iterative"``.

    Example:
        >>> from bilevel import pgm
        >>> kind_of(pgm(0.1, 1)), kind_of(pgm(0.1, 2))
        ('one-step', 'iterative')
    """
    if not isinstance(solver, Iterative):
        told: Kind = getattr(solver, "kind", "iterative")
        return told
    if not solver.update.needs_gradient:
        return "black-box"
    return "one-step" if solver.steps == 1 else "iterative"


def attack(model: nn.Module, follower: Threat, solver: Solver, batch: Batch | Targeted) -> Batch:
    """Runs a solver on a batch of images.

    Args:
        model: The classifier, left as it was.
        follower: The threat model; networks that it holds compute in evaluation mode.
        solver: The attack; a learned one computes in evaluation mode.
        batch: Clean images, with whatever else the follower reads.

    Returns:
        Adversarial images with the same labels and, if the batch is a named tuple, its further
        fields.

    Raises:
        BilevelError: If the images do not suit the threat model, for example are not float in
            [0, 1], the labels are no classes, or the follower does not say which images its y
            makes.
        NonFiniteError: If the loss is NaN or infinite where the attack starts, or an adversarial
            image is.
    """
    if not isinstance(follower, Threat):
        raise BilevelError(
            f"{type(follower).__name__} does not say which images its y makes: an attack returns "
            "them; derive it from robustness.Threat and define perturbed(y, batch)"
        )
    with torch.no_grad(), frozen(nn.ModuleList([solver, *networks_of(follower)])):
        follower.check(batch)
        check_clean(follower, batch)
        classes = loss_of(follower) in OF_CLASSES
        check_labels(batch, classes=classes)
        solution = solver.solve(follower, ZeroSum(model, follower), batch, evaluate=False)
        loss = solution.stats.get("objective_before")
        if len(batch.x) and loss is not None:
            check_start(loss, batch.y if classes else None)
        images = follower.perturbed(solution.value, batch)
        check_images(images)
        return replaced(batch, x=images)


def for_evaluation(solver: Solver) -> Solver:
    """A solver that a measurement leaves as it was, so that it can be repeated.

    Args:
        solver: The attack.

    Returns:
        The solver, or a copy of one that starts from its last answer.
    """
    return solver if solver.repeatable else copy.deepcopy(solver)


class Attack(ABC):
    """A named attack, which may have several restarts or targets.

    Args:
        name: The name in reports.
        kind: ``"one-step"``, ``"iterative"``, or ``"black-box"`` if it takes no gradient of the
            attacked classifier.
        alone: Whether it is run on every correctly classified image, so that it has an accuracy of
            its own, and not only on the images that no earlier attack has broken.
        passes: Expected cost of an image in forward passes, a backward pass counting as two; for
            the progress bar.
        sample: The number of images that it is run on at most, drawn at random: a spot check by an
            attack that is too long for all of them. None for all.

    Raises:
        BilevelError: If there is no such kind, or ``sample`` is below 1 or given with ``alone``.
    """

    def __init__(
        self,
        name: str,
        *,
        kind: Kind = "iterative",
        alone: bool = False,
        passes: float = 1.0,
        sample: int | None = None,
    ) -> None:
        self.name = name
        self.kind: Kind = one_of("kind", kind, get_args(Kind))
        self.alone = alone
        self.passes = passes
        self.sample = None if sample is None else count("sample", sample)
        check_alone(self)

    @property
    def tries(self) -> int:
        """Number of restarts or targets; an image is attacked until one of them breaks it.

        Returns:
            At least 1.
        """
        return 1

    @property
    def role(self) -> Role:
        """How the checklist treats it.

        Returns:
            ``"spot check"`` of an attack on a sample; otherwise empty, by default.
        """
        return "" if self.sample is None else "spot check"

    @property
    def settings(self) -> tuple[str, ...]:
        """Everything that the results depend on; a resumed battery compares it.

        Returns:
            The name, and whatever can differ between two attacks of that name.
        """
        return (self.name,)

    def prepare(self, model: nn.Module) -> None:
        """Called once before the first batch, for example to train; does nothing by default.

        Args:
            model: The classifier in evaluation mode.
        """

    @abstractmethod
    def perturb(self, model: nn.Module, batch: Batch, attempt: int) -> Tensor:
        """Runs one restart or target.

        Args:
            model: The classifier in evaluation mode; it is left as it was.
            batch: Clean images that it classifies correctly.
            attempt: Index of the restart or target.

        Returns:
            Perturbed images, adversarial or not.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def check_alone(attack: Attack) -> None:
    """Refuses an attack on a sample that is to have an accuracy of its own."""
    if attack.alone and attack.sample is not None:
        raise BilevelError(
            f"{attack.name} is run on a sample of {attack.sample} images: it has no accuracy of "
            "its own; take it out of alone"
        )
