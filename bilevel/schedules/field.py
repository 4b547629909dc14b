"""The field of a game, and products with its Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from bilevel.tree import leaves, ravel, unravel

Slopes = dict[Tensor, Tensor]
"""The gradients of parameters."""


class Field:
    r"""F(w) = (∇_θ L, −∇_φ q) at a point w = (θ, φ), and its Jacobian J = ∂F/∂w.

    Both players descend along F. Vectors are flat, ``(n,)``, in the order of the parameters;
    products with J cost backward passes, and J is never formed.

    Args:
        theta: The leader's parameters, and F's part of each with its graph.
        phi: The solver's, likewise.

    Attributes:
        value: F without its graph.

    Example:
        >>> x, y = torch.ones(1, requires_grad=True), torch.full((1,), 3.0, requires_grad=True)
        >>> slopes = torch.autograd.grad((x * y).sum(), [x, y], create_graph=True)
        >>> field = Field({x: slopes[0]}, {y: -slopes[1]})
        >>> field.value, field.product(field.value), field.transposed(field.value)
        (tensor([ 3., -1.]), tensor([-1., -3.]), tensor([1., 3.]))
    """

    def __init__(self, theta: Slopes, phi: Slopes) -> None:
        self._w = [*theta, *phi]
        self._slopes = [*theta.values(), *phi.values()]
        self._led = len(theta)
        self.value = self.flat(self._slopes).detach()

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """A vector of tensors in the shapes of the parameters.

        Args:
            tensors: One for each parameter.

        Returns:
            ``(n,)``.
        """
        return ravel({str(number): tensor for number, tensor in enumerate(tensors)})

    def split(self, v: Tensor) -> Slopes:
        """The inverse of :meth:`flat`.

        Args:
            v: ``(n,)``.

        Returns:
            A tensor for each parameter.
        """
        like = {str(number): w.detach() for number, w in enumerate(self._w)}
        return dict(zip(self._w, leaves(unravel(v, like)), strict=True))

    def transposed(self, v: Tensor) -> Tensor:
        """Jᵀ v, by one backward pass.

        Args:
            v: ``(n,)``.

        Returns:
            ``(n,)``.
        """
        return self.flat(_pull(self._slopes, self._w, self._parts(v)))

    def product(self, v: Tensor) -> Tensor:
        """J v, by a backward pass through that of Jᵀ u, which is linear in u.

        Args:
            v: ``(n,)``.

        Returns:
            ``(n,)``.
        """
        return self.flat(_pull(self._transposed, self._u, self._parts(v)))

    def across(self, v: Tensor) -> Tensor:
        """J v without the blocks of a player with itself: what the other's move does to F.

        Args:
            v: ``(n,)``.

        Returns:
            ``(n,)``.
        """
        return self.flat(_pull(self._transposed_across, self._u, self._parts(v)))

    def _parts(self, v: Tensor) -> list[Tensor]:
        return [*self.split(v).values()]

    @cached_property
    def _u(self) -> list[Tensor]:
        return [torch.zeros_like(w).requires_grad_() for w in self._w]

    @cached_property
    def _transposed(self) -> list[Tensor]:
        return _pull(self._slopes, self._w, self._u, create_graph=True)

    @cached_property
    def _transposed_across(self) -> list[Tensor]:
        k, w, f, u = self._led, self._w, self._slopes, self._u
        theta = _pull(f[k:], w[:k], u[k:], create_graph=True)
        return theta + _pull(f[:k], w[k:], u[:k], create_graph=True)


def _pull(
    outputs: list[Tensor], inputs: list[Tensor], v: list[Tensor], *, create_graph: bool = False
) -> list[Tensor]:
    """vᵀ ∂outputs/∂inputs; constant outputs have derivative zero."""
    moving = [
        (output, part) for output, part in zip(outputs, v, strict=True) if output.requires_grad
    ]
    if not moving or not inputs:
        return [torch.zeros_like(leaf) for leaf in inputs]
    found = torch.autograd.grad(
        [output for output, _ in moving],
        inputs,
        [part for _, part in moving],
        retain_graph=True,
        create_graph=create_graph,
        materialize_grads=True,
    )
    return [*found]
