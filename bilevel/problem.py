"""The two problems: `LeaderProblem` (θ and its loss) and `FollowerProblem` (the objective of y).

    min over θ   L(θ, y*)     s.t.   y* ∈ argmax (or argmin) over y ∈ Y of q(θ, y)

A new task is a subclass of :class:`FollowerProblem`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from torch import Tensor, nn

from bilevel.arguments import instance_of
from bilevel.containers import attributes
from bilevel.errors import BilevelError, explained
from bilevel.tree import Value, handed, leaves

Batch = Any
"""Any object that the problem's methods can read."""

Sense = Literal["min", "max"]
"""Whether y minimises or maximises the objective."""


class LeaderProblem(nn.Module, ABC):
    """The leader: an ``nn.Module`` whose parameters are θ, and its loss L(θ, y).

    A subclass registers the modules that it trains and implements :meth:`loss`.

    Example:
        >>> import torch
        >>> class Quadratic(LeaderProblem):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.x = nn.Parameter(torch.tensor(2.0))
        ...     def loss(self, y, batch): return self.x * y
        >>> Quadratic().loss(torch.tensor(3.0), batch=None).item()
        6.0
    """

    @abstractmethod
    def loss(self, y: Any, batch: Batch, /) -> Tensor:
        """L(θ, y), which the leader minimises.

        Args:
            y: The follower's answer.
            batch: The data of this step.

        Returns:
            A scalar.
        """

    def checked_loss(self, y: Any, batch: Batch) -> Tensor:
        """The loss, with errors that explain a wrong batch.

        Args:
            y: The follower's answer.
            batch: The data of this step.

        Returns:
            What :meth:`loss` returns.

        Raises:
            BilevelError: If the batch is wrong, or the loss differentiates at a constant.
        """
        return explained(self, self.loss, handed(y), batch)

    def project(self) -> None:
        """Projects θ onto its constraints, in place; by default there are none.

        A game calls it before each solve and after each step, without recording gradients:
        ``self.x.clamp_(0, 1)`` is enough.
        """


class FollowerProblem(ABC):
    """The problem that y solves while the leader is held fixed.

    A subclass sets :attr:`sense` and implements :meth:`init` and :meth:`objective`;
    :meth:`project`, :meth:`context` and :meth:`keep` are optional.

    Attributes:
        sense: Whether y maximises (``"max"``) or minimises (``"min"``) the objective.

    Example:
        The perturbation of adversarial training (eq. 3 of Jiang et al., 2021), as a user writes it:

        >>> import torch, torch.nn.functional as F
        >>> class Linf(FollowerProblem):
        ...     sense = "max"
        ...     def __init__(self, eps): self.eps = eps
        ...     def init(self, batch): return torch.zeros_like(batch.x)
        ...     def context(self, delta, batch): return batch.x + delta
        ...     def objective(self, leader, delta, batch):
        ...         return F.cross_entropy(leader.model(batch.x + delta), batch.y, reduction="none")
        ...     def project(self, delta, batch):
        ...         return (batch.x + delta.clamp(-self.eps, self.eps)).clamp(0, 1) - batch.x
    """

    sense: Sense

    @abstractmethod
    def init(self, batch: Batch, /) -> Any:
        """The point at which a solve starts.

        Args:
            batch: The data of this step.

        Returns:
            A point of Y, a tensor ``(B, ...)`` if each sample has its own y, or a tensor or dict
            of tensors shared by the batch. Updates that normalise treat the rows of a tensor as
            samples and a dict as shared, so give them a shared y as a dict, ``{"y": y}``, and
            samples with several tensors each as the columns of one, ``(B, m)``. Other updates also
            take a dict of tensors with a row per sample.
        """

    @abstractmethod
    def objective(self, leader: Any, y: Any, batch: Batch, /) -> Tensor:
        """q(θ, y), with its own sign.

        Args:
            leader: The leader, frozen while the follower is solved.
            y: The follower's variable, as :meth:`init` returns it.
            batch: The data of this step.

        Returns:
            One value per sample, ``(B,)``, if each sample has its own y, so that its gradient
            does not depend on the other samples; a scalar if the batch shares one y.
        """

    def project(self, y: Any, batch: Batch, /) -> Value:
        """The point of Y nearest to ``y``; by default Y is the whole space.

        Adjoints differentiate it: a projection that bisects or iterates on ``y.detach()`` ends with
        one differentiable step of Newton's method.

        Args:
            y: Any point.
            batch: The data of this step.

        Returns:
            A point of Y.
        """
        return y

    def check(self, batch: Batch, /) -> None:
        """Checks that the data suit the problem; by default any do.

        A game calls it before its first solve, so that it may wait for the device.

        Args:
            batch: The data.

        Raises:
            BilevelError: If they do not, in an override.
        """

    def keep(self, y: Any, batch: Batch, /) -> None:
        """Takes note of the answer with which a step of a game ended; by default nothing is kept.

        Where each sample has its own y and comes again, :meth:`init` may start at its last answer:
        ``self.answers[batch.index] = y``. Solves within one step start at the same point. So that
        the game's state has the answers, make them a buffer, and the follower a module.

        Args:
            y: The answer of the step's last solve, a constant.
            batch: The data of that step.
        """

    def context(self, y: Any, batch: Batch, /) -> Any:
        """What updates read in addition to the gradient: A(x, y) in the paper.

        Args:
            y: The current point.
            batch: The data of this step.

        Returns:
            For a perturbation the perturbed image; for an update of your own anything that it
            reads, such as the batch; None if there is none.
        """
        return None

    def gain(self, leader: Any, y: Value, batch: Batch) -> Tensor:
        """What the follower maximises: q if it maximises its objective, else −q.

        Args:
            leader: The leader.
            y: The follower's variable.
            batch: The data of this step.

        Returns:
            A tensor of the objective's shape.

        Raises:
            BilevelError: If the sense, the objective's shape or the batch is wrong.
        """
        value = self.checked_objective(leader, y, batch)
        return value if self.sign > 0 else -value

    def checked_objective(self, leader: Any, y: Value, batch: Batch) -> Tensor:
        """The objective, with a check of its shape and errors that explain a wrong batch.

        Args:
            leader: The leader.
            y: The follower's variable.
            batch: The data of this step.

        Returns:
            What :meth:`objective` returns.

        Raises:
            BilevelError: If the objective's shape or the batch is wrong.
        """
        value = explained(self, self.objective, leader, handed(y), batch)
        if not isinstance(value, Tensor):
            raise BilevelError(
                f"{type(self).__name__}.objective returned a {type(value).__name__}: return a "
                "tensor, one value per sample or a scalar"
            )
        if value.is_complex():
            raise BilevelError(
                f"{type(self).__name__}.objective is complex: nothing is best among complex "
                "numbers; return its real part, .real, or abs()"
            )
        if value.dim():
            self._check_samples(value, y)
        return value

    @property
    def sign(self) -> int:
        """+1 if y maximises the objective, −1 if it minimises it.

        Returns:
            The sign of the objective in the gain.

        Raises:
            BilevelError: If :attr:`sense` is neither "min" nor "max".
        """
        sense = getattr(self, "sense", None)
        if sense not in ("min", "max"):
            raise BilevelError(
                f"{type(self).__name__}.sense is {sense!r}: a follower minimises or maximises; "
                'set sense = "min" or sense = "max" on the class'
            )
        return 1 if sense == "max" else -1

    def _check_samples(self, value: Tensor, y: Value) -> None:
        if {leaf.shape[:1] for leaf in leaves(y)} == {value.shape}:
            return
        raise BilevelError(
            f"{type(self).__name__}.objective returned shape {tuple(value.shape)} for y of shape "
            f"{[tuple(leaf.shape) for leaf in leaves(y)]}: it must be one value per sample, (B,), "
            'if each sample has its own y (cross_entropy(..., reduction="none")), or a scalar if '
            "the batch shares one y"
        )


