r"""Schedules that converge in games in which simultaneous steps diverge and alternating ones cycle.

A simultaneous step moves both players, w = (θ, φ), by a *displacement* D(w), which for gradient
descent–ascent is −ηF(w). All of these methods are defined by it:

    ProximalPoint    w ← w⁺  with  w⁺ = w + D(w⁺)      by fixed-point iterations
    Extragradient    w ← w + D(w + D(w))               two of those iterations
    Optimistic       w ← w + 2 D(w) − D(last w)        one evaluation, and the last displacement
    Lookahead        w ← w + α (Sᵏ(w) − w)             k steps of a schedule, part of the way

The displacement is the difference of the parameters before and after a step, so any leader,
follower, solver and optimizers can be used; two learning rates give the players two time scales. An
optimizer with state (momentum, Adam) updates it at every evaluation, as in Extra-Adam (Gidel et
al., 2019, Alg. 4). The theory does not cover optimizers that evaluate their closure several times a
step, such as LBFGS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel.arguments import count, instance_of
from bilevel.errors import BilevelError
from bilevel.parameters import Parameters
from bilevel.problem import Batch
from bilevel.schedules.base import Schedule, Simultaneous

if TYPE_CHECKING:
    from bilevel.game import Bilevel


class ProximalPoint(Simultaneous):
    r"""The implicit step w⁺ = w − ηF(w⁺), by fixed-point iterations (Martinet, 1970).

    .. math:: v_0 = w, \quad v_{j+1} = w + D(v_j)

    The iterations converge if η times the Lipschitz constant of F is less than 1. On
    f(x, y) = xy their limit contracts by 1/√(1 + η²). One iteration is :class:`Simultaneous`, two
    are :class:`Extragradient` (Mokhtari et al., 2020).

    A step costs ``iterations`` simultaneous steps on the same batch, and two copies of the players.

    Args:
        iterations: The number of fixed-point iterations.

    Raises:
        BilevelError: If ``iterations`` is not a positive integer; in :class:`~bilevel.Bilevel`, if
            the solver cannot be run twice.

    Example:
        >>> ProximalPoint(10)
        ProximalPoint(10)
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = count("iterations", iterations)

    def check(self, game: Bilevel) -> None:
        """Checks that the solver can be run several times a step."""
        if self.iterations > 1:
            use = f"{self!r} solves {self.iterations} times a step"
            once = ", or take Optimistic(), which solves once"
            game.solver.check_repeatable(use, otherwise=once)

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Iterates v ← w + D(v); the metrics are those of the first iteration, at w."""
        players = [*game.trained_parameters().values()]
        if not players:  # torch computes with no empty list, here and below
            return super().step(game, batch)
        base = [player.clone() for player in players]
        try:
            metrics = super().step(game, batch)
            for _ in range(self.iterations - 1):
                game.project(batch)
                offset = torch._foreach_sub(base, players)
                super().step(game, batch)
                torch._foreach_add_(players, offset)
                del offset  # before the next one: of a large leader it is another copy
        except BaseException:  # no extrapolated point is an iterate
            torch._foreach_copy_(players, base)
            raise
        return metrics


class Extragradient(ProximalPoint):
    r"""An extrapolation, then the step that it gives from the original point (Korpelevich, 1976).

    .. math:: \bar w = w + D(w), \quad w \leftarrow w + D(\bar w)

    On f(x, y) = xy it contracts by √(1 − η² + η⁴), best at η = 1/√2. A step costs two simultaneous
    steps on the same batch.

    Raises:
        BilevelError: In :class:`~bilevel.Bilevel`, if the solver cannot be run twice.

    Example:
        >>> Extragradient()
        Extragradient()
    """

    def __init__(self) -> None:
        super().__init__(2)


class Optimistic(Simultaneous):
    r"""Simultaneous steps with a correction by the last one (Popov, 1980; Daskalakis et al., 2018).

    .. math:: w_{t+1} = w_t + 2 D(w_t) - D(w_{t-1})

    On f(x, y) = xy it contracts by √((1 + √(1 − 4η²))/2) for η ≤ ½, best at η = ½ with √½, and
    diverges past 1/√3. With Adam it is Optimistic Adam. A step costs one simultaneous step, and two
    copies of the players.

    Example:
        >>> Optimistic()
        Optimistic()
    """

    def __init__(self) -> None:
        self._last: Parameters = {}

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Takes a simultaneous step and adds D(w) − D(last w), at the first step zero."""
        named = game.trained_parameters()
        players = [*named.values()]
        if not players:
            return super().step(game, batch)
        base = [player.clone() for player in players]
        metrics = super().step(game, batch)
        displacement = base  # as w − base, in its memory
        torch._foreach_neg_(displacement)
        torch._foreach_add_(displacement, players)
        if _of_same(self._last, named):
            torch._foreach_add_(players, displacement)
            torch._foreach_sub_(players, _alike(self._last, named))
        self._last = dict(zip(named, displacement, strict=True))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The last displacement."""
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned."""
        self._last = state["last"]


