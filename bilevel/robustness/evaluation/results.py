"""The results of an evaluation, as plain values.

Outcome       the result of one attack
Curve         accuracy against a quantity
Finding       one item of the checklist, with its figure and a sentence
Evaluation    all results for one classifier
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel.robustness.attacks.attack import Kind, Role
from bilevel.robustness.evaluation.tolerance import share
from bilevel.robustness.threats.norms import NORMS, Norm


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one attack.

    Args:
        name: The name of the attack.
        kind: See :class:`~bilevel.robustness.Attack`.
        attacked: The images it was run on, ``(N,)`` bool on the CPU.
        broken: Those for which it found an adversarial image, ``(N,)``; until its failure, if it
            failed.
        seconds: The time it took.
        problem: Why it failed; empty if it did not.
        role: See :class:`~bilevel.robustness.Attack`.
    """

    name: str
    kind: Kind
    attacked: Tensor
    broken: Tensor
    seconds: float
    problem: str = ""
    role: Role = ""


def survivors(right: Tensor, broken: Iterable[Tensor]) -> Tensor:
    """The images that are classified correctly, clean and under each of some attacks.

    Args:
        right: The clean images that are, ``(N,)`` bool.
        broken: Those that an attack broke, ``(N,)`` for each attack.

    Returns:
        ``(N,)`` bool.

    Example:
        >>> right = torch.tensor([True, True, False])
        >>> survivors(right, [torch.tensor([False, True, False])]).tolist()
        [True, False, False]
    """
    left = right.clone()
    for one in broken:
        left &= ~one
    return left


@dataclass(frozen=True)
class Curve:
    """Accuracy under attack against one quantity.

    Args:
        quantity: ``"ε"`` or ``"iterations"``.
        at: Its values, ascending.
        accuracy: The accuracy at each, in [0, 1].
        images: Number of images.
        problem: Why it was not measured; empty if it was.
    """

    quantity: str
    at: tuple[float, ...]
    accuracy: tuple[float, ...]
    images: int
    problem: str = ""


@dataclass(frozen=True)
class Finding:
    """One item of the checklist.

    Args:
        item: The property that is checked, in a few words.
        ok: Whether it holds.
        figure: The measured value that decides.
        sentence: What it means and, if it does not hold, what to do.
    """

    item: str
    ok: bool
    figure: str
    sentence: str


def finding(item: str, ok: bool, figure: str, good: str, bad: str) -> Finding:
    """A finding with one of two sentences: what is said if the property holds, and if not."""
    return Finding(item, ok, figure, good if ok else bad)


def not_measured(item: str, remedy: str) -> Finding:
    """The finding of an item that was not measured, which fails."""
    return Finding(item, False, "not measured", f"Not checked: {remedy}.")


@dataclass(frozen=True)
class Evaluation:
    """The results for one classifier.

    Args:
        name: The name of the classifier.
        eps: ε of the threat model.
        trained_eps: ε that the classifier was trained for; None if unknown.
        right: The clean images that are classified correctly, ``(N,)`` bool on the CPU.
        outcomes: The attacks in the order in which they were run.
        curves: Accuracy against ε and against iterations, if asked for.
        findings: The checklist.
        norm: The norm of the threat model, ``"linf"``, ``"l2"`` or ``"l1"``.
        threat: The threat model in words, if it is no ball, such as ``"rotations up to 30°"``.
    """

    name: str
    eps: float
    trained_eps: float | None
    right: Tensor
    outcomes: tuple[Outcome, ...] = ()
    curves: tuple[Curve, ...] = ()
    findings: tuple[Finding, ...] = ()
    norm: Norm = "linf"
    threat: str = ""

    @property
    def clean(self) -> float:
        """Accuracy without an attack.

        Returns:
            A number in [0, 1].
        """
        return share(self.right)

    @property
    def worst_case(self) -> float:
        """The share of images that are classified correctly and that no attack broke.

        Returns:
            A number in [0, 1].
        """
        return share(self.survivors(self.outcomes))

    @property
    def measured(self) -> tuple[Curve, ...]:
        """The curves whose attacks did not fail.

        Returns:
            Those of :attr:`curves` without a problem.
        """
        return tuple(curve for curve in self.curves if not curve.problem)

    @property
    def trustworthy(self) -> bool:
        """Whether every item of the checklist holds.

        Returns:
            True if so; False if nothing has been checked.
        """
        return bool(self.findings) and all(finding.ok for finding in self.findings)

    @property
    def radius(self) -> str:
        """The radius of the threat model, in words.

        Returns:
            ``"ε = 0.2"``, in another norm than L∞ with its name; :attr:`threat` if it is given.
        """
        if self.threat:
            return self.threat
        eps = f"ε = {self.eps:.3g}"
        return eps if self.norm == "linf" else f"{eps} in L{NORMS[self.norm].index}"

    def survivors(self, outcomes: tuple[Outcome, ...]) -> Tensor:
        """The images that are classified correctly under each of some attacks.

        Args:
            outcomes: The attacks.

        Returns:
            ``(N,)`` bool.
        """
        return survivors(self.right, (outcome.broken for outcome in outcomes))

    def alone(self, outcome: Outcome) -> float | None:
        """The accuracy under one attack alone.

        Args:
            outcome: The attack.

        Returns:
            A number in [0, 1]; None if the attack was not run on all images, or failed.
        """
        if outcome.problem or not torch.equal(outcome.attacked, self.right):
            return None
        return share(self.survivors((outcome,)))

    def before(self, outcome: Outcome) -> tuple[Outcome, ...]:
        """The attacks that were run before one.

        Args:
            outcome: One of :attr:`outcomes`.

        Returns:
            Those before it.
        """
        return self.outcomes[: self.outcomes.index(outcome)]

    def so_far(self, outcome: Outcome) -> float:
        """The worst case over the attacks up to and including this one.

        Args:
            outcome: One of :attr:`outcomes`.

        Returns:
            A number in [0, 1].
        """
        return share(self.survivors((*self.before(outcome), outcome)))

    def newly_broken(self, outcome: Outcome) -> int:
        """The number of images that an attack broke and no earlier one had.

        Args:
            outcome: One of :attr:`outcomes`.

        Returns:
            Their number.
        """
        return int((self.survivors(self.before(outcome)) & outcome.broken).sum())

    def outcome(self, name: str) -> Outcome | None:
        """An attack's outcome by name.

        Args:
            name: The name of the attack.

        Returns:
            Its outcome; None if it was not run or failed.
        """
        found = (outcome for outcome in self.outcomes if outcome.name == name)
        return next((outcome for outcome in found if not outcome.problem), None)
