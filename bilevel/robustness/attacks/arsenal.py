"""Everything that the named attacks are made of, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bilevel.errors import BilevelError
from bilevel.robustness.data import ImageSet
from bilevel.robustness.losses import Loss, cross_entropy
from bilevel.robustness.threats import Linf
from bilevel.robustness.trained import Trained


@dataclass(frozen=True)
class Arsenal:
    """Everything that the named attacks are made of.

    Args:
        target: The classifier to be attacked.
        eps: ε.
        start: Radius of PGM's random start; the paper's 1e-4.
        restarts: Random starts of PGM and APGD; the paper takes the worst of 5.
        points: Random points a sample; the paper's table has 1e5.
        surrogates: Classifiers whose adversarial images are tried on the target.
        fresh: The method of the attacker trained afresh.
        fresh_steps: Its training steps.
        train: The images that it is trained on.
        alone: The names of the attacks that see every image for their own figure, beside FGSM,
            PGM, the own attacker and transfer, which always do.
        seed: Of other packages' random numbers.
    """

    target: Trained
    eps: float
    start: float = 1e-4
    restarts: int = 1
    points: int = 300
    surrogates: Sequence[Trained] = ()
    fresh: str = "grad-l2l"
    fresh_steps: int = 300
    train: ImageSet | None = None
    alone: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers, and the surrogates against the target."""
        if not 0 < self.eps <= 1:
            raise BilevelError(
                f"epsilon is {self.eps}: an attack needs room; give 0 < epsilon ≤ 1 in units of "
                "the pixel range, 8/255 = 0.031 rather than 8"
            )
        for name in ("restarts", "points", "fresh_steps"):
            if (count := getattr(self, name)) < 1:
                raise BilevelError(
                    f"{name} is {count}: an attack tries at least once; give 1 or more"
                )
        for surrogate in self.surrogates:
            for what in ("classes", "channels"):
                own, other = getattr(self.target.about, what), getattr(surrogate.about, what)
                if own != other:
                    raise BilevelError(
                        f"surrogate {surrogate.name} has {other} {what}, {self.target.name} has "
                        f"{own}: its adversarial images fit no other; name one of the same data"
                    )

    def ball(self, loss: Loss = cross_entropy, *, start: float | None = None) -> Linf:
        """The threat model.

        Args:
            loss: What is raised.
            start: Radius of the random start; ε unless given.

        Returns:
            A follower.
        """
        return Linf(self.eps, start=self.eps if start is None else start, loss=loss)
