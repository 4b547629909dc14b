"""Behaviour cloning: imitation as supervised learning, the baseline that plays no game."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from bilevel.errors import BilevelError, NonFiniteError
from bilevel.imitation.policies import Policy


def clone(
    policy: Policy,
    observations: Tensor,
    actions: Tensor,
    *,
    lr: float = 1e-3,
    batch_size: int = 128,
    patience: int = 50,
    max_epochs: int = 1000,
    held_out: float = 0.3,
) -> int:
    r"""Fits :math:`\max_\theta \mathrm{E}_{expert} \log \pi_\theta(a \mid s)`, by Adam.

    As Ho & Ermon (2016, Sec. 6) run it: 30 % of the pairs are held out, and training ends where
    their likelihood no longer grows. An expert without noise can be fitted ever more sharply by a
    Gaussian policy: ``max_epochs`` ends that.

    Args:
        policy: What is fitted; it is left as it was at its best.
        observations: Of the expert, ``(B, n)``.
        actions: Of the expert, ``(B,)`` or ``(B, m)``.
        lr: Adam's learning rate.
        batch_size: Pairs a step.
        patience: How many epochs it may do no better before it ends.
        max_epochs: How many there are at most.
        held_out: Which share of the pairs is held out, between 0 and 1; at least one pair is, and
            at least one is not.

    Returns:
        How many epochs it took.

    Raises:
        BilevelError: If there are fewer than two pairs, or the share is not one.
        NonFiniteError: If the likelihood becomes NaN or infinite.

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
    if not 0 < held_out < 1:
        raise BilevelError(
            f"held_out is {held_out}: some pairs are fitted and others held out; give a number "
            "between 0 and 1, such as 0.3"
        )
    order = torch.randperm(len(observations))
    split = min(max(1, round(held_out * len(order))), len(order) - 1)
    validation, training = order[:split], order[split:]
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)

    def loss(rows: Tensor) -> Tensor:
        likelihood: Tensor = policy(observations[rows]).log_prob(actions[rows])
        return -likelihood.mean()

    best, waited, epochs = (float("inf"), copy.deepcopy(policy.state_dict())), 0, 0
    while waited < patience and epochs < max_epochs:
        for rows in training[torch.randperm(len(training))].split(batch_size):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        epochs, waited = epochs + 1, waited + 1
        with torch.no_grad():
            now = loss(validation).item()
        if not math.isfinite(now):
            raise NonFiniteError(
                f"the expert's likelihood is not finite after {epochs} epochs of cloning: check "
                "that its pairs are, or lower lr"
            )
        if now < best[0]:
            best, waited = (now, copy.deepcopy(policy.state_dict())), 0
    policy.load_state_dict(best[1])
    return epochs
