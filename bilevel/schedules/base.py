"""What every schedule is, and the two plain ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.frozen import frozen
from bilevel.problem import Batch

if TYPE_CHECKING:
    from bilevel.game import Bilevel


Player = Literal["leader", "follower"]


class Schedule(ABC):
    """One step of the game in terms of its moves.

    They are ``solve``, ``move_leader``, ``move_solver`` and, where one pass serves both players,
    ``move_both``.
    """

    @abstractmethod
    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Moves both players once.

        Args:
            game: The game.
            batch: The data of this step.

        Returns:
            Metrics, as scalars on the device.
        """

    def check(self, game: Bilevel) -> None:
        """Says so where the game cannot be played like this; a game asks once, when it is made.

        Args:
            game: The game.

        Raises:
            BilevelError: If its parts do not suit the schedule.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the schedule remembers between steps.

        Returns:
            Nothing, unless a subclass remembers something.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Args:
            state: What :meth:`state_dict` returned.
        """


class Simultaneous(Schedule):
    r"""Both players move from the same solve of the same batch (Algorithm 3 of Jiang et al., 2021).

    .. math::
        \delta = g_\phi(\cdot), \quad
        \theta \leftarrow \theta - \alpha_1 \nabla_\theta L(\theta, \delta), \quad
        \phi \leftarrow \phi + \alpha_2 \nabla_\phi q(\theta, \delta)

    In a zero-sum game one forward and one backward pass of the leader at the solution give both
    gradients; φ's is negated on its way back through δ. Otherwise φ has a pass of its own.

    Example:
        >>> Simultaneous()
        Simultaneous()
    """

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Moves both players once, on one answer."""
        solution = game.solve(batch)
        if game.zero_sum:
            return game.metrics(game.move_both(solution.value, batch), solution)
        # Asked before the leader moves, and moved after it, since φ may be the answer itself.
        objective = game.ask_solver(solution.value, batch)
        loss = game.move_leader(solution.value, batch)
        game.step_solver()
        return game.metrics(loss, solution, objective)

    def __repr__(self) -> str:
        return "Simultaneous()"


class Alternating(Schedule):
    """One player moves, then the other, each on a solve of its own.

    With the leader first it is what the authors of Jiang et al. (2021) run. With the follower first
    the leader meets a follower that has already answered this batch: generative adversarial
    networks (Goodfellow et al., 2014, Algorithm 1) and imitation (Ho & Ermon, 2016) are trained so.

    The solver answers in evaluation mode while the leader moves, and the leader is held fixed while
    the solver moves. Dearer than :class:`Simultaneous`, which shares the solve and the pass at the
    solution.

    Args:
        follower_steps: Steps of φ for each step of θ.
        first: Who moves first, ``"leader"`` or ``"follower"``.

    Raises:
        BilevelError: If ``follower_steps`` is not a whole number from 1 on, or ``first`` is no
            player.

    Example:
        >>> Alternating(follower_steps=2)
        Alternating(follower_steps=2, first='leader')
    """

    def __init__(self, follower_steps: int = 1, *, first: Player = "leader") -> None:
        if not isinstance(follower_steps, int) or follower_steps < 1:
            raise BilevelError(
                f"follower_steps is {follower_steps!r}: the follower moves a whole number of times "
                "for each step of the leader; give 1, 2, …"
            )
        if first not in ("leader", "follower"):
            raise BilevelError(
                f'first is {first!r}: one of two players begins; give "leader" or "follower"'
            )
        self.follower_steps = follower_steps
        self.first = first

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Moves the leader once and the solver ``follower_steps`` times, each on its own answer."""
        objective = self._move_solver(game, batch) if self.first == "follower" else None
        with frozen(game.solver, "eval"):
            solution = game.solve(batch)
        loss = game.move_leader(solution.value, batch)
        if self.first == "leader":
            objective = self._move_solver(game, batch)
        return game.metrics(loss, solution, objective)

    def _move_solver(self, game: Bilevel, batch: Batch) -> Tensor | None:
        objective = None
        for _ in range(self.follower_steps if game.solver_opt else 0):
            objective = game.move_solver(game.solve(batch).value, batch)
        return objective

    def __repr__(self) -> str:
        return f"Alternating(follower_steps={self.follower_steps}, first={self.first!r})"
