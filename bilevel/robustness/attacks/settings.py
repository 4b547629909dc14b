"""The settings of the named attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.methods import EVALUATION_START
from bilevel.robustness.threats.losses import Loss, cross_entropy
from bilevel.robustness.threats.norms import NORMS, Norm, check_epsilon
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.robustness.trained import Trained


@dataclass(frozen=True)
class AttackSettings:
    """The settings of the named attacks, see :func:`make_attacks`.

    Args:
        eps: ε of the threat model.
        classes: Number of classes.
        start: Radius of PGM's random start; 1e-4 in the paper.
        restarts: Random starts of PGM and APGD; the paper takes the worst of 5.
        points: Points per image of random sampling; 1e5 in the paper's table.
        queries: Queries per image of the Square Attack; 5,000 in AutoAttack.
        surrogates: Classifiers by name, for transfer attacks.
        trained: The classifier with its learned attacker, for the attack ``own``.
        fresh: The training method of the attack ``fresh``.
        fresh_steps: Training steps of its attacker.
        train: The images that it is trained on.
        alone: Names of further attacks to run on every correctly classified image, so that they
            have an accuracy of their own; FGSM, PGM, ``own`` and ``transfer`` always are.
        seed: Seed of AutoAttack.
        norm: The norm of the threat model, ``"linf"``, ``"l2"`` or ``"l1"``.

    Raises:
        BilevelError: If a number is out of its range.
    """

    eps: float
    classes: int
    start: float = EVALUATION_START
    restarts: int = 1
    points: int = 100
    queries: int = 300
    surrogates: Mapping[str, nn.Module] = field(default_factory=dict)
    trained: Trained | None = None
    fresh: str = "grad-l2l"
    fresh_steps: int = 300
    train: ImageSet | None = None
    alone: tuple[str, ...] = ()
    seed: int = 0
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        """Checks the numbers."""
        check_epsilon(self.eps, self.norm)
        if self.classes < 2:
            raise BilevelError(
                f"classes is {self.classes}: an attack looks for a wrong class; give 2 or more"
            )
        for name in ("restarts", "points", "queries", "fresh_steps"):
            count(name, getattr(self, name))

    def ball(self, *, start: float = 0.0, loss: Loss = cross_entropy) -> Perturbation:
        """The threat model.

        Args:
            start: Radius of the random start.
            loss: The loss to maximise.

        Returns:
            A ball of radius ε.
        """
        return NORMS[self.norm](self.eps, start=start, loss=loss)
