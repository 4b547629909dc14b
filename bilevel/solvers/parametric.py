"""The solver whose parameters are the answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from bilevel.frozen import Mode
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers.base import Solution, Solver
from bilevel.solvers.oracle import Oracle
from bilevel.tree import Value, detach, tree_map


class Parametric(Solver):
    """A solver whose parameters are the answer: the follower that is trained beside the leader.

    Gradient descent–ascent, alternating and extragradient play are a schedule each with this
    solver. If Y is not everything, the parameters are projected before each answer.

    Args:
        y: The start: a tensor, a dict of tensors, or a network, whose parameters by name are then
            the answer (for ``torch.func.functional_call``).
        leader_mode: See :class:`Solver`.

    Example:
        >>> solver = Parametric(torch.tensor([1.0]))
        >>> [tuple(p.shape) for p in solver.parameters()]
        [(1,)]
    """

    def __init__(
        self, y: Tensor | Mapping[str, Tensor] | nn.Module, *, leader_mode: Mode = "eval"
    ) -> None:
        super().__init__(leader_mode=leader_mode)
        self.y: nn.Parameter | nn.ParameterDict | nn.Module
        if isinstance(y, nn.Module):
            self.y = y
        elif isinstance(y, Tensor):
            self.y = nn.Parameter(y.detach().clone())
        elif not any("." in name for name in y):
            # Ordered: a ParameterDict sorts the names of any other dict.
            self.y = nn.ParameterDict(OrderedDict((k, v.detach().clone()) for k, v in y.items()))
        else:
            self.y = _nested(y)

    def answer(self, oracle: Oracle) -> Value:
        """Projects the parameters onto Y and answers with them."""
        return self._within(oracle.project)

    def project(self, follower: FollowerProblem, batch: Batch) -> None:
        """Projects the parameters onto Y."""
        self._within(lambda y: follower.project(y, batch))

    def _within(self, project: Callable[[Value], Value]) -> Value:
        y: Value
        y = self.y if isinstance(self.y, Tensor) else {**dict(self.y.named_parameters())}
        here = detach(y)
        nearest = project(here)
        if nearest is not here:
            tree_map(Tensor.copy_, here, nearest)
        return y

    def solve(
        self,
        follower: FollowerProblem,
        leader: LeaderProblem,
        batch: Batch,
        *,
        evaluate: bool = True,
    ) -> Solution:
        """Answers without a look at the leader, which needs to be held fixed for judging only."""
        if evaluate:
            return super().solve(follower, leader, batch)
        return Solution(self.answer(Oracle(follower, leader, batch)), {})


def _nested(weights: Mapping[str, Tensor]) -> nn.Module:
    """Modules of modules in which ``"0.bias"`` is a parameter's name, as in the network's own."""
    root = nn.Module()
    for name, leaf in weights.items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, nn.Parameter(leaf.detach().clone()))
    return root
