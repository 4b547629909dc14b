"""`Bilevel` combines a leader, a follower and a solver, and trains them."""

from __future__ import annotations

import copy
from textwrap import indent
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel import moves
from bilevel import state as game_state
from bilevel.adjoints import Adjoint, Detached
from bilevel.checks.first_answer import check_first_answer
from bilevel.checks.optimizers import check_optimizer, warn_of_decay, warn_of_unmoved
from bilevel.checks.parts import check_in_place, check_parts, is_zero_sum
from bilevel.checks.processes import check_processes
from bilevel.parameters import Parameters
from bilevel.player import Optimizer
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, networks_of, overrides
from bilevel.schedules import Schedule, Simultaneous
from bilevel.solvers import Solution, Solver
from bilevel.solvers.base import MEANS
from bilevel.tree import Value, leaves, tree_map

if TYPE_CHECKING:
    from bilevel.distributed import Pool


class Bilevel:
    """Trains a leader against a follower, and the follower's solver with it.

    Args:
        leader: θ and its loss.
        follower: The problem of y.
        solver: Solves the follower's problem.
        leader_opt: The optimizer of θ; ``step(closure)`` is called once a step. None if it is
            not trained: it is then evaluated in the solver's ``leader_mode`` and left as it is.
        solver_opt: The optimizer of φ, the solver's parameters; None if it has none.
        adjoint: How the leader's gradient is taken through the answer. The default, for zero-sum
            games only, is :class:`Detached`, which is exact there.
        schedule: The order in which the players move; default :class:`Simultaneous`. The adjoint
            and the schedule are copied, since their state belongs to this game.

    Attributes:
        pool: In distributed training, sums the gradients over the processes
            (:class:`~bilevel.distributed.Pool`). None otherwise.

    Raises:
        BilevelError: If the parts do not fit together.

    Example:
        >>> import bilevel
        >>> class Saddle(bilevel.FollowerProblem):
        ...     sense = "max"
        ...     def init(self, batch): return torch.zeros(())
        ...     def objective(self, leader, y, batch): return leader.model.weight.sum() * y
        >>> model, saddle = torch.nn.Linear(1, 1, bias=False), Saddle()
        >>> torch.nn.init.ones_(model.weight).requires_grad
        True
        >>> leader, solver = bilevel.ZeroSum(model, saddle), bilevel.Parametric(torch.tensor(0.5))
        >>> game = Bilevel(leader, saddle, solver,
        ...                leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        ...                solver_opt=torch.optim.SGD(solver.parameters(), lr=0.1))
        >>> game.step(batch=None)["loss"].item()
        0.5
        >>> round(model.weight.item(), 4), round(solver.y.item(), 4)      # both moved from (1, 0.5)
        (0.95, 0.6)
    """

    def __init__(
        self,
        leader: LeaderProblem,
        follower: FollowerProblem,
        solver: Solver,
        *,
        leader_opt: Optimizer | None,
        solver_opt: torch.optim.Optimizer | None = None,
        adjoint: Adjoint | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.zero_sum = is_zero_sum(leader, follower)
        check_parts(leader, follower, solver, adjoint, schedule, zero_sum=self.zero_sum)
        # Any: subclasses have attributes of their own, which schedules and users read.
        self.leader: Any = leader
        self.follower: Any = follower
        self.solver: Any = solver
        self.leader_opt: Any = leader_opt
        self.solver_opt: Any = solver_opt
        self._check_optimizers()
        # Copies that share the other parts, where an adjoint or a schedule holds one: the solver's
        # update, the leader's parameters, the follower's network.
        networks = (leader, solver, *networks_of(follower))
        modules = [module for network in networks for module in network.modules()]
        tensors = [tensor for network in networks for tensor in network.parameters()]
        parts = (follower, leader_opt, solver_opt, *modules, *tensors)
        shared: dict[int, Any] = {id(part): part for part in parts}
        self.adjoint = copy.deepcopy(Detached() if adjoint is None else adjoint, shared)
        self.schedule = copy.deepcopy(Simultaneous() if schedule is None else schedule, shared)
        self.schedule.check(self)  # first: one that needs Detached() says so
        self.adjoint.check(solver, follower, leader)
        warn_of_decay(self.adjoint, solver, solver_opt)
        self.pool: Pool | None = None
        self.steps = 0
        self._answer: Value | None = None
        self._checked = False

    def __repr__(self) -> str:
        names = "leader", "follower", "solver", "adjoint", "schedule"
        parts = (f"({name}): {getattr(self, name)!r}" for name in names)
        return "\n".join(["Bilevel(", *(indent(part, "  ") for part in parts), ")"])

    def _check_optimizers(self) -> None:
        check_optimizer("leader", self.leader, self.leader_opt)
        check_optimizer("solver", self.solver, self.solver_opt)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Solves the follower and moves both players once.

        There is no device synchronisation, except in the first step, which checks the answer, in
        the backward passes of adjoints other than ``Detached`` and ``Unrolled``, and in
        :class:`~bilevel.CompetitiveGradient`.

        Args:
            batch: The data of this step.

        Returns:
            Scalars on the device, namely ``loss`` (the leader's, before it moved), the statistics
            of the :class:`Solution` and, if the game is zero-sum or the solver is trained,
            ``objective_after``. In a zero-sum game that is the loss, with the objective's sign: of
            the leader in its own mode, while ``objective_before`` is of the leader in the solver's
            ``leader_mode``. With dropout or batch normalisation the two are not comparable.
            :class:`~bilevel.MetricLog` reads many steps at once.

        Raises:
            NonFiniteError: On the CPU, if a loss is NaN or infinite, before the player moves. On
                other devices :class:`~bilevel.MetricLog` raises.
        """
        if self.steps == 0:
            self.follower.check(batch)
        self.project(batch)  # the players may start outside of their constraints, or these change
        kept = self.solver.kept
        try:
            with torch.enable_grad():
                metrics = self.schedule.step(self, batch)
        except BaseException:  # the next solve would go on from the answer to a batch of NaN, say
            self.solver.kept = kept
            raise
        if self.steps == 0:
            warn_of_unmoved("leader", self.leader, self.leader_opt)
            warn_of_unmoved("solver", self.solver, self.solver_opt)
        self.project(batch)
        answer, self._answer = self._answer, None
        if answer is not None:
            with torch.no_grad():
                self.follower.keep(answer, batch)
        self.steps += 1
        return metrics

    # The building blocks of schedules.

    def trained_parameters(self) -> Parameters:
        """The trainable parameters of both players, θ and φ.

        Returns:
            The parameters by name, ``leader.…`` and ``solver.…``, detached, so that in-place
            changes move the players.
        """
        return {
            f"{player}.{name}": parameter.detach()
            for player, module in (("leader", self.leader), ("solver", self.solver))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def project(self, batch: Batch) -> None:
        """Projects both players onto their constraints, in place.

        Args:
            batch: The data of this step.
        """
        self._project_leader()
        self.solver.project(self.follower, batch)

    def _project_leader(self) -> None:
        with torch.no_grad():
            returned: object = self.leader.project()
            check_in_place(self.leader, returned)

    def solve(self, batch: Batch) -> Solution:
        """Solves the follower for the current leader.

        Args:
            batch: The data.

        Returns:
            The answer, with the graph that the adjoint gives it.
        """
        self._project_leader()
        if not self._checked:
            self._check_optimizers()  # a parameter may have been replaced since the game was built
            self.follower.check(batch)
            if self.pool is not None:
                check_processes(self)
        torch.clear_autocast_cache()  # its converted weights are those from before the last move
        solution = self.adjoint.solve(self.solver, self.follower, self.leader, batch)
        if not self._checked and not leaves(solution.value)[0].is_meta:
            check_first_answer(self, solution, batch)
            self._checked = True
        if overrides(self.follower, "keep"):
            # A copy: an answer that is a parameter is about to move.
            self._answer = tree_map(lambda leaf: leaf.detach().clone(), solution.value)
        return solution

    def move_leader(self, y: Value, batch: Batch) -> Tensor:
        """Takes one step of the leader's optimizer.

        The first evaluation of the closure is at ``y``. If the optimizer calls it again, at another
        θ, the follower is solved again, unless the adjoint treats the answer as a constant.

        Args:
            y: The answer.
            batch: The data.

        Returns:
            The leader's loss before it moved.

        Raises:
            BilevelError: If the optimizer does not call its closure, or calls it again while the
                solver starts from its last answer.
        """
        return moves.move_leader(self, y, batch)

    def move_solver(self, y: Value, batch: Batch) -> Tensor | None:
        """Takes one step of the solver's optimizer, which ascends the follower's mean gain.

        The leader is held fixed. Does nothing if the solver is not trained.

        Args:
            y: An answer with its graph.
            batch: The data.

        Returns:
            The follower's mean objective at ``y``; None if the solver is not trained.
        """
        return moves.move_solver(self, y, batch)

    def move_both(self, y: Value, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Moves both players from one answer.

        In a zero-sum game by one backward pass: the leader's continues through ``y`` to φ, whose
        gradient is then negated, so that both optimizers descend. Otherwise, and where hooks of φ
        would see the gradient before that, φ has a pass of its own.

        Args:
            y: An answer with its graph.
            batch: The data.

        Returns:
            What :meth:`move_leader` and :meth:`move_solver` return.
        """
        return moves.move_both(self, y, batch)

    def metrics(
        self, loss: Tensor, solution: Solution, objective: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The metrics of a step.

        Args:
            loss: The leader's loss at the solution.
            solution: The solution on which the leader moved.
            objective: The follower's mean objective, from :meth:`move_solver`; in a zero-sum game
                it follows from the loss.

        Returns:
            The loss, the solution's statistics and the objective.
        """
        metrics = {"loss": loss, **solution.stats}
        if self.pool is not None:
            metrics |= self.pool.mean({name: metrics[name] for name in MEANS if name in metrics})
        if self.zero_sum:
            objective = loss if self.follower.sign > 0 else -loss
        return metrics if objective is None else {**metrics, "objective_after": objective}

    def state_dict(self) -> dict[str, Any]:
        """The state of players, optimizers, schedule and adjoint, and the step count.

        Of the follower only the networks that it holds, since solves update their running
        statistics.

        Returns:
            Tensors and plain values, for ``torch.save`` and ``torch.load(weights_only=True)``.
        """
        return {**game_state.read(self), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state; if it does not fit, raises and leaves the game as it was.

        Args:
            state: What :meth:`state_dict` of a game with the same parts returned.

        Raises:
            BilevelError: If it is the state of another game.
        """
        game_state.load(self, state)
        self.steps = state["steps"]
