"""The field of a game, and products with its Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bilevel.autograd_graph import check_no_dead_ends, check_second_derivatives, vjp
from bilevel.checks.losses import Loss, check_finite, check_gradients, check_loss
from bilevel.errors import BilevelError
from bilevel.frozen import frozen
from bilevel.player import trainable_parameters
from bilevel.problem import Batch
from bilevel.tree import Value, as_real, leaves, ravel, unravel

if TYPE_CHECKING:
    from bilevel.game import Bilevel

Slopes = dict[Tensor, Tensor]
"""The gradients of parameters."""


class Field:
    r"""F(w) = (∇_θ L, ∇_φ C) at a point w = (θ, φ), and products with its Jacobian J = ∂F/∂w.

    The leader descends its loss L and the follower its cost C, the mean of −q where it maximises q.
    Vectors are flat, ``(n,)``, with the leader's coordinates first. A product is a backward pass or
    two through the gradients of both losses in both players; J is never formed.

    Args:
        theta: The leader's parameters.
        phi: The solver's parameters.
        loss: ∇L with its graph, for θ and φ; a parameter that is missing has slope 0.
        cost: ∇C, likewise; None in a zero-sum game, where C = −L.

    Attributes:
        value: F without its graph.
        parameters: θ and φ.
        led: The number of the leader's coordinates.

    Example:
        >>> x, y = torch.ones(1, requires_grad=True), torch.full((1,), 3.0, requires_grad=True)
        >>> slopes = torch.autograd.grad((x * y).sum(), [x, y], create_graph=True)
        >>> field = Field([x], [y], dict(zip([x, y], slopes)))
        >>> field.value, field.product(field.value), field.transposed(field.value)
        (tensor([ 3., -1.]), tensor([-1., -3.]), tensor([1., 3.]))
    """

    def __init__(
        self,
        theta: Sequence[Tensor],
        phi: Sequence[Tensor],
        loss: Slopes,
        cost: Slopes | None = None,
    ) -> None:
        self.parameters, self._theta, self._phi = [*theta, *phi], [*theta], [*phi]
        self._zero_sum = cost is None
        cost = {w: -slope for w, slope in loss.items()} if cost is None else cost
        self._loss_theta, self._loss_phi = _in_order(loss, theta), _in_order(loss, phi)
        self._cost_theta, self._cost_phi = _in_order(cost, theta), _in_order(cost, phi)
        self.value = self.flat(self._loss_theta + self._cost_phi).detach()
        self.led = sum(as_real(parameter).numel() for parameter in theta)

    @property
    def cross(self) -> Tensor:
        """(∇_θ C, ∇_φ L), the slopes of each player's loss that the other controls."""
        return self.flat(self._cost_theta + self._loss_phi).detach()

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """A vector of tensors in the shapes of the parameters.

        Args:
            tensors: One for each parameter.

        Returns:
            ``(n,)``.
        """
        if not tensors:  # of a player that is frozen
            return self.value.new_zeros(0)
        return ravel({str(number): tensor for number, tensor in enumerate(tensors)})

    def split(self, v: Tensor) -> Slopes:
        """The inverse of :meth:`flat`.

        Args:
            v: ``(n,)``.

        Returns:
            A tensor for each parameter.
        """
        return dict(zip(self.parameters, _split(v, self.parameters), strict=True))

    def product(self, v: Tensor) -> Tensor:
        """J v.

        Args:
            v: ``(n,)``.

        Returns:
            ``(n,)``.
        """
        loss = self._loss_theta + self._loss_phi
        if self._zero_sum:  # one pass for both
            both = self._vjp(loss, self.parameters, v)
            return torch.cat([both[: self.led], -both[self.led :]])
        cost = self._cost_theta + self._cost_phi
        return torch.cat([self._vjp(loss, self._theta, v), self._vjp(cost, self._phi, v)])

    def transposed(self, v: Tensor) -> Tensor:
        """Jᵀ v.

        Args:
            v: ``(n,)``.

        Returns:
            ``(n,)``.
        """
        return self._vjp(self._loss_theta + self._cost_phi, self.parameters, v)

    def across(self, v: Tensor) -> Tensor:
        """J_× v, where J_× is J without the blocks of a player with itself.

        Args:
            v: ``(n,)``.

        Returns:
            ``(n,)``, how a move of one player changes the other's gradient.
        """
        moved, other = v[: self.led], v[self.led :]
        return torch.cat([self.to_leader(other), self.to_follower(moved)])

    def across_transposed(self, v: Tensor) -> Tensor:
        """J_×ᵀ v.

        Args:
            v: ``(n,)``.

        Returns:
            ``(n,)``.
        """
        led, other = v[: self.led], v[self.led :]
        to_leader = self._vjp(self._cost_phi, self._theta, other)
        return torch.cat([to_leader, self._vjp(self._loss_theta, self._phi, led)])

    def to_leader(self, v: Tensor) -> Tensor:
        """∂(∇_θ L)/∂φ v.

        Args:
            v: A move of the follower, ``(n − led,)``.

        Returns:
            ``(led,)``, how it changes the leader's gradient.
        """
        return self._vjp(self._loss_phi, self._theta, v)

    def to_follower(self, v: Tensor) -> Tensor:
        """∂(∇_φ C)/∂θ v.

        Args:
            v: A move of the leader, ``(led,)``.

        Returns:
            ``(n − led,)``, how it changes the follower's gradient.
        """
        return self._vjp(self._cost_theta, self._phi, v)

    def _vjp(self, slopes: Sequence[Tensor], inputs: Sequence[Tensor], v: Tensor) -> Tensor:
        """The gradient of ⟨slopes, v⟩ in the inputs; constant slopes have derivative zero."""
        found = vjp(slopes, inputs, _split(v, slopes), retain_graph=True)
        pairs = zip(found, inputs, strict=True)
        return self.flat([torch.zeros_like(w) if grad is None else grad for grad, w in pairs])


