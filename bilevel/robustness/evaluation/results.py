"""What an evaluation finds out about a classifier, as plain values: the rooms beside it read it.

Outcome       what one attack broke
Curve         accuracy against a quantity
Finding       one item of the checklist, with its figure and a sentence
Evaluation    all of it, for one classifier
Example       one image before and after an attack
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.robustness.attacks.attack import Kind, Role
from bilevel.robustness.evaluation.tolerance import share


@dataclass(frozen=True)
class Outcome:
    """What one attack did.

    Args:
        name: The attack.
        kind: How the attack looks, see :class:`~bilevel.robustness.Attack`.
        attacked: The images it was run on, ``(N,)`` bool on the CPU.
        broken: Those it made the classifier err on, ``(N,)``; where it failed, until then.
        seconds: What it took.
        problem: Why it gave no figure; empty where it did.
        role: What it is to the checklist, see :class:`~bilevel.robustness.Attack`.
    """

    name: str
    kind: Kind
    attacked: Tensor
    broken: Tensor
    seconds: float
    problem: str = ""
    role: Role = ""


@dataclass(frozen=True)
class Curve:
    """Accuracy under attack against one quantity.

    Args:
        quantity: What is varied: ``"ε"`` or ``"iterations"``.
        at: Its values, ascending.
        accuracy: The accuracy at each, in [0, 1].
        images: On how many images.
    """

    quantity: str
    at: tuple[float, ...]
    accuracy: tuple[float, ...]
    images: int


@dataclass(frozen=True)
class Finding:
    """One item of the checklist.

    Args:
        item: What was asked, in a few words.
        ok: Whether the answer speaks for the evaluation.
        figure: The number that decides.
        sentence: What it means, in plain words.
    """

    item: str
    ok: bool
    figure: str
    sentence: str


@dataclass(frozen=True)
class Evaluation:
    """One classifier under attack.

    Args:
        name: The classifier.
        eps: ε of the L∞ ball that was searched.
        trained_eps: ε that the classifier was trained for; None where nobody says.
        right: The images that the classifier gets right unattacked, ``(N,)`` bool on the CPU.
        outcomes: The attacks in the order in which they were run.
        curves: Accuracy against ε and against iterations, where they were measured.
        findings: The checklist.
    """

    name: str
    eps: float
    trained_eps: float | None
    right: Tensor
    outcomes: tuple[Outcome, ...] = ()
    curves: tuple[Curve, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def clean(self) -> float:
        """Accuracy without an attack.

        Returns:
            A number in [0, 1].
        """
        return share(self.right)

    @property
    def worst_case(self) -> float:
        """The share of images that are right and that no attack broke.

        Returns:
            A number in [0, 1].
        """
        return share(self.survivors(self.outcomes))

    @property
    def trustworthy(self) -> bool:
        """Whether every item of the checklist speaks for the evaluation.

        Returns:
            True if so; False where nothing has been checked.
        """
        return bool(self.findings) and all(finding.ok for finding in self.findings)

    def survivors(self, outcomes: tuple[Outcome, ...]) -> Tensor:
        """The images that stay right under every one of some attacks.

        Args:
            outcomes: The attacks.

        Returns:
            ``(N,)`` bool.
        """
        alive = self.right.clone()
        for outcome in outcomes:
            alive &= ~outcome.broken
        return alive

    def alone(self, outcome: Outcome) -> float | None:
        """The accuracy under one attack alone.

        Args:
            outcome: The attack.

        Returns:
            A number in [0, 1]; None where the attack saw only what others had left.
        """
        if outcome.problem or not torch.equal(outcome.attacked, self.right):
            return None
        return share(self.survivors((outcome,)))

    def so_far(self, outcome: Outcome) -> float:
        """The worst case over the attacks up to this one.

        Args:
            outcome: One of :attr:`outcomes`.

        Returns:
            A number in [0, 1].
        """
        return share(self.survivors((*self._before(outcome), outcome)))

    def newly_broken(self, outcome: Outcome) -> int:
        """How many images an attack broke that none before it had.

        Args:
            outcome: One of :attr:`outcomes`.

        Returns:
            Their number.
        """
        return int((self.survivors(self._before(outcome)) & outcome.broken).sum())

    def outcome(self, name: str) -> Outcome | None:
        """An attack's outcome by name.

        Args:
            name: The attack.

        Returns:
            Its outcome; None where it was not run or gave no figure.
        """
        found = (outcome for outcome in self.outcomes if outcome.name == name)
        return next((outcome for outcome in found if not outcome.problem), None)

    def _before(self, outcome: Outcome) -> tuple[Outcome, ...]:
        """The attacks that were run before this one."""
        position = next(i for i, other in enumerate(self.outcomes) if other is outcome)
        return self.outcomes[:position]


@dataclass(frozen=True)
class Example:
    """One image before and after an attack.

    Args:
        title: Whose doing it is: an attack's name, or a training method's.
        clean: ``(C, H, W)`` in [0, 1].
        adversarial: The same image as the attack changes it.
        truth: The right label.
        said: What the classifier says to the adversarial image.
    """

    title: str
    clean: Tensor
    adversarial: Tensor
    truth: str
    said: str
