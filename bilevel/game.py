"""`Bilevel` puts a leader, a follower and a solver together and moves them step by step."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from bilevel import checks
from bilevel.adjoint import Adjoint, Detached
from bilevel.errors import BilevelError
from bilevel.frozen import frozen
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, ZeroSum
from bilevel.schedule import Schedule, Simultaneous
from bilevel.solver import Solution, Solver
from bilevel.tree import Value, detach, leaves

if TYPE_CHECKING:
    from bilevel.distributed import Pool


class Optimizer(Protocol):
    """What moves a player: an optimizer of ``torch.optim``, or a method with ``step(closure)``."""

    def step(self, closure: Callable[[], Any]) -> Any:
        """Evaluates ``closure`` (loss and gradients) as often as it needs, and moves.

        Args:
            closure: Computes the loss, fills ``.grad`` and returns the loss.

        Returns:
            Whatever the method returns; it is not read.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers.

        Returns:
            Its state.
        """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Args:
            state_dict: The state.
        """


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
        schedule: In which order the players move; default :class:`Simultaneous`.

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
        self.zero_sum = isinstance(leader, ZeroSum) and leader.follower is follower
        if adjoint is None and not self.zero_sum:
            raise BilevelError(
                f"{type(leader).__name__} is not zero-sum with {type(follower).__name__}: treating "
                "y* as a constant would drop a term of the leader's gradient; name the adjoint: "
                "Unrolled(), Implicit(), …, or Detached() if that is what you want"
            )
        checks.check_optimizer("leader", leader, leader_opt)
        checks.check_optimizer("solver", solver, solver_opt)
        # What they remember is of this game.
        self.adjoint = copy.deepcopy(adjoint or Detached())
        self.schedule = copy.deepcopy(schedule or Simultaneous())
        self.schedule.check(self)
        self.pool: Pool | None = None
        self.steps = 0
        self._checked = False

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Solves the follower and moves both players once; no device synchronisation inside.

        Args:
            batch: The data of this step.

        Returns:
            Scalars on the device: ``loss`` (the leader's, before it moved) and what the solver saw
            (:class:`Solution`). :class:`~bilevel.MetricLog` reads many steps at once.

        Raises:
            NonFiniteError: On the CPU, where looking costs nothing, if a loss is NaN or infinite;
                the player has not moved then. Elsewhere :class:`~bilevel.MetricLog` raises.
        """
        metrics = self.schedule.step(self, batch)
        self.project(batch)
        self.steps += 1
        return metrics

    # The moves, for schedules.

    def players(self) -> list[Tensor]:
        """What moves: θ and φ, as far as they are trained.

        Returns:
            The parameters themselves, cut from autograd: what is written into them stays.
        """
        parameters = itertools.chain(self.leader.parameters(), self.solver.parameters())
        return [parameter.detach() for parameter in parameters if parameter.requires_grad]

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

        The optimizer's first evaluation also differentiates through ``y``, as far as its history
        leads to θ; further ones, of an optimizer that asks for several, hold y constant.

        Args:
            y: The answer.
            batch: The data.

        Returns:
            The leader's loss before it moved.
        """
        return self._move_leader(y, batch, trained(self.leader))

    def _move_leader(self, y: Value, batch: Batch, asked: list[Tensor] | None) -> Tensor:
        losses: list[Tensor] = []

        def closure() -> Tensor:
            forget_gradients(self.leader)
            loss = self.leader.loss(detach(y) if losses else y, batch)
            checks.check_loss("the leader's loss", loss, self.steps)
            loss = self._backward(loss, asked)
            losses.append(loss)
            return loss

        self.leader_opt.step(closure)
        return losses[0]

    def move_solver(self, y: Value, batch: Batch) -> None:
        """One step of the solver's optimizer, which ascends the follower's mean gain at ``y``.

        The leader is held fixed. A solver without parameters has nothing to move.

        Args:
            y: An answer with its history.
            batch: The data.
        """
        self.ask_solver(y, batch)
        self.step_solver()

    def ask_solver(self, y: Value, batch: Batch) -> None:
        """The first half of :meth:`move_solver`: the gradient, while the history of y is kept.

        Args:
            y: An answer with its history.
            batch: The data.
        """
        if self.solver_opt is None:
            return
        forget_gradients(self.solver)
        with frozen(self.leader, self.solver.leader_mode):
            loss = -self.follower.gain(self.leader, y, batch).mean()
            checks.check_loss("the follower's objective", loss, self.steps)
            self._backward(loss, trained(self.solver), retain_graph=True)

    def _backward(
        self, loss: Tensor, asked: list[Tensor] | None, *, retain_graph: bool = False
    ) -> Tensor:
        """Fills the gradients; both they and the loss returned are those of the whole batch."""
        if self.pool is None:
            loss.backward(inputs=asked, retain_graph=retain_graph)
            return loss.detach()
        loss = loss * self.pool.share
        loss.backward(inputs=asked, retain_graph=retain_graph)
        loss = loss.detach().clone()
        moved = asked or [*trained(self.leader), *trained(self.solver)]
        self.pool.add_up([loss, *(p.grad for p in moved if p.grad is not None)])
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
        forget_gradients(self.solver)
        loss = self._move_leader(y, batch, None)
        if self.solver_opt is not None:
            for parameter in self.solver.parameters():
                if parameter.grad is not None:
                    parameter.grad.neg_()
        self.step_solver()
        return loss

    def metrics(self, loss: Tensor, solution: Solution) -> dict[str, Tensor]:
        """What a step reports.

        Args:
            loss: The leader's loss at the solution.
            solution: The solution that it moved on.

        Returns:
            The loss and the solution's statistics, of which a zero-sum loss is one.
        """
        metrics = {"loss": loss, **solution.stats}
        if self.zero_sum:
            metrics["objective_after"] = loss if self.follower.sign > 0 else -loss
        return metrics

    # What outlives the process.

    def state_dict(self) -> dict[str, Any]:
        """All that the game is made of: networks, optimizers, schedule, step count.

        Returns:
            Tensors and plain values, fit for ``torch.save`` and ``torch.load(weights_only=True)``.
        """
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {**parts, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave, or raises before anything has changed.

        Args:
            state: What :meth:`state_dict` returned, of a game made of the same parts.

        Raises:
            BilevelError: If the state belongs to another architecture.
        """
        parts = self._parts()
        for name in (*parts, "steps"):
            if name not in state:
                raise BilevelError(
                    f"the state has no {name!r}: it was written by a game of other parts; build "
                    "the game as it was when the state was saved"
                )
        for name in ("leader", "solver"):
            checks.check_fits(name, parts[name].state_dict(), state[name])
        for name, part in parts.items():
            part.load_state_dict(state[name])
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


def trained(module: nn.Module) -> list[Tensor]:
    """The parameters that ask for a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def forget_gradients(module: nn.Module) -> None:
    """``module.zero_grad()``, without its overhead."""
    for parameter in module.parameters():
        parameter.grad = None
