"""Behaviour cloning: imitation as supervised learning, the baseline that plays no game."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.policies import Policy


def clone(
    policy: Policy,
    observations: Tensor,
    actions: Tensor,
    *,
    lr: float = 1e-3,
    batch_size: int = 128,
    patience: int = 50,
    held_out: float = 0.3,
) -> int:
    r"""Fits :math:`\max_\theta \mathrm{E}_{expert} \log \pi_\theta(a \mid s)`, by Adam.

    As Ho & Ermon (2016, Sec. 6) run it: 30 % of the pairs are held out, and training ends where
    their likelihood no longer grows.

    Args:
        policy: What is fitted; it is left as it was at its best.
        observations: Of the expert, ``(B, n)``.
        actions: Of the expert, ``(B,)`` or ``(B, m)``.
        lr: Adam's learning rate.
        batch_size: Pairs a step.
        patience: How many epochs it may do no better before it ends.
        held_out: Which share of the pairs is held out.

    Returns:
        How many epochs it took.

    Raises:
        BilevelError: If there are fewer than two pairs.

    Example:
        >>> from bilevel.imitation import CategoricalPolicy
        >>> policy, states = CategoricalPolicy(1, 2), torch.tensor([[1.0], [-1.0]]).repeat(8, 1)
        >>> epochs = clone(policy, states, (states[:, 0] > 0).long(), lr=0.01)
        >>> policy(torch.tensor([[1.0]])).probs[0, 1].item() > 0.9
        True
    """
    if len(observations) < 2:
        raise BilevelError(
            f"{len(observations)} pairs are no two: one is fitted, one is held out; show more"
        )
    order = torch.randperm(len(observations))
    split = max(1, round(held_out * len(order)))
    validation, training = order[:split], order[split:]
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)

    def loss(rows: Tensor) -> Tensor:
        likelihood: Tensor = policy(observations[rows]).log_prob(actions[rows])
        return -likelihood.mean()

    best, waited, epochs = (float("inf"), copy.deepcopy(policy.state_dict())), 0, 0
    while waited < patience:
        for rows in training[torch.randperm(len(training))].split(batch_size):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        epochs, waited = epochs + 1, waited + 1
        with torch.no_grad():
            now = loss(validation).item()
        if now < best[0]:
            best, waited = (now, copy.deepcopy(policy.state_dict())), 0
    policy.load_state_dict(best[1])
    return epochs
