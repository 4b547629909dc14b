"""Generalized advantage estimation (GAE)."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel.errors import BilevelError


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    *,
    discount: float | Tensor = 0.99,
    gae_lambda: float | Tensor = 0.98,
) -> Tensor:
    r"""Generalized advantage estimation (Schulman et al., 2016, eq. 16).

    .. math::
        \delta_t = r_t + \gamma\,(1 - \mathrm{terminated}_t)\,V(s'_t) - V(s_t), \quad
        A_t = \delta_t + \gamma\lambda\,(1 - \mathrm{ended}_t)\,A_{t+1}

    The value after a *terminated* episode is 0. An episode that is *truncated* (by a time limit)
    also ends the sum, but its last state is bootstrapped with V.

    Args:
        rewards: r, ``(T, N)``: T steps of N environments.
        values: V(s) before each step, ``(T, N)``.
        next_values: V(s') after each step, before any reset, ``(T, N)``.
        terminated: Whether the step reached a terminal state, ``(T, N)`` bool.
        ended: Whether the step ended the episode, terminated or truncated, ``(T, N)`` bool.
        discount: γ in [0, 1]; a scalar tensor to differentiate by it, which is not checked.
        gae_lambda: λ in [0, 1], likewise; 0 gives one-step TD errors, 1 discounted returns minus
            V(s).

    Returns:
        A, ``(T, N)``.

    Raises:
        BilevelError: If γ or λ is a number out of its range, or the shapes differ.

    Example:
        >>> one = torch.ones(3, 1)
        >>> nothing, never = torch.zeros(3, 1), torch.zeros(3, 1).bool()
        >>> parts = (one, nothing, nothing, never, never)
        >>> generalized_advantages(*parts, discount=0.5, gae_lambda=1.0).T
        tensor([[1.7500, 1.5000, 1.0000]])
    """
    for name, factor in (("discount", discount), ("gae_lambda", gae_lambda)):
        if not isinstance(factor, Tensor) and not 0 <= factor <= 1:
            raise BilevelError(f"{name} is {factor}: it weights later steps; give 0 to 1")
    parts = (rewards, values, next_values, terminated, ended)
    if len({part.shape for part in parts}) != 1:
        raise BilevelError(
            f"the parts have shapes {[tuple(part.shape) for part in parts]}: all are per "
            "step and environment; give (T, N) for each"
        )
    td_errors = rewards + discount * next_values * terminated.logical_not() - values
    decay = discount * gae_lambda * ended.logical_not().to(td_errors)
    advantages = []
    advantage = torch.zeros_like(td_errors[0])
    for t in reversed(range(len(td_errors))):
        advantage = torch.addcmul(td_errors[t], decay[t], advantage)
        advantages.append(advantage)
    return torch.stack(advantages[::-1])
