"""How much better an action was than the policy's average."""

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
    discount: float = 0.99,
    gae_lambda: float = 0.98,
) -> Tensor:
    r"""Generalized advantage estimation (Schulman et al., 2016, eq. 16).

    .. math::
        \delta_t = r_t + \gamma\,(1 - \mathrm{terminated}_t)\,V(s'_t) - V(s_t), \quad
        A_t = \delta_t + \gamma\lambda\,(1 - \mathrm{ended}_t)\,A_{t+1}

    An episode that *terminates* is worth nothing afterwards. One that is *truncated* (a time limit)
    would have gone on: it ends the sum, but its last state keeps its value.

    Args:
        rewards: r, ``(T, N)``: T steps of N environments side by side.
        values: V(s) before each step, ``(T, N)``.
        next_values: V(s') of the state that the step led to, before any reset, ``(T, N)``.
        terminated: Where the task was over, ``(T, N)`` bool.
        ended: Where the episode was over, terminated or truncated, ``(T, N)`` bool.
        discount: γ in [0, 1].
        gae_lambda: λ in [0, 1]; 0 trusts the values alone, 1 the rewards alone.

    Returns:
        A, ``(T, N)``.

    Raises:
        BilevelError: If γ or λ is out of its range, or the shapes differ.

    Example:
        >>> one = torch.ones(3, 1)
        >>> nothing, never = torch.zeros(3, 1), torch.zeros(3, 1).bool()
        >>> parts = (one, nothing, nothing, never, never)
        >>> generalized_advantages(*parts, discount=0.5, gae_lambda=1.0).T
        tensor([[1.7500, 1.5000, 1.0000]])
    """
    for name, share in (("discount", discount), ("gae_lambda", gae_lambda)):
        if not 0 <= share <= 1:
            raise BilevelError(f"{name} is {share}: it weighs what comes later; give 0 to 1")
    parts = (rewards, values, next_values, terminated, ended)
    if len({part.shape for part in parts}) != 1:
        raise BilevelError(
            f"the parts have shapes {[tuple(part.shape) for part in parts]}: each is one number a "
            "step and environment; give (T, N) for all"
        )
    surprise = rewards + discount * next_values * ~terminated - values
    advantages = torch.empty_like(surprise)
    later = torch.zeros_like(surprise[0])
    for t in reversed(range(len(surprise))):
        later = surprise[t] + discount * gae_lambda * later * ~ended[t]
        advantages[t] = later
    return advantages
