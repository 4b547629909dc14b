"""The noun `Solver`: the loop that answers for the follower.

Every answer of the follower comes from a `Solver`, which is an ``nn.Module``. Projected gradient
has no parameters, a learned attacker has meta-parameters, and a follower that is itself trained by
gradient steps is a solver whose parameters *are* the answer. So every schedule needs one code path:

    Iterative(update, steps)    y ← Π_Y(update(y, ∇, context)), repeated
    Parametric(y)               y is the solver's own parameters; its optimizer moves them
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bilevel.errors import BilevelError
from bilevel.frozen import Mode, frozen
from bilevel.oracle import Oracle
from bilevel.problem import Batch, FollowerProblem, LeaderProblem
from bilevel.tree import Value, detach, leaves, tree_map
from bilevel.updates.base import State, Update


@dataclass(frozen=True)
class Solution:
    """The follower's answer and what is needed to judge it.

    Args:
        value: y, a point of Y; its history leads to the solver's parameters, where it has any.
        stats: Scalars on the device, without history: ``objective_before`` and ``objective_after``
            (means over the batch, in the objective's own sign) and ``gradient_norm`` (mean over the
            samples, at the last point where the gradient was taken). Adjoints add what is needed
            to judge the leader's gradient.
        evaluations: How many gradients of the objective were taken.
    """

    value: Value
    stats: dict[str, Tensor]
    evaluations: int = 0


class Solver(nn.Module, ABC):
    """Gives the follower's answer to a fixed leader, and leaves the leader as it was.

    A subclass writes :meth:`answer`.

    Args:
        leader_mode: In which mode the leader computes meanwhile: ``"eval"``, or ``"train"`` with
            its BatchNorm statistics kept.
    """

    def __init__(self, *, leader_mode: Mode = "eval") -> None:
        super().__init__()
        if leader_mode not in ("eval", "train"):
            raise BilevelError(
                f"leader_mode is {leader_mode!r}: a leader computes as deployed or as in training; "
                'give "eval" or "train"'
            )
        self.leader_mode: Mode = leader_mode

    @property
    def repeatable(self) -> bool:
        """Whether a solve leaves no trace, so that another one of the same problem is a look again.

        Returns:
            True, unless the solver goes on where its last answer was.
        """
        return True

    def project(self, follower: FollowerProblem, batch: Batch) -> None:
        """Where the parameters are the answer: puts them back into Y, in place.

        Args:
            follower: The problem.
            batch: The data.
        """

    @abstractmethod
    def answer(self, oracle: Oracle) -> Value:
        """Computes the answer.

        Args:
            oracle: Starts, gradients, contexts and projections of the follower's problem at hand.

        Returns:
            A point of Y.
        """

    def solve(
        self,
        follower: FollowerProblem,
        leader: LeaderProblem,
        batch: Batch,
        *,
        evaluate: bool = True,
    ) -> Solution:
        """Answers for ``follower`` while ``leader`` is held fixed.

        Args:
            follower: The problem to solve.
            leader: The leader; its parameters, gradients, buffers and training flags are left
                bit for bit as they were.
            batch: The data.
            evaluate: Also evaluate the objective at the answer, one forward pass. A schedule that
                passes the leader through the answer anyway leaves it out.

        Returns:
            The answer with its statistics.

        Raises:
            BilevelError: If the batch does not suit the problem or the objective has a wrong shape.
        """
        with frozen(leader, self.leader_mode):
            oracle = Oracle(follower, leader, batch)
            value = self.answer(oracle)
            if evaluate:
                oracle.judge(value)
        return Solution(value, oracle.stats(), oracle.evaluations)


class Iterative(Solver):
    r"""Applies one update rule ``steps`` times, projecting after each.

    .. math:: y_{k+1} = \Pi_Y\bigl(\mathrm{update}(y_k, \nabla_k, \mathrm{context}(y_k))\bigr)

    The gradient is a constant to what comes after it, as in the paper: φ is trained through the
    points y_k and their contexts, never through ∇ (no second derivatives). With the adjoint
    :class:`~bilevel.Unrolled` it is not, and φ is trained through both.

    Args:
        update: The step rule; hand-designed, or learned.
        steps: How often it is applied; 0 gives the follower's start (no follower at all).
        warm_start: Start from the previous solve's answer and update state instead of
            :meth:`FollowerProblem.init`. They are part of the state dict. A leader that moves on
            the answer has then seen the follower's move: with ``steps=1`` that is alternating play.
        leader_mode: See :class:`Solver`.

    Raises:
        BilevelError: If ``steps`` is not a whole number from 0 on.

    Example:
        >>> from bilevel.updates import SignGradient
        >>> Iterative(SignGradient(0.007), steps=10, warm_start=True)
        Iterative(
          steps=10, warm_start=True
          (update): SignGradient(step=0.007)
        )
    """

    def __init__(
        self,
        update: Update,
        steps: int,
        *,
        warm_start: bool = False,
        leader_mode: Mode = "eval",
    ) -> None:
        super().__init__(leader_mode=leader_mode)
        if not isinstance(steps, int) or steps < 0:
            raise BilevelError(
                f"steps is {steps!r}: an update is applied a whole number of times; give 0, 1, 2, …"
            )
        self.update = update
        self.steps = steps
        self.warm_start = warm_start
        self._kept: tuple[Value, State] | None = None

    @property
    def repeatable(self) -> bool:
        """Not with a warm start."""
        return not self.warm_start

    def answer(self, oracle: Oracle) -> Value:
        """Runs the update rule from the start, or from the kept answer."""
        y, state = oracle.advance(self.update, *self.start(oracle), self.steps)
        self.keep(y, state)
        return y

    def keep(self, y: Value, state: State) -> None:
        """With a warm start, remembers where the next solve starts.

        Args:
            y: The answer.
            state: The update's state there.
        """
        if self.warm_start:
            self._kept = tree_map_only(Tensor, Tensor.detach, (y, state))

    def start(self, oracle: Oracle) -> tuple[Value, State]:
        """Where a solve starts.

        Args:
            oracle: The problem.

        Returns:
            The follower's start or the kept answer, and the update's state there.

        Raises:
            BilevelError: If the kept answer belongs to a batch of another size.
        """
        y = oracle.init()
        if self._kept is None:
            return y, None
        kept, state = self._kept
        shapes = [[leaf.shape for leaf in leaves(tree)] for tree in (kept, y)]
        if shapes[0] != shapes[1]:
            raise BilevelError(
                f"warm_start: the kept answer has shapes {shapes[0]}, this batch needs "
                f"{shapes[1]}: a kept answer fits batches of one size; drop the last batch, or "
                "warm_start=False"
            )
        return oracle.project(kept), state  # Y may be another batch's by now

    def get_extra_state(self) -> tuple[Value, State] | None:
        """The kept answer and update state, for the state dict.

        Returns:
            None before the first solve and without a warm start.
        """
        return self._kept

    def set_extra_state(self, state: tuple[Value, State] | None) -> None:
        """Takes back what :meth:`get_extra_state` gave.

        Args:
            state: The kept answer and update state, or None.
        """
        self._kept = state

    def extra_repr(self) -> str:
        """How the solver shows its settings.

        Returns:
            The settings that differ between two solvers with the same update.
        """
        return f"steps={self.steps}" + (", warm_start=True" if self.warm_start else "")


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
