"""The base class of schedules, and the two plain ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from bilevel.arguments import count, one_of
from bilevel.frozen import Mode, frozen
from bilevel.part import Part
from bilevel.problem import Batch

if TYPE_CHECKING:
    from bilevel.game import Bilevel


Player = Literal["leader", "follower"]


class Schedule(Part, ABC):
    """Defines a step by the ``solve`` and ``move_…`` methods of the game."""

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
        """Checks that a game can use this schedule; called once, when the game is built.

        Args:
            game: The game.

        Raises:
            BilevelError: If it cannot.
        """


class Simultaneous(Schedule):
    r"""Both players move from the same solve of the same batch (Algorithm 3 of Jiang et al., 2021).

    .. math::
        \delta = g_\phi(\cdot), \quad
        \theta \leftarrow \theta - \alpha_1 \nabla_\theta L(\theta, \delta), \quad
        \phi \leftarrow \phi + \alpha_2 \nabla_\phi q(\theta, \delta)

    In a zero-sum game one forward and one backward pass of the leader at the solution give both
    gradients, of which φ's is negated. Otherwise φ has a pass of its own.

    Example:
        >>> Simultaneous()
        Simultaneous()
    """

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Moves both players once, on one solve."""
        solution = game.solve(batch)
        loss, objective = game.move_both(solution.value, batch)
        return game.metrics(loss, solution, objective)


class Alternating(Schedule):
    """One player moves, then the other, each on a solve of its own.

    Leader first is what the authors' code of Jiang et al. (2021) does. Follower first is how
    generative adversarial networks (Goodfellow et al., 2014, Algorithm 1) and GAIL (Ho & Ermon,
    2016) are trained: the follower has already moved on this batch when the leader does.

    Each player is held fixed while the other moves: the leader in the solver's ``leader_mode``, the
    solver in ``solver_mode``. All moves are on the same batch. It costs more than
    :class:`Simultaneous`, which shares the solve and the pass at the solution.

    Args:
        follower_steps: Steps of φ for each step of θ.
        first: Who moves first, ``"leader"`` or ``"follower"``.
        solver_mode: The solver's mode while the leader moves: ``"eval"``, as in the authors' code,
            or ``"train"``, as generative adversarial networks are trained.

    Raises:
        BilevelError: If ``follower_steps`` is not a positive integer, or another argument is not
            one of its two values; in :class:`~bilevel.Bilevel`, if each solve moves the trained
            solver's answer.

    Example:
        >>> Alternating(follower_steps=2)
        Alternating(follower_steps=2)
    """

    def __init__(
        self, follower_steps: int = 1, *, first: Player = "leader", solver_mode: Mode = "eval"
    ) -> None:
        self.follower_steps = count("follower_steps", follower_steps)
        self.first = one_of("first", first, get_args(Player))
        self.solver_mode = one_of("solver_mode", solver_mode, get_args(Mode))

    def check(self, game: Bilevel) -> None:
        """Checks that the solves of a step do not add up."""
        if game.solver_opt is not None:
            use = f"{self!r} solves {self.follower_steps + 1} times a step"
            once = ", or take Simultaneous(), which solves once"
            game.solver.check_repeatable(use, otherwise=once)

    def step(self, game: Bilevel, batch: Batch) -> dict[str, Tensor]:
        """Moves the leader once and the solver ``follower_steps`` times, each on its own solve."""
        objective = self._move_solver(game, batch) if self.first == "follower" else None
        with frozen(game.solver, self.solver_mode):
            solution = game.solve(batch)
            loss = game.move_leader(solution.value, batch)
        if self.first == "leader":
            objective = self._move_solver(game, batch)
        return game.metrics(loss, solution, objective)

    def _move_solver(self, game: Bilevel, batch: Batch) -> Tensor | None:
        objective = None
        for _ in range(0 if game.solver_opt is None else self.follower_steps):
            objective = game.move_solver(game.solve(batch).value, batch)
        return objective
