"""Fisher–vector products and KL divergences of a policy on one batch of states."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from torch.func import functional_call, vjp

from bilevel.errors import BilevelError
from bilevel.linear.system import Product
from bilevel.parameters import Parameters
from bilevel.tree import ravel, tree_map, unravel

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class TrustRegion:
    """A policy before a step, on one batch of states.

    Args:
        policy: The policy.
        inputs: The positional and keyword arguments that it is called with.
    """

    def __init__(self, policy: nn.Module, inputs: Inputs) -> None:
        self.policy, self.inputs = policy, inputs
        self.trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        self.old_parameters = {name: parameter.clone() for name, parameter in self.trained.items()}
        self._old_buffers = {name: buffer.clone() for name, buffer in policy.named_buffers()}
        # Evaluated on the clones: the closure's result may share memory with the parameters.
        self.old_distribution = self.distribution(self.old_parameters)

    def distribution(self, parameters: Parameters) -> Distribution:
        """The policy's distribution over actions with other parameters.

        Args:
            parameters: The trained parameters by name.

        Returns:
            The distribution.
        """
        return functional_call(self.policy, parameters, *self.inputs)

    def check_stateless(self) -> None:
        """Checks that the policy depends on nothing but its parameters and inputs.

        Raises:
            BilevelError: If it gives another distribution when it is evaluated again, or has
                changed a buffer.
        """
        again = self.distribution(self.old_parameters)
        changed = [
            f"its buffer {name}"
            for name, buffer in self.policy.named_buffers()
            if name not in self._old_buffers or not _same(buffer, self._old_buffers[name])
        ]
        before, now = (_fisher_coordinates(d)[0] for d in (self.old_distribution, again))
        close = partial(torch.allclose, rtol=1e-4, atol=1e-5, equal_nan=True)  # up to rounding
        if not all(map(close, before, now)):
            changed.append("its distribution")
        if changed:
            raise BilevelError(
                f"evaluating the policy again changes {changed[0]}: it keeps a state or draws "
                "noise, and its ratios and KL would mean nothing; put history into the "
                "observations (gymnasium.wrappers.FrameStackObservation), freeze running "
                "normalisers, or call policy.eval()"
            )

    def gradient(self) -> Tensor:
        """The gradient of the loss; zero for parameters that it does not depend on.

        Returns:
            ``(m,)``, for m trained parameters.
        """
        pairs = [(p, p.grad) for p in self.trained.values()]
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])

    def after(self, step: Tensor) -> Parameters:
        """The old parameters plus a step.

        Args:
            step: ``(m,)``.

        Returns:
            The trained parameters by name.
        """
        return tree_map(torch.add, self.old_parameters, unravel(step, self.old_parameters))

    def write(self, parameters: Parameters) -> None:
        """Writes parameters into the policy.

        Args:
            parameters: The trained parameters by name.
        """
        for name, parameter in self.trained.items():
            parameter.copy_(parameters[name])

    def kl(self, parameters: Parameters) -> float:
        """The KL divergence of other parameters from the old ones.

        Args:
            parameters: The trained parameters by name.

        Returns:
            The mean KL(old ‖ new) over the states, in nats; infinite where there is no such
            distribution, as of a negative scale.
        """
        try:
            new = self.distribution(parameters)
        except ValueError:
            return math.inf
        return kl_divergence(self.old_distribution, new).mean().item()

    def fisher(self, damping: float) -> Product:
        """The damped Fisher matrix as a linear operator.

        Args:
            damping: λ.

        Returns:
            The map of v to (JᵀWJ / B + λI) v, ``(m,)`` both.
        """

        def coordinates(parameters: Parameters) -> tuple[Tensor, ...]:
            return _fisher_coordinates(self.distribution(parameters))[0]

        old_coordinates, weights = _fisher_coordinates(self.old_distribution)
        vjp_fn = vjp(coordinates, self.old_parameters)[1]
        # u ↦ Jᵀu is linear, so the vjp of this map at any u is v ↦ Jv.
        jvp_fn = vjp(lambda u: vjp(coordinates, self.old_parameters)[1](u)[0], old_coordinates)[1]
        batch = self.old_distribution.batch_shape.numel()

        def product(v: Tensor) -> Tensor:
            (tangents,) = jvp_fn(unravel(v, self.old_parameters))
            weighted = tuple(w * t / batch for w, t in zip(weights, tangents, strict=True))
            return ravel(vjp_fn(weighted)[0]) + damping * v

        return product


def _fisher_coordinates(
    distribution: Distribution,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Coordinates in which the Fisher matrix is diagonal, and its diagonal."""
    while isinstance(distribution, TransformedDistribution):  # a bijection changes no divergence
        distribution = distribution.base_dist
    if isinstance(distribution, Categorical):
        return (distribution.logits,), (distribution.probs,)
    base = getattr(distribution, "base_dist", None)
    if isinstance(distribution, Independent) and isinstance(base, Normal):
        precision = base.scale**-2
        return (base.loc, base.scale), (precision, 2 * precision)
    raise BilevelError(
        f"the policy returned {type(distribution).__name__}: TRPO supports Categorical and "
        "Independent(Normal, 1), also under fixed transforms; return one of them"
    )


def _same(buffer: Tensor, before: Tensor) -> bool:
    """Whether two tensors are equal, NaN being equal to NaN."""
    return torch.equal(buffer.nan_to_num(), before.nan_to_num())