def differentiate(game: Bilevel, y: Value, batch: Batch) -> tuple[Tensor, Tensor | None, Field]:
    """The field of a game, with the losses of its players.

    Args:
        game: The game.
        y: An answer with its graph.
        batch: The data.

    Returns:
        The leader's loss, the follower's mean objective (None in a zero-sum game, where it follows
        from the loss), and the field.
    """
    theta, phi = trainable_parameters(game.leader), trainable_parameters(game.solver)
    costs, objective = None, None
    if not game.zero_sum:  # first, since the leader's pass moves its running statistics
        with frozen(game.leader, game.solver.leader_mode, differentiable=True):
            cost = -game.follower.gain(game.leader, y, batch).mean()
        costs = _slopes(Loss.FOLLOWER, cost, [*theta, *phi], game.steps)
        objective = -game.follower.sign * cost.detach()
    loss = game.leader.checked_loss(y, batch)
    slopes = _slopes(Loss.LEADER, loss, [*theta, *phi], game.steps)
    own = slopes if costs is None else costs
    check_gradients(Loss.LEADER, [slopes.get(p) for p in theta])
    check_gradients(Loss.FOLLOWER, [own.get(p) for p in phi])
    field = Field(
        # Without those that their player's loss does not read, which optimizers leave alone.
        [p for p in theta if p in slopes],
        [p for p in phi if p in own],
        slopes,
        costs,
    )
    return loss.detach().clone(), objective, field  # it may be a parameter, which moves


def _slopes(which: Loss, loss: Tensor, parameters: list[Tensor], step: int) -> Slopes:
    check_loss(which, loss, parameters)
    check_finite(which, loss, step, parameters)
    if step == 0:  # once: it walks through the graph
        check_second_derivatives(loss, parameters)
    found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    slopes = {p: slope for p, slope in zip(parameters, found, strict=True) if slope is not None}
    if step == 0:
        check_no_dead_ends([*slopes.values()])
    if any(slope.is_sparse for slope in slopes.values()):
        raise BilevelError(
            "a loss has a sparse gradient, of which no vector is made: build the embedding with "
            "sparse=False, or take Extragradient() or Optimistic()"
        )
    return slopes


def _in_order(slopes: Slopes, parameters: Sequence[Tensor]) -> list[Tensor]:
    return [slopes[w] if w in slopes else torch.zeros_like(w) for w in parameters]


def _split(v: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return leaves(unravel(v, {str(number): w.detach() for number, w in enumerate(like)}))
