"""Behaviour cloning finds the expert's frequencies, and does not learn its sample by heart."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, TanhTransform, TransformedDistribution

from bilevel import BilevelError, NonFiniteError
from bilevel.imitation import CategoricalPolicy, GaussianPolicy, Policy, clone


def test_it_finds_the_experts_frequencies() -> None:
    torch.manual_seed(0)
    policy = CategoricalPolicy(1, 2, hidden=(8,))
    states = torch.cat([torch.ones(400, 1), -torch.ones(400, 1)])
    often = torch.cat([torch.rand(400) < 0.9, torch.rand(400) < 0.3])
    clone(policy, states, often.long(), lr=1e-2)
    told = policy(torch.tensor([[1.0], [-1.0]])).probs[:, 1].detach()
    shares = often.view(2, -1).float().mean(1)
    torch.testing.assert_close(told, shares, atol=0.08, rtol=0)


def test_it_ends_where_what_was_held_out_grows_no_likelier() -> None:
    """Actions are noise: the best that can be done is their spread, and to stop."""
    torch.manual_seed(0)
    policy = GaussianPolicy(4, 1)
    states, actions = torch.randn(60, 4), torch.randn(60, 1)
    epochs = clone(policy, states, actions, lr=1e-2, patience=20)
    assert epochs < 500
    fresh = torch.randn(2000, 4), torch.randn(2000, 1)
    assert policy(fresh[0]).log_prob(fresh[1]).mean() > -1.75  # −1.42 is the best there is


def test_a_share_of_the_pairs_is_held_out_and_the_others_are_fitted_in_batches() -> None:
    policy, fitted, held_out = GaussianPolicy(1, 1), [], []

    def note(_, inputs, __) -> None:
        (fitted if torch.is_grad_enabled() else held_out).append(inputs[0].flatten().tolist())

    policy.register_forward_hook(note)
    states = torch.arange(10.0)[:, None] / 10
    clone(policy, states, torch.randn(10, 1), held_out=0.2, batch_size=3, max_epochs=2)
    assert [len(rows) for rows in fitted] == [3, 3, 2, 3, 3, 2]
    first, second = held_out[-2:]  # after those of the checks
    assert len(first) == 2
    assert first == second
    for epoch in (fitted[:3], fitted[3:]):
        pairs = [*first, *(row for rows in epoch for row in rows)]
        assert sorted(pairs) == states.flatten().tolist()


def test_it_ends_after_as_many_epochs_without_improvement_as_it_has_patience() -> None:
    states, actions = torch.randn(10, 1), torch.randn(10, 1)
    assert clone(GaussianPolicy(1, 1), states, actions, lr=0.0, patience=3) == 1 + 3


def test_one_pair_cannot_be_fitted_and_held_out() -> None:
    with pytest.raises(BilevelError, match="there are 1 pairs"):
        clone(CategoricalPolicy(1, 2), torch.ones(1, 1), torch.ones(1).long())


@pytest.mark.parametrize(
    ("policy", "shape"),
    [
        (CategoricalPolicy(1, 2), (5,)),
        (CategoricalPolicy(1, 2), (8, 1)),
        (GaussianPolicy(1, 1), (8,)),
        (GaussianPolicy(1, 1), (5, 1)),
        (GaussianPolicy(1, 2), (8, 1)),
    ],
)
def test_every_state_has_an_action_of_the_policys_shape(policy: Policy, shape: tuple) -> None:
    told = rf"the actions have shape {re.escape(str(shape))}: for 8 states the policy takes \(8,"
    with pytest.raises(BilevelError, match=told):
        clone(policy, torch.ones(8, 1), torch.zeros(shape))


@pytest.mark.parametrize("action", [2, -1, 0.5])
def test_an_action_is_one_of_the_policys(action: float) -> None:
    actions = torch.tensor([0, 1, action, 1])
    with pytest.raises(BilevelError, match=rf"an action {action}: .* whole numbers from 0 to 1;"):
        clone(CategoricalPolicy(1, 2), torch.ones(4, 1), actions)


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_is_held_out_and_a_share_is_not(held_out: float) -> None:
    with pytest.raises(BilevelError, match=r"held_out is .* give a number between 0 and 1"):
        clone(CategoricalPolicy(1, 2), torch.ones(4, 1), torch.ones(4).long(), held_out=held_out)


def test_something_is_left_to_learn_from() -> None:
    torch.manual_seed(0)
    policy, state = CategoricalPolicy(1, 2), torch.ones(2, 1)
    clone(policy, state, torch.ones(2).long(), held_out=0.9, lr=1e-2)
    assert policy(state[:1]).probs[0, 1] > 0.9


def test_an_expert_without_noise_is_not_fitted_for_ever() -> None:
    """A Gaussian's likelihood of one action grows without end."""
    policy = GaussianPolicy(1, 1, hidden=())
    assert clone(policy, torch.ones(8, 1), torch.zeros(8, 1), max_epochs=60) == 60


