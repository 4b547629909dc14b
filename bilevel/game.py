"""`Bilevel` puts a leader, a follower and a solver together and moves them step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bilevel.adjoint import Adjoint, Detached
from bilevel.errors import BilevelError, NonFiniteError
from bilevel.frozen import frozen
from bilevel.problem import Batch, FollowerProblem, LeaderProblem, ZeroSum
from bilevel.schedule import Schedule, Simultaneous
from bilevel.solver import Solution, Solver
from bilevel.tree import Value, detach, leaves, tree_map


class Optimizer(Protocol):
    """What moves a player: any ``torch.optim`` optimizer, or a method with its own ``step(closure)``."""

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

    Raises:
        BilevelError: If the parts do not fit together.

    Example:
        >>> import bilevel
        >>> class Saddle(bilevel.FollowerProblem):
        ...     sense = "max"
        ...     def init(self, batch): return torch.zeros(())
        ...     def objective(self, leader, y, batch): return leader.model.weight.sum() * y
        >>> model, saddle = nn.Linear(1, 1, bias=False), Saddle()
        >>> nn.init.ones_(model.weight).requires_grad
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
        self.trains_solver = any(p.requires_grad for p in solver.parameters())
        self._check_parts(adjoint)
        self.adjoint = adjoint or Detached()
        self.schedule = schedule or Simultaneous()
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
                the players have not moved then. On other devices :class:`~bilevel.MetricLog` raises.
        """
        metrics = self.schedule.step(self, batch)
        self.steps += 1
        return metrics

    # The moves, for schedules.

    def solve(self, batch: Batch) -> Solution:
        """The follower's answer to the leader as it stands.

        Args:
            batch: The data.

        Returns:
            The answer as the adjoint makes it.
        """
        solution = self.adjoint.solve(self.solver, self.follower, self.leader, batch)
        if not self._checked and not leaves(solution.value)[0].is_meta:
            self._check_answer(solution.value, batch)
            self._checked = True
        return solution

    def move_leader(self, y: Value, batch: Batch) -> Tensor:
        """One step of the leader's optimizer on L(·, y).

        The optimizer's first evaluation also sends the gradient on to whatever computed ``y``;
        further ones, of an optimizer that asks for several, hold y constant.

        Args:
            y: The answer.
            batch: The data.

        Returns:
            The leader's loss before it moved.
        """
        losses: list[Tensor] = []

        def closure() -> Tensor:
            self.leader.zero_grad()
            loss = self.leader.loss(detach(y) if losses else y, batch)
            self._require_finite("the leader's loss", loss)
            loss.backward()
            losses.append(loss.detach())
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
        if self.solver_opt is None:
            return
        self.solver.zero_grad()
        with frozen(self.leader, self.solver.leader_mode):
            loss = -self.follower.gain(self.leader, y, batch).mean()
            self._require_finite("the follower's objective", loss)
            loss.backward()
        self.solver_opt.step()

    def move_both(self, y: Value, batch: Batch) -> Tensor:
        """In a zero-sum game: both moves for the price of the leader's.

        The leader's backward pass goes on through ``y`` to φ, with its sign turned on the way, so
        that a descent step of either optimizer improves its own player.

        Args:
            y: An answer with its history.
            batch: The data.

        Returns:
            The leader's loss before it moved.
        """
        self.solver.zero_grad()
        loss = self.move_leader(tree_map(_Opposed.apply, y), batch)
        if self.solver_opt is not None:
            self.solver_opt.step()
        return loss

    def metrics(self, loss: Tensor, solution: Solution) -> dict[str, Tensor]:
        """What a step reports.

        Args:
            loss: The leader's loss at the solution.
            solution: The solution that it moved on.

        Returns:
            The loss and the solution's statistics; a zero-sum loss is the objective after the solve.
        """
        after = {"objective_after": self.follower.sign * loss} if self.zero_sum else {}
        return {"loss": loss, **solution.stats, **after}

    # What outlives the process.

    def state_dict(self) -> dict[str, Any]:
        """Everything that the game is made of: both networks, both optimizers, schedule, step count.

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
                    f"the state has no {name!r}: it was written by a game of other parts; build the "
                    "game as it was when the state was saved"
                )
        for name in ("leader", "solver"):
            _check_fits(name, parts[name].state_dict(), state[name])
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
        }
        return {name: part for name, part in parts.items() if part is not None}

    # What is said before a wrong number comes out.

    def _check_parts(self, adjoint: Adjoint | None) -> None:
        if not self.zero_sum and adjoint is None:
            raise BilevelError(
                f"{type(self.leader).__name__} is not zero-sum with {type(self.follower).__name__}: "
                "treating y* as a constant would drop a term of the leader's gradient; name the "
                "adjoint, adjoint=Detached() if that is what you want"
            )
        if self.trains_solver and self.solver_opt is None:
            raise BilevelError(
                f"{type(self.solver).__name__} has parameters but no optimizer: it would never learn; "
                "give solver_opt=torch.optim.Adam(solver.parameters()), or requires_grad_(False)"
            )
        _check_owner("leader_opt", self.leader_opt, "leader", self.leader)
        _check_owner("solver_opt", self.solver_opt, "solver", self.solver)

    def _check_answer(self, y: Value, batch: Batch) -> None:
        """At the first solve only, for it synchronises."""
        with torch.no_grad():
            y = detach(y)
            projected = leaves(self.follower.project(y, batch))
        for leaf, nearest in zip(leaves(y), projected, strict=True):
            if not leaf.isfinite().all():
                raise NonFiniteError(
                    "the follower's first answer is not finite: the objective, its gradient or the "
                    "update gave NaN or infinity; check the batch and the update's step"
                )
            tolerance = 1e-5 * max(1.0, float(nearest.abs().max())) if nearest.numel() else 0.0
            if not torch.allclose(leaf, nearest, rtol=0.0, atol=tolerance):
                distance = float((leaf - nearest).abs().max())
                raise BilevelError(
                    f"the follower's first answer lies {distance:.3g} outside Y: "
                    f"{type(self.follower).__name__}.project moves it; make project idempotent, and "
                    "end Solver.answer with oracle.project(y)"
                )

    def _require_finite(self, term: str, loss: Tensor) -> None:
        if loss.device.type == "cpu" and not torch.isfinite(loss.detach()):
            raise NonFiniteError(
                f"step {self.steps}: {term} is {loss.item()}: training has diverged or the batch is "
                "not finite; lower the learning rate, or go back to the last checkpoint"
            )


class _Opposed(torch.autograd.Function):
    """The identity, whose gradient is negated."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def _check_owner(name: str, optimizer: Any, owner_name: str, owner: nn.Module) -> None:
    own = {id(parameter) for parameter in owner.parameters()}
    groups = getattr(optimizer, "param_groups", [])
    if not all(id(parameter) in own for group in groups for parameter in group["params"]):
        raise BilevelError(
            f"{name} moves parameters that do not belong to the {owner_name}: each player has an "
            f"optimizer of its own; build it from {owner_name}.parameters()"
        )


def _check_fits(name: str, own: dict[str, Any], saved: dict[str, Any]) -> None:
    for key in {**own, **saved}:
        shapes = [
            tuple(state[key].shape) if isinstance(state.get(key), Tensor) else key in state
            for state in (saved, own)
        ]
        if shapes[0] != shapes[1] and not key.endswith("_extra_state"):
            raise BilevelError(
                f"the saved {name} is of another architecture: {key} is {shapes[0]} there and "
                f"{shapes[1]} here; build the game as it was when the state was saved"
            )
