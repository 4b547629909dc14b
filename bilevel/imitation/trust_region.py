"""The geometry of TRPO: the Fisher matrix of a policy, and how far a step leads."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence
from torch.func import functional_call, vjp

from bilevel.adjoints.linear import Product
from bilevel.errors import BilevelError
from bilevel.tree import ravel, tree_map, unravel

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Parameters = dict[str, Tensor]


class TrustRegion:
    """The policy on one batch of states: as it was, and how far other parameters are from it.

    Args:
        policy: The policy.
        inputs: What it is called with: positional and keyword arguments.
    """

    def __init__(self, policy: nn.Module, inputs: Inputs) -> None:
        self.policy, self.inputs = policy, inputs
        self.trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        self.before = {name: parameter.clone() for name, parameter in self.trained.items()}
        # Not what the closure computed: that may share memory with the parameters.
        self.old = self.distribution(self.before)

    def distribution(self, point: Parameters) -> Distribution:
        """Of the actions in every state, as other parameters have it.

        Args:
            point: The trained parameters by name.

        Returns:
            A distribution.
        """
        result: Distribution = functional_call(self.policy, point, *self.inputs)
        return result

    def gradient(self) -> Tensor:
        """That of the loss; zero for a parameter that the loss does not depend on.

        Returns:
            ``(m,)``, for m trained numbers.
        """
        pairs = [(p, p.grad) for p in self.trained.values()]
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])

    def point(self, step: Tensor) -> Parameters:
        """The parameters after a step from where the policy was.

        Args:
            step: ``(m,)``.

        Returns:
            The trained parameters by name.
        """
        return cast("Parameters", tree_map(torch.add, self.before, unravel(step, self.before)))

    def place(self, point: Parameters) -> None:
        """Writes parameters into the policy.

        Args:
            point: The trained parameters by name.
        """
        for name, parameter in self.trained.items():
            parameter.copy_(point[name])

    def kl(self, point: Parameters) -> float:
        """How far other parameters are.

        Args:
            point: The trained parameters by name.

        Returns:
            The mean KL(old ‖ new) over the states, in nats.
        """
        return kl_divergence(self.old, self.distribution(point)).mean().item()

    def fisher(self, damping: float) -> Product:
        """The Fisher matrix, with λ on its diagonal, as a map of vectors.

        Args:
            damping: λ.

        Returns:
            The map of v to (JᵀWJ / B + λI) v, ``(m,)`` both.
        """

        def coordinates(point: Parameters) -> tuple[Tensor, ...]:
            return _geometry(self.distribution(point))[0]

        here, weights = _geometry(self.old)
        pull = vjp(coordinates, self.before)[1]
        # Jᵀu is linear in u: its derivative is J wherever it is taken.
        push = vjp(lambda u: vjp(coordinates, self.before)[1](u)[0], here)[1]
        samples = self.old.batch_shape.numel()

        def product(row: Tensor) -> Tensor:
            (tangents,) = push(unravel(row, self.before))
            weighted = tuple(w * t / samples for w, t in zip(weights, tangents, strict=True))
            return ravel(pull(weighted)[0]) + damping * row

        return product


def _geometry(distribution: Distribution) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Coordinates in which the Fisher matrix is diagonal, and its diagonal."""
    if isinstance(distribution, Categorical):
        return (distribution.logits,), (distribution.probs,)
    base = getattr(distribution, "base_dist", None)
    if isinstance(distribution, Independent) and isinstance(base, Normal):
        precision = base.scale**-2
        return (base.loc, base.scale), (precision, 2 * precision)
    raise BilevelError(
        f"the policy returned {type(distribution).__name__}: TRPO knows the Fisher matrix of "
        "Categorical and of Independent(Normal, 1); return one of them"
    )
