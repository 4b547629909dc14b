"""`Bilevel` puts a leader, a follower and a solver together and moves them step by step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel import checks
from bilevel import state as game_state
from bilevel.adjoints import Adjoint, Detached
from bilevel.errors import BilevelError
from bilevel.frozen import frozen
from bilevel.player import Optimizer, forget_gradients, trained
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.schedules import Schedule, Simultaneous
from bilevel.solvers import Solution, Solver
from bilevel.tree import Value, detach, leaves

if TYPE_CHECKING:
    from bilevel.distributed import Pool


class Bilevel:
    """A leader trained against a follower, and the follower's solver trained with it.

    Args:
        leader: θ and its loss.
        follower: What y must optimise.
        solver: Answers for the follower.
        leader_opt: Moves θ; ``step(closure)`` is called once a step.
        solver_opt: Moves φ, the solver's parameters; None where it has none.
        adjoint: How the answer enters the leader's gradient. A zero-sum game defaults to
            :class:`Detached`, which is exact there; any other game names its own.
        schedule: In which order the players move; default :class:`Simultaneous`. Like the adjoint
            it is copied, since what it remembers is of this game.

    Attributes:
        pool: Where many processes play, each on its share of the batch: adds up their gradients
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
        leader_opt: Optimizer,
        solver_opt: torch.optim.Optimizer | None = None,
        adjoint: Adjoint | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.leader = leader
        self.follower = follower
        self.solver = solver
        self.leader_opt = leader_opt
        self.solver_opt = solver_opt
        self.zero_sum = checks.is_zero_sum(leader, follower)
        if adjoint is None and not self.zero_sum:
            raise BilevelError(
                f"{type(leader).__name__} is not zero-sum with {type(follower).__name__}: treating "
                "y* as a constant would drop a term of the leader's gradient; name the adjoint: "
                "Unrolled(), Implicit(), …, or Detached() if that is what you want (a ZeroSum is "
                "one with its own follower object alone, and as long as its loss is not another)"
            )
        checks.check_apart(leader, solver)
        checks.check_optimizer("leader", leader, leader_opt)
        checks.check_optimizer("solver", solver, solver_opt)
        checks.check_made("adjoint", adjoint, Adjoint)
        checks.check_made("schedule", schedule, Schedule)
        # What they remember is of this game; updates that they share with the solver stay shared.
        shared: dict[int, Any] = {id(module): module for module in solver.modules()}
        self.adjoint = copy.deepcopy(adjoint or Detached(), shared)
        self.schedule = copy.deepcopy(schedule or Simultaneous())
        self.schedule.check(self)
        self.pool: Pool | None = None
        self.steps = 0
        self._checked = False

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Solves the follower and moves both players once.

        No device synchronisation inside, but for the first step, which looks at its answer, and the
        backward passes of adjoints other than ``Detached`` and ``Unrolled``.

        Args:
            batch: The data of this step.

        Returns:
            Scalars on the device, namely ``loss`` (the leader's, before it moved), what the solver
            saw (:class:`Solution`) and, where the solver is trained, ``objective_after``.
            :class:`~bilevel.MetricLog` reads many steps at once.

        Raises:
            NonFiniteError: On the CPU, where looking costs nothing, if a loss is NaN or infinite;
                the player has not moved then. Elsewhere :class:`~bilevel.MetricLog` raises.
        """
        metrics = self.schedule.step(self, batch)
        self.project(batch)
        self.steps += 1
        return metrics

    # The moves, for schedules.

    def trained_parameters(self) -> list[Tensor]:
        """What moves: θ and φ, as far as they are trained.

        Returns:
            The parameters themselves, cut from autograd; what is written into them stays.
        """
        return [parameter.detach() for parameter in trained(self.leader, self.solver)]

    def project(self, batch: Batch) -> None:
        """Puts both players back where they may be.

        Args:
            batch: The data of this step.
        """
        self.leader.project()
        self.solver.project(self.follower, batch)

    def solve(self, batch: Batch) -> Solution:
        """The follower's answer to the leader as it stands.

        Args:
            batch: The data.

        Returns:
            The answer as the adjoint makes it.
        """
        self.leader.project()
        solution = self.adjoint.solve(self.solver, self.follower, self.leader, batch)
        if not self._checked and not leaves(solution.value)[0].is_meta:
            checks.check_answer(self.follower, solution.value, batch)
            self._checked = True
        return solution

    def move_leader(self, y: Value, batch: Batch) -> Tensor:
        """One step of the leader's optimizer on L(·, y).

        The first evaluation of the closure is at ``y``. Further ones, of an optimizer that asks for
        several, are of the same function of θ: the follower is solved again, unless the adjoint
        holds its answer constant.

        Args:
            y: The answer.
            batch: The data.

        Returns:
            The leader's loss before it moved.

        Raises:
            BilevelError: If the optimizer does not call its closure, or calls it again where the
                solver goes on from its last answer.
        """
        return self._move_leader(y, batch, [])

    def _move_leader(self, y: Value, batch: Batch, phi: list[Tensor]) -> Tensor:
        """The same; the gradients of ``phi`` are filled too, where ``y`` has come from it."""
        losses: list[Tensor] = []

        def closure() -> Tensor:
            theta = forget_gradients(self.leader)
            loss = self.leader.loss(self._answer_again(y, batch) if losses else y, batch)
            checks.check_loss("the leader's loss", loss, self.steps)
            loss = self._backward(loss, theta if losses else theta + phi)
            losses.append(loss)
            return loss

        self.leader_opt.step(closure)
        if not losses:
            raise BilevelError(
                f"{type(self.leader_opt).__name__}.step did not call its closure, which computes "
                "the leader's loss and gradients: call it, as the optimizers of torch.optim do"
            )
        return losses[0]

    def _answer_again(self, y: Value, batch: Batch) -> Value:
        """The answer to the leader where its optimizer has carried it meanwhile."""
        if isinstance(self.adjoint, Detached):
            return detach(y)
        if not self.solver.repeatable:
            raise BilevelError(
                f"{type(self.leader_opt).__name__} evaluates the leader's loss several times a "
                f"step, but {type(self.solver).__name__} goes on from its last answer at each "
                "solve: give it warm_start=False, or take an optimizer that evaluates once"
            )
        return self.solve(batch).value

    def move_solver(self, y: Value, batch: Batch) -> Tensor | None:
        """One step of the solver's optimizer, which ascends the follower's mean gain at ``y``.

        The leader is held fixed. A solver without parameters has nothing to move.

        Args:
            y: An answer with its history.
            batch: The data.

        Returns:
            The follower's mean objective there; None where there is nothing to move.
        """
        objective = self.ask_solver(y, batch)
        self.step_solver()
        return objective

    def ask_solver(self, y: Value, batch: Batch) -> Tensor | None:
        """The first half of :meth:`move_solver`: the gradient, while the history of y is kept.

        Args:
            y: An answer with its history.
            batch: The data.

        Returns:
            What :meth:`move_solver` returns.
        """
        if self.solver_opt is None:
            return None
        phi = forget_gradients(self.solver)  # of what is frozen too: its optimizer would read them
        if not phi:
            return None
        with frozen(self.leader, self.solver.leader_mode):
            loss = -self.follower.gain(self.leader, y, batch).mean()
            checks.check_loss("the follower's objective", loss, self.steps)
            loss = self._backward(loss, phi, retain_graph=True)
        return -self.follower.sign * loss

    def _backward(self, loss: Tensor, asked: list[Tensor], *, retain_graph: bool = False) -> Tensor:
        """Fills the gradients of these parameters, and no others', with the whole batch's.

        Returns:
            The whole batch's loss.
        """
        if self.pool is not None:
            loss = loss * self.pool.share
        if asked:
            loss.backward(inputs=asked, retain_graph=retain_graph)
        loss = loss.detach()
        if self.pool is not None:
            loss = loss.clone()
            self.pool.all_reduce([loss, *(p.grad for p in asked if p.grad is not None)])
        return loss

    def step_solver(self) -> None:
        """The second half: the step of the solver's optimizer, where there is one."""
        if self.solver_opt is not None:
            self.solver_opt.step()

    def move_both(self, y: Value, batch: Batch) -> Tensor:
        """In a zero-sum game: both moves for the price of the leader's.

        The leader's backward pass goes on through ``y`` to φ, whose gradient is then negated, so
        that a descent step of either optimizer improves its own player.

        Args:
            y: An answer with its history.
            batch: The data.

        Returns:
            The leader's loss before it moved.
        """
        phi = forget_gradients(self.solver)
        loss = self._move_leader(y, batch, phi)
        for parameter in phi:
            if parameter.grad is not None:
                parameter.grad.neg_()
        self.step_solver()
        return loss

    def metrics(
        self, loss: Tensor, solution: Solution, objective: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What a step reports.

        Args:
            loss: The leader's loss at the solution.
            solution: The solution that it moved on.
            objective: The follower's mean objective where its solver moved; in a zero-sum game
                the loss says it.

        Returns:
            The loss, the solution's statistics and the objective.
        """
        metrics = {"loss": loss, **solution.stats}
        if self.zero_sum:
            objective = loss if self.follower.sign > 0 else -loss
        return metrics if objective is None else {**metrics, "objective_after": objective}

    # What outlives the process.

    def state_dict(self) -> dict[str, Any]:
        """All that the game is made of: networks, optimizers, schedule, step count.

        Returns:
            Tensors and plain values, fit for ``torch.save`` and ``torch.load(weights_only=True)``.
        """
        return {**game_state.read(self._parts()), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave, or raises before anything has changed.

        Args:
            state: What :meth:`state_dict` returned, of a game made of the same parts.

        Raises:
            BilevelError: If the state is that of another game.
        """
        device = next((p.device for p in self.leader.parameters()), torch.device("cpu"))
        game_state.load(self._parts(), state, device)
        self.steps = state["steps"]

    def _parts(self) -> dict[str, Any]:
        parts = {
            "leader": self.leader,
            "solver": self.solver,
            "leader_opt": self.leader_opt,
            "solver_opt": self.solver_opt,
            "schedule": self.schedule,
            # It remembers nothing, and games were saved before any other did.
            "adjoint": None if isinstance(self.adjoint, Detached) else self.adjoint,
        }
        return {name: part for name, part in parts.items() if part is not None}
