"""The noun `Schedule`: in which order the leader's θ and the solver's φ move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.frozen import frozen
from bilevel.problem import Batch
from bilevel.tree import detach, tree_map

if TYPE_CHECKING:
    from bilevel.game import Bilevel


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
    gradients; φ's is negated on its way back through δ. Otherwise φ moves first, on a pass of its
    own, and θ on the same answer.

    Example:
        >>> Simultaneous()
        Simultaneous()
    """

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Moves both players once, on one answer."""
        solution = game.solve(batch)
        if game.zero_sum:
            loss = game.move_both(solution.value, batch)
        else:
            answer = tree_map(torch.clone, detach(solution.value))  # φ may be the answer itself
            game.move_solver(solution.value, batch)
            loss = game.move_leader(answer, batch)
        return game.metrics(loss, solution)

    def __repr__(self) -> str:
        return "Simultaneous()"


class Alternating(Schedule):
    """θ moves first, then φ, each on a solve of its own: what the paper's authors run.

    While one player moves, the other computes in evaluation mode. Dearer than
    :class:`Simultaneous`, which shares the solve and the pass at the solution.

    Args:
        follower_steps: Steps of φ for each step of θ.

    Raises:
        BilevelError: If ``follower_steps`` is not a whole number from 1 on.

    Example:
        >>> Alternating(follower_steps=2)
        Alternating(follower_steps=2)
    """

    def __init__(self, follower_steps: int = 1) -> None:
        if not isinstance(follower_steps, int) or follower_steps < 1:
            raise BilevelError(
                f"follower_steps is {follower_steps!r}: the follower moves a whole number of times "
                "for each step of the leader; give 1, 2, …"
            )
        self.follower_steps = follower_steps

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Moves the leader once and the solver ``follower_steps`` times, each on its own answer."""
        with frozen(game.solver, "eval"):
            solution = game.solve(batch)
        loss = game.move_leader(detach(solution.value), batch)
        for _ in range(self.follower_steps if game.solver_opt else 0):
            game.move_solver(game.solve(batch).value, batch)
        return game.metrics(loss, solution)

    def __repr__(self) -> str:
        return f"Alternating(follower_steps={self.follower_steps})"
