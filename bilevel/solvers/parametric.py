"""The solver whose parameters are the answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from bilevel.errors import BilevelError, describe, explained
from bilevel.frozen import Mode
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.solvers.base import Solution, Solver
from bilevel.solvers.oracle import Oracle
from bilevel.tree import Value, detach, tree_map


class Parametric(Solver):
    """A solver whose parameters are the answer: the follower is trained alongside the leader.

    Gradient descent–ascent, alternating and extragradient steps are schedules with this solver. If
    Y has constraints, the parameters are projected before each answer.

    Args:
        y: The start: a tensor or a dict of tensors, which are copied, or a network, which is itself
            trained; the answer is then its named parameters (for ``torch.func.functional_call``).
        leader_mode: See :class:`Solver`.

    Raises:
        BilevelError: If ``y`` is something else, not of floating point, or has a name that no
            parameter can have.

    Example:
        >>> solver = Parametric(torch.tensor([1.0]))
        >>> [tuple(p.shape) for p in solver.parameters()]
        [(1,)]
    """

    def __init__(
        self, y: Tensor | Mapping[str, Tensor] | nn.Module, *, leader_mode: Mode = "eval"
    ) -> None:
        super().__init__(leader_mode=leader_mode)
        _check_start(y)
        self.y: Any  # a parameter, a dict of them, or a network
        if isinstance(y, nn.Module):
            self.y = y
        elif isinstance(y, Tensor):
            self.y = nn.Parameter(y.detach().clone())
        elif not any("." in name or hasattr(nn.ParameterDict, name) for name in y):
            # An OrderedDict: ParameterDict sorts the names of any other dict.
            self.y = nn.ParameterDict(OrderedDict((k, v.detach().clone()) for k, v in y.items()))
        else:
            self.y = _nested(y)

    def answer(self, oracle: Oracle) -> Value:
        """Projects the parameters onto Y and returns them."""
        return self._project_with(oracle.project)

    def project(self, follower: FollowerProblem, batch: Batch) -> None:
        """Projects the parameters onto Y."""
        self._project_with(lambda y: explained(follower, follower.project, y, batch))

    def _project_with(self, project: Callable[[Value], Value]) -> Value:
        y: Value = self.y if isinstance(self.y, Tensor) else dict(self.y.named_parameters())
        current = detach(y)
        projected = project(current)
        if projected is not current:
            tree_map(Tensor.copy_, current, projected)
        return y

    def solve(
        self,
        follower: FollowerProblem,
        leader: LeaderProblem,
        batch: Batch,
        *,
        evaluate: bool = True,
    ) -> Solution:
        """Returns the parameters; the leader is frozen and evaluated only if ``evaluate``."""
        if evaluate:
            return super().solve(follower, leader, batch)
        self.check(follower)
        return Solution(self.answer(Oracle(follower, leader, batch)), {})


def _check_start(y: object) -> None:
    if isinstance(y, nn.Module):
        return
    given = [*y.values()] if isinstance(y, Mapping) else [y]
    tensors = [tensor for tensor in given if isinstance(tensor, Tensor)]
    if not tensors or len(tensors) < len(given):
        raise BilevelError(
            f"y is {describe(y)}: the answer is a tensor, a dict of tensors or a network; give "
            "torch.tensor(…), {name: tensor} without further dicts in it, or the network itself"
        )
    for tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            continue
        raise BilevelError(
            f"y has numbers of type {tensor.dtype}: an optimizer moves it along gradients; give "
            "floating point, and for a network the network itself, not its state_dict"
        )


def _nested(weights: Mapping[str, Tensor]) -> nn.Module:
    """A module with submodules, so that ``"0.bias"`` is the name of a parameter."""
    root = nn.Module()
    for name, leaf in weights.items():
        try:
            _register(root, name.split("."), nn.Parameter(leaf.detach().clone()))
        except KeyError as error:  # "parameters", or "a.b" beside "a"
            raise BilevelError(
                f"y has the name {name!r}, which no parameter of a module can have "
                f"({error.args[0]}): give it another one"
            ) from error
    return root


def _register(owner: nn.Module, path: list[str], parameter: nn.Parameter) -> None:
    *parents, last = path
    for part in parents:
        if part not in dict(owner.named_children()):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.register_parameter(last, parameter)
