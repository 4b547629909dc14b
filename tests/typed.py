"""What users write, with types: checked by mypy as part of the library, see ``pyproject.toml``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bilevel
from bilevel.adjoints import SolvedProblem
from bilevel.schedules import Corrected, Field
from bilevel.solvers import Oracle


class Data(NamedTuple):
    """A batch of one's own."""

    x: Tensor


class Step(bilevel.Update):
    """Moves a tensor."""

    def forward(
        self, y: Tensor, gradient: Tensor, context: Tensor | None, state: Any
    ) -> tuple[Tensor, Any]:
        return y + 0.1 * gradient, state


class Steps(bilevel.Update):
    """Moves a dict."""

    def forward(
        self, y: dict[str, Tensor], gradient: dict[str, Tensor], context: Data, state: None
    ) -> tuple[dict[str, Tensor], None]:
        return {name: y[name] + gradient[name] for name in y}, None


class Climb(bilevel.Solver):
    """Calls the oracle."""

    def answer(self, oracle: Oracle) -> Tensor:
        y = oracle.init()
        y = oracle.project(y + oracle.gradient(y))
        moved, _ = oracle.advance(Step(), y, None, steps=2)
        return torch.where(oracle.gain(y) > oracle.gain(moved), y, moved)


class Near(bilevel.FollowerProblem):
    """A problem."""

    sense = "min"

    def init(self, batch: Data) -> Tensor:
        return torch.zeros_like(batch.x)

    def objective(self, leader: bilevel.LeaderProblem, y: Tensor, batch: Data) -> Tensor:
        return (y - batch.x).square().sum(1)

    def project(self, y: Tensor, batch: Data) -> Tensor:
        return y.clamp(0, 1)


class Weights(bilevel.FollowerProblem):
    """y under a name of its own, and the parameters of a network."""

    sense = "max"

    def init(self, data: Data) -> dict[str, nn.Parameter]:
        return dict(nn.Linear(2, 1).named_parameters())

    def objective(self, leader: Total, weights: dict[str, Tensor], data: Data) -> Tensor:
        return (data.x @ weights["weight"].T).mean() * leader.log_penalty.exp()

    def project(self, weights: dict[str, Tensor], data: Data) -> dict[str, Tensor]:
        return weights


class Total(bilevel.LeaderProblem):
    """A leader with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log_penalty = nn.Parameter(torch.zeros(()))

    def loss(self, y: Tensor, batch: Data) -> Tensor:
        return y.sum()


class Formula(bilevel.Solver):
    """Reads the leader's parameter."""

    def answer(self, oracle: Oracle) -> Tensor:
        penalty: Tensor = oracle.leader.log_penalty.exp()
        return penalty * oracle.batch.x


class Constant(bilevel.Pullback):
    """An adjoint of one's own."""

    def pull(self, problem: SolvedProblem, v: Tensor) -> dict[str, Tensor]:
        return {name: v.sum() * problem.theta[name] for name in problem.wanted}


class LookAhead(Corrected):
    """A schedule of one's own."""

    def correct(self, field: Field, game: bilevel.Bilevel, metrics: dict[str, Tensor]) -> Tensor:
        return field.value - field.across(field.value)


def both(tensors: bilevel.Bilevel, dicts: bilevel.Bilevel, batch: Data) -> Tensor:
    """Reads answers and parameters, and schedules learning rates."""
    torch.optim.lr_scheduler.CosineAnnealingLR(tensors.leader_opt, 10)
    tensors.solver_opt.register_step_pre_hook(lambda *_: None)
    penalty: Tensor = tensors.leader.log_penalty.exp()
    kept: Tensor = dicts.solver.kept[0]["weight"]
    answers = tensors.solve(batch).value.mean() + dicts.solve(batch).value["weight"].mean()
    return penalty * kept.mean() + answers
