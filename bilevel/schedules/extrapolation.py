r"""Schedules that make players meet who circle under the plain ones.

A simultaneous step carries both players, w = (θ, φ), by its *displacement* D(w), which for gradient
descent–ascent is −ηF(w). The methods that escape its circles are made of nothing else:

    ProximalPoint    w ← w⁺  with  w⁺ = w + D(w⁺)      by fixed-point iterations
    Extragradient    w ← w + D(w + D(w))               two of those iterations
    Optimistic       w ← w + 2 D(w) − D(w before)      one evaluation, and a memory
    Lookahead        w ← w + α (Sᵏ(w) − w)             k steps of a schedule, part of the way

A displacement is measured and not computed from gradients, so they take any leader, follower,
solver and optimizers; step sizes of their own give the players two time scales. An optimizer with
a memory (momentum, Adam) takes in every evaluation, as in Extra-Adam (Gidel et al., 2019, Alg. 4).
One that evaluates its closure several times a step, such as LBFGS, takes no small step along a
field, and nothing is known of what comes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.problem import Batch
from bilevel.schedules.base import Schedule, Simultaneous

if TYPE_CHECKING:
    from bilevel.game import Bilevel


class ProximalPoint(Simultaneous):
    r"""The implicit step w⁺ = w − ηF(w⁺), by fixed-point iterations (Martinet, 1970).

    .. math:: v_0 = w, \quad v_{j+1} = w + D(v_j)

    The iterations converge where η times the Lipschitz constant of F is less than 1. On
    f(x, y) = xy their limit contracts by 1/√(1 + η²). One iteration is :class:`Simultaneous`, two
    are :class:`Extragradient` (Mokhtari et al., 2020).

    A step costs as many simultaneous steps, all on the same batch, and two copies of the players.

    Args:
        iterations: How often the fixed-point map is applied.

    Raises:
        BilevelError: If ``iterations`` is not a whole number from 1 on; in
            :class:`~bilevel.Bilevel`, if the solver cannot be evaluated twice.

    Example:
        >>> ProximalPoint(10)
        ProximalPoint(10)
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = _count("iterations", iterations)

    def check(self, game: Bilevel) -> None:
        """Each iteration but the last only looks where it would get: the solver must bear that."""
        if self.iterations > 1 and not game.solver.repeatable:
            raise BilevelError(
                f"{self!r} evaluates a step {self.iterations} times, each from where it began, but "
                f"{type(game.solver).__name__} goes on from its last answer at each solve: give it "
                "warm_start=False, or take Optimistic(), which evaluates once"
            )

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Iterates v ← w + D(v); reports what the first iteration saw, at w."""
        players = game.trained_parameters()
        base = [player.clone() for player in players]
        metrics = super().step(game, batch)
        try:
            for _ in range(self.iterations - 1):
                game.project(batch)
                offset = torch._foreach_sub(base, players)
                super().step(game, batch)
                torch._foreach_add_(players, offset)
        except BaseException:  # a look ahead at what is not finite is no move
            torch._foreach_copy_(players, base)
            raise
        return metrics

    def __repr__(self) -> str:
        return f"ProximalPoint({self.iterations})"


class Extragradient(ProximalPoint):
    r"""A look ahead, then the step from where the players stood (Korpelevich, 1976).

    .. math:: \bar w = w + D(w), \quad w \leftarrow w + D(\bar w)

    On f(x, y) = xy it contracts by √(1 − η² + η⁴), best at η = 1/√2. A step costs two simultaneous
    steps on the same batch.

    Raises:
        BilevelError: In :class:`~bilevel.Bilevel`, if the solver cannot be evaluated twice.

    Example:
        >>> Extragradient()
        Extragradient()
    """

    def __init__(self) -> None:
        super().__init__(2)

    def __repr__(self) -> str:
        return "Extragradient()"


class Optimistic(Simultaneous):
    r"""Optimistic steps (Popov, 1980; Daskalakis et al., 2018): the last one foretells the next.

    .. math:: w_{t+1} = w_t + 2 D(w_t) - D(w_{t-1})

    On f(x, y) = xy it contracts by √((1 + √(1 − 4η²))/2) for η ≤ ½, best at η = ½ with √½, and
    diverges past 1/√3. With Adam it is Optimistic Adam. It costs one simultaneous step and keeps
    two copies of the players.

    Example:
        >>> Optimistic()
        Optimistic()
    """

    def __init__(self) -> None:
        self._last: list[Tensor] | None = None

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Steps, and corrects by how the displacement has changed; at first it has not."""
        players = game.trained_parameters()
        base = [player.clone() for player in players]
        metrics = super().step(game, batch)
        displacement = list(torch._foreach_sub(players, base))
        if _alike(self._last, players):
            torch._foreach_add_(players, displacement)
            torch._foreach_sub_(players, self._last)
        self._last = displacement
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The last displacement."""
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._last = state["last"]

    def __repr__(self) -> str:
        return "Optimistic()"


class Lookahead(Schedule):
    r"""Every k steps, back part of the way (Zhang et al., 2019; Chavdarova et al., 2021).

    .. math:: w \leftarrow w + \alpha\,(S^k(w) - w)

    On f(x, y) = xy it turns circles into a spiral inward, because the players cut across. It costs
    one copy of the players beside the inner schedule.

    Args:
        inner: The schedule S of the k steps; :class:`Simultaneous` unless given.
        steps: k.
        alpha: α in (0, 1], which part of the way is kept; 1 keeps all.

    Raises:
        BilevelError: If ``steps`` is not a whole number from 1 on, or α is out of its range.

    Example:
        >>> Lookahead(Extragradient(), steps=5)
        Lookahead(Extragradient(), steps=5, alpha=0.5)
    """

    def __init__(
        self, inner: Schedule | None = None, *, steps: int = 5, alpha: float = 0.5
    ) -> None:
        self.inner = Simultaneous() if inner is None else inner
        self.steps = _count("steps", steps)
        if not 0 < alpha <= 1:
            raise BilevelError(
                f"alpha is {alpha}: it is the part of the way that is kept; give 0 < alpha ≤ 1"
            )
        self.alpha = alpha
        self._slow: list[Tensor] | None = None
        self._taken = 0

    def check(self, game: Bilevel) -> None:
        """Asks the inner schedule."""
        self.inner.check(game)

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """One step of the inner schedule; with the k-th, back toward where they started from."""
        players = game.trained_parameters()
        if not _alike(self._slow, players):
            self._slow = [player.clone() for player in players]
        metrics = self.inner.step(game, batch)
        self._taken += 1
        if self._taken == self.steps:
            torch._foreach_lerp_(players, self._slow, 1 - self.alpha)
            self._slow, self._taken = None, 0
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Where the k steps began, how many are done, and what the inner schedule remembers."""
        return {"slow": self._slow, "taken": self._taken, "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self._slow, self._taken = state["slow"], state["taken"]
        self.inner.load_state_dict(state["inner"])

    def __repr__(self) -> str:
        return f"Lookahead({self.inner!r}, steps={self.steps}, alpha={self.alpha:g})"


def _alike(kept: list[Tensor] | None, players: list[Tensor]) -> TypeGuard[list[Tensor]]:
    """Whether something was kept, of the same players: none was frozen or thawed meanwhile."""
    return kept is not None and [k.shape for k in kept] == [p.shape for p in players]


def _count(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise BilevelError(f"{name} is {value!r}: it is a whole number of times; give 1, 2, …")
    return value