class Lookahead(Schedule):
    r"""Every k steps, interpolates back (Zhang et al., 2019; Chavdarova et al., 2021).

    .. math:: w \leftarrow w + \alpha\,(S^k(w) - w)

    On f(x, y) = xy the iterates spiral inward, since the interpolation cuts across the circle. It
    costs a copy of the players in addition to the inner schedule. An answer that a warm-started
    solver goes on from is no parameter of a player, and stays where it is.

    Args:
        inner: The schedule S of the k steps; default :class:`Simultaneous`.
        steps: k.
        alpha: α in (0, 1], the fraction of the way that is kept.

    Raises:
        BilevelError: If ``steps`` is not a positive integer, or α is out of range.

    Example:
        >>> Lookahead(Extragradient(), steps=10)
        Lookahead(inner=Extragradient(), steps=10)
    """

    def __init__(
        self, inner: Schedule | None = None, *, steps: int = 5, alpha: float = 0.5
    ) -> None:
        inner = Simultaneous() if inner is None else inner
        self.inner = instance_of("inner", inner, Schedule, "Extragradient() or your own")
        self.steps = count("steps", steps)
        if not 0 < alpha <= 1:
            raise BilevelError(
                f"alpha is {alpha}: it is the fraction of the way that is kept; give 0 < alpha ≤ 1"
            )
        self.alpha = alpha
        self._slow: Parameters = {}
        self._taken = 0

    def check(self, game: Bilevel) -> None:
        """Calls the inner schedule's check."""
        self.inner.check(game)

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Takes a step of the inner schedule; after the k-th, interpolates back to the start."""
        players = game.trained_parameters()
        if not players:
            return self.inner.step(game, batch)
        if not _of_same(self._slow, players):
            self._slow = {name: player.clone() for name, player in players.items()}
            self._taken = 0
        metrics = self.inner.step(game, batch)
        self._taken += 1
        if self._taken >= self.steps:
            game.project(batch)  # which is part of Sᵏ
            slow = _alike(self._slow, players)
            torch._foreach_lerp_([*players.values()], slow, 1 - self.alpha)
            self._slow = {}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The slow weights, the number of steps since, and the inner schedule's state."""
        return {"slow": self._slow, "taken": self._taken, "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` returned."""
        if state["inner"].keys() != (own := self.inner.state_dict()).keys():  # of another schedule
            raise KeyError(f"the inner schedule has state {[*own]}, not {[*state['inner']]}")
        self._slow, self._taken = state["slow"], state["taken"]
        self.inner.load_state_dict(state["inner"])


def _of_same(kept: Parameters, players: Parameters) -> bool:
    """Whether the kept tensors belong to these players: none was frozen or unfrozen since."""
    shapes = {name: tensor.shape for name, tensor in kept.items()}
    return shapes == {name: tensor.shape for name, tensor in players.items()}


def _alike(kept: Parameters, players: Parameters) -> list[Tensor]:
    """The kept tensors in the players' order and types, of which a loaded state may have others."""
    return [kept[name].to(player) for name, player in players.items()]
