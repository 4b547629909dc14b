"""Behaviour cloning: imitation as supervised learning, without an adversary."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from bilevel.errors import BilevelError, NonFiniteError
from bilevel.frozen import frozen
from bilevel.imitation.policies import Policy, check_untouched


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

    As in Ho & Ermon (2016, Sec. 6): 30 % of the pairs are held out, and training stops early when
    their likelihood no longer rises. The likelihood of a Gaussian policy is unbounded for a
    deterministic expert; ``max_epochs`` stops it there.

    Args:
        policy: The policy to fit, in the mode that it is in, on held-out pairs in evaluation mode;
            ends with the weights that were best there, also where an error is raised.
        observations: The expert's, ``(B, n)``.
        actions: The expert's, ``(B,)`` or ``(B, m)``.
        lr: Adam's learning rate.
        batch_size: Pairs per step.
        patience: Epochs without improvement after which training stops.
        max_epochs: Maximum number of epochs.
        held_out: Fraction of the pairs to hold out, between 0 and 1; at least one pair is held out,
            and at least one is not.

    Returns:
        The number of epochs.

    Raises:
        BilevelError: If there are fewer than two pairs, the observations' dtype or the actions'
            shape is not the policy's, a discrete action is none of the policy's, the policy changes
            its observations in place, or ``held_out`` is out of range.
        NonFiniteError: If the likelihood is NaN or infinite, at first or later.

    Example:
        >>> from bilevel.imitation import CategoricalPolicy
        >>> policy, states = CategoricalPolicy(1, 2), torch.tensor([[1.0], [-1.0]]).repeat(8, 1)
        >>> epochs = clone(policy, states, (states[:, 0] > 0).long(), lr=0.01)
        >>> policy(torch.tensor([[1.0]])).probs[0, 1].item() > 0.9
        True
    """
    _check_pairs(policy, observations, actions, held_out)
    order = torch.randperm(len(observations))
    split = min(max(1, round(held_out * len(order))), len(order) - 1)
    validation, training = order[:split], order[split:]
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)

    def loss(rows: Tensor) -> Tensor:
        log_likelihood: Tensor = policy(observations[rows]).log_prob(actions[rows])
        return -log_likelihood.mean()

    best_loss, best_weights = math.inf, copy.deepcopy(policy.state_dict())
    epochs = best_epoch = 0
    try:
        while epochs - best_epoch < patience and epochs < max_epochs:
            for rows in training[torch.randperm(len(training))].split(batch_size):
                optimizer.zero_grad()
                loss(rows).backward()
                optimizer.step()
            epochs += 1
            with frozen(policy), torch.no_grad():
                validation_loss = loss(validation).item()
            if not math.isfinite(validation_loss):
                raise NonFiniteError(
                    f"the expert's likelihood is not finite after {epochs} epochs of cloning: "
                    "check that its pairs are finite, or lower lr"
                )
            if validation_loss < best_loss:
                best_loss, best_weights = validation_loss, copy.deepcopy(policy.state_dict())
                best_epoch = epochs
    finally:  # also where a policy raises that its distribution is not one
        policy.load_state_dict(best_weights)
    return epochs


def _check_pairs(policy: Policy, observations: Tensor, actions: Tensor, held_out: float) -> None:
    if len(observations) < 2:
        raise BilevelError(
            f"there are {len(observations)} pairs: at least one is fitted and one held out; give 2 "
            "or more"
        )
    if not 0 < held_out < 1:
        raise BilevelError(
            f"held_out is {held_out}: some pairs are fitted and others held out; give a number "
            "between 0 and 1, such as 0.3"
        )
    with frozen(policy):
        _check_actions(policy, observations, actions)


@torch.no_grad()
def _check_actions(policy: Policy, observations: Tensor, actions: Tensor) -> None:
    dtypes = {parameter.dtype for parameter in policy.parameters()}
    if dtypes and observations.dtype not in dtypes:
        raise BilevelError(
            f"the observations are {observations.dtype} and the policy is {dtypes.pop()}: both "
            "need one dtype; give observations.float(), or policy.double()"
        )
    distribution = policy(observations[:2].clone())  # two suffice for the shape
    shape = (len(observations), *distribution.batch_shape[1:], *distribution.event_shape)
    if actions.shape != shape:
        raise BilevelError(
            f"the actions have shape {tuple(actions.shape)}: for {len(observations)} states the "
            f"policy takes {shape}; give an action for each state in this shape"
        )
    if isinstance(distribution, Categorical):
        support: Any = distribution.support
        if len(others := actions[~support.check(actions)]):
            raise BilevelError(
                f"there is an action {others[0].item()}: the policy takes whole numbers from 0 to "
                f"{support.upper_bound}; give those, or a policy with more actions"
            )
    read = observations.clone()
    finite = policy(read).log_prob(actions).isfinite()
    if not finite.all():
        raise NonFiniteError(
            f"the likelihood of {int((~finite).sum())} of {len(finite)} pairs is not finite before "
            "cloning: check that the pairs are finite, and clip the actions inside the policy's "
            "bounds, as at 0.999 for tanh"
        )
    check_untouched(observations, read)