def test_pairs_that_are_not_finite_are_refused() -> None:
    states = torch.full((10, 1), torch.nan)
    with pytest.raises(NonFiniteError, match="of 10 of 10 pairs is not finite before cloning"):
        clone(GaussianPolicy(1, 1), states, torch.zeros(10, 1))


def test_a_likelihood_that_ceases_to_be_finite_is_told() -> None:
    policy = GaussianPolicy(1, 1)
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(NonFiniteError, match="not finite after 1 epochs of cloning: check"):
        clone(policy, torch.ones(10, 1), torch.zeros(10, 1), lr=1e30)
    torch.testing.assert_close(policy.state_dict(), before)  # the best so far


def test_a_policy_that_raises_has_its_best_weights() -> None:
    """As one of torch's distributions does, unless it is told not to."""

    class Checked(CategoricalPolicy):
        def forward(self, observations: Tensor) -> Categorical:
            logits = self.network(observations).log()
            return Categorical(logits=logits, validate_args=True)

    policy = Checked(1, 2, hidden=())
    nn.init.ones_(policy.network[-1].bias)
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(ValueError, match="Expected parameter logits"):
        clone(policy, torch.ones(9, 1), torch.zeros(9).long(), lr=1e3, batch_size=1)
    torch.testing.assert_close(policy.state_dict(), before)


class Squashed(GaussianPolicy):
    def forward(self, observations):
        return TransformedDistribution(super().forward(observations), [TanhTransform(cache_size=1)])


def test_actions_at_the_bounds_of_a_squashed_policy_are_refused() -> None:
    """Its density is infinite there; inside it is not."""
    states, actions = torch.randn(20, 1), torch.linspace(-1, 1, 20)[:, None]
    told = "of 2 of 20 pairs is not finite before cloning: .*clip the actions inside"
    with pytest.raises(NonFiniteError, match=told):
        clone(Squashed(1, 1), states, actions)
    assert clone(Squashed(1, 1), states, actions.clamp(-0.999, 0.999), max_epochs=3) == 3


def test_held_out_pairs_leave_running_statistics() -> None:
    norm = torch.nn.BatchNorm1d(1)
    policy = CategoricalPolicy(1, 2, inputs=norm)
    states = torch.tensor([[1.0], [-1.0]]).repeat(10, 1)
    clone(policy, states, (states[:, 0] > 0).long(), batch_size=7, max_epochs=1)
    assert norm.num_batches_tracked == 2  # of 14 pairs
    assert policy.training


def test_pairs_of_another_dtype_are_refused() -> None:
    states, actions = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4).long()
    with pytest.raises(BilevelError, match=r"are torch.float64 .* is torch.float32: .*\.float"):
        clone(CategoricalPolicy(1, 2), states, actions)


def test_one_pair_at_least_is_held_out() -> None:
    policy, states = CategoricalPolicy(1, 2), torch.tensor([[1.0], [-1.0]]).repeat(5, 1)
    epochs = clone(policy, states, (states[:, 0] > 0).long(), held_out=0.01, max_epochs=3)
    assert epochs == 3


@pytest.mark.parametrize(("pairs", "fitted"), [(10, 7), (3, 2)])
def test_three_in_ten_pairs_are_held_out(pairs: int, fitted: int) -> None:
    policy, states, sizes = CategoricalPolicy(1, 2), torch.randn(pairs, 1), []
    policy.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    clone(policy, states, (states[:, 0] > 0).long(), max_epochs=1)
    assert sizes[-2:] == [fitted, pairs - fitted]


def test_a_policy_may_fill_in_what_is_missing() -> None:
    class Filling(CategoricalPolicy):
        def forward(self, observations: Tensor) -> Categorical:
            return super().forward(observations.nan_to_num())

    states = torch.randn(20, 4)
    states[::3, 1] = torch.nan
    assert clone(Filling(4, 2), states, (states[:, 0] > 0).long(), max_epochs=2) == 2