def overrides(follower: FollowerProblem, method: str) -> bool:
    """Whether a follower has a method of its own in place of the default.

    Args:
        follower: The problem.
        method: The name of an optional method.

    Returns:
        True if it has, in its class or as an attribute.
    """
    own = getattr(getattr(follower, method), "__func__", None)
    return own is not getattr(FollowerProblem, method)


def networks_of(follower: FollowerProblem) -> list[nn.Module]:
    """The networks that a follower computes with, whose running statistics its solves move.

    Args:
        follower: The problem.

    Returns:
        Its attributes that are modules (``nn.ModuleList`` for several), or itself if it is one.
    """
    return [*named_networks(follower).values()]


def named_networks(follower: FollowerProblem) -> dict[str, nn.Module]:
    """See :func:`networks_of`, by the names of the attributes, itself by an empty one."""
    if isinstance(follower, nn.Module):
        return {"": follower}
    found = attributes(follower).items()
    return {name: value for name, value in found if isinstance(value, nn.Module)}


class ZeroSum(LeaderProblem):
    r"""A leader that minimises what its follower maximises.

    .. math:: \min_\theta \max_{y \in Y} q(\theta, y)

    Its loss is the mean of the follower's gain. At an optimal y*, treating it as a constant gives
    the right gradient (Danskin, 1967), and one backward pass serves both players. If the follower
    minimises q, the leader maximises it.

    A subclass that overrides ``loss`` is not zero-sum, and its game must name an adjoint.

    Args:
        model: The network that the follower's objective reads as ``leader.model``.
        follower: The follower's problem.

    Raises:
        BilevelError: If ``follower`` is something else.
    """

    model: nn.Module
    follower: FollowerProblem

    def __init__(self, model: nn.Module, follower: FollowerProblem) -> None:
        super().__init__()
        remedy = "ZeroSum(model, follower), the network first"
        instance_of("follower", follower, FollowerProblem, remedy)
        self.model = model
        # Not registered: a follower may be a module, whose parameters are not the leader's.
        object.__setattr__(self, "follower", follower)

    def loss(self, y: Value, batch: Batch) -> Tensor:
        """The mean of the follower's gain at ``y``."""
        gain = self.follower.gain(self, y, batch)
        return gain.mean() if gain.dim() else gain
