"""The discriminator as a follower: its optimum, its rewards, and the core's solvers on it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel import Bilevel, BilevelError, Detached, Iterative, LeaderProblem, Parametric, testing
from bilevel.imitation import Discriminator, ImitationBatch, Rollout, Standardize, Task, pairs
from bilevel.tree import ravel
from bilevel.updates import Gradient

TASK = Task("one state", 1, 2, discrete=True)


class Still(LeaderProblem):
    """A policy that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def loss(self, y: dict[str, torch.Tensor], batch: ImitationBatch) -> torch.Tensor:
        return self.w**2


def batch_of(policy: list[int], expert: list[int]) -> ImitationBatch:
    """One state, two actions: how often each was chosen by whom."""
    acted, shown = (torch.tensor([0] * counts[0] + [1] * counts[1]) for counts in (policy, expert))
    state, zero = torch.ones(len(acted), 1, 1), torch.zeros(len(acted), 1)
    rollout = Rollout(
        state, acted.view(-1, 1), zero, state, zero, zero.bool(), zero.bool(), torch.zeros(0)
    )
    return ImitationBatch(rollout, pairs(TASK, torch.ones(len(shown), 1), shown))


@pytest.mark.parametrize("solver", ["parametric", "iterative"])
def test_the_optimum_is_the_ratio_of_frequencies(solver: str) -> None:
    """D*(s, a) = π(s, a) / (π(s, a) + E(s, a)), found by the core's solvers alike."""
    torch.manual_seed(0)
    follower, leader = Discriminator(TASK, reward="neutral", hidden=()), Still()
    batch = batch_of([3, 1], [1, 4])
    if solver == "parametric":
        players = Parametric(follower.init(batch))
        game = Bilevel(
            leader,
            follower,
            players,
            leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
            solver_opt=torch.optim.Adam(players.parameters(), lr=0.05),
            adjoint=Detached(),
        )
        for _ in range(800):
            game.step(batch)
        y = dict(players.y.named_parameters())
    else:
        y = Iterative(Gradient(2.0), 1500).solve(follower, leader, batch).value
    told = follower.logits(y, pairs(TASK, torch.ones(2, 1), torch.tensor([0, 1]))).sigmoid()
    expected = torch.tensor([0.75 / (0.75 + 0.2), 0.25 / (0.25 + 0.8)])
    torch.testing.assert_close(told.detach(), expected, atol=1e-3, rtol=0)
    best = follower.objective(leader, y, batch).item()
    assert best == pytest.approx(
        sum(
            share * math.log(d if mine else 1 - d)
            for mine, shares in ((True, (0.75, 0.25)), (False, (0.2, 0.8)))
            for share, d in zip(shares, expected.tolist(), strict=True)
        ),
        abs=1e-4,
    )
    assert follower.accuracy(y, batch).item() == pytest.approx((0.75 + 0.8) / 2)


def test_the_rewards_signs() -> None:
    batch = batch_of([2, 1], [1, 1])
    survive, finish, neutral = (
        Discriminator(TASK, reward=name) for name in ("survive", "finish", "neutral")
    )
    y = survive.init(batch)
    logits = survive.logits(y, survive.pairs(batch.rollout)).view(3, 1)
    torch.testing.assert_close(survive.reward(y, batch.rollout), F.softplus(-logits).detach())
    torch.testing.assert_close(finish.reward(y, batch.rollout), -F.softplus(logits).detach())
    torch.testing.assert_close(neutral.reward(y, batch.rollout), -logits.detach())
    assert survive.reward(y, batch.rollout).min() > 0 > finish.reward(y, batch.rollout).max()
    with pytest.raises(BilevelError, match="there is no reward 'both'"):
        Discriminator(TASK, reward="both")


def test_it_keeps_what_a_follower_promises() -> None:
    testing.check_follower(Discriminator(TASK, reward="neutral"), Still(), batch_of([3, 1], [1, 4]))


def test_pairs_of_vectors() -> None:
    states, actions = torch.randn(5, 3, 2), torch.randn(5, 3, 1)
    rows = pairs(Task("vectors", 2, 1, discrete=False), states, actions)
    assert rows.shape == (15, 3)
    torch.testing.assert_close(rows[4], torch.cat([states[1, 1], actions[1, 1]]))


def test_actions_are_told_as_the_environment_was_given_them() -> None:
    """Else a policy whose noise leaves the range is known by that, and no expert's ever does."""
    task = Task("vectors", 1, 2, discrete=False, low=(-1.0, 0.0), high=(1.0, 5.0))
    rows = pairs(task, torch.zeros(2, 1), torch.tensor([[-3.0, -0.5], [0.5, 7.0]]))
    assert rows[:, 1:].tolist() == [[-1, 0], [0.5, 5]]


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_whole_numbers_of_any_kind_count_actions(kind: torch.dtype) -> None:
    rows = pairs(TASK, torch.zeros(2, 1), torch.tensor([1, 0], dtype=kind))
    assert rows[:, 1:].tolist() == [[0, 1], [1, 0]]


def test_floating_point_numbers_do_not_count_actions() -> None:
    with pytest.raises(BilevelError, match=r"actions are torch.float32: .*store them as integers"):
        pairs(TASK, torch.zeros(2, 1), torch.tensor([1.0, 0.0]))


def test_a_discriminator_that_knows_nothing_gives_no_neutral_reward() -> None:
    """At D = ½ the other two pay or cost each step log 2, whatever the policy does."""
    batch = batch_of([2, 1], [1, 1])
    for name, expected in (("survive", math.log(2)), ("finish", -math.log(2)), ("neutral", 0.0)):
        follower = Discriminator(TASK, reward=name)
        y = {key: torch.zeros_like(leaf) for key, leaf in follower.init(batch).items()}
        torch.testing.assert_close(follower.reward(y, batch.rollout), torch.full((3, 1), expected))


def test_what_pairs_go_through_is_no_part_of_y() -> None:
    samples = torch.tensor([[2.0, 1.0, 0.0], [4.0, 0.0, 1.0]])
    follower = Discriminator(TASK, reward="neutral", inputs=Standardize(samples))
    y = follower.init(None)
    assert sum(leaf.numel() for leaf in y.values()) == follower.size == 3 * 64 + 64 + 2048 + 32 + 33
    plain = Discriminator(TASK, reward="neutral")
    renamed = dict(zip(plain.init(None), y.values(), strict=True))
    standardized = (samples - samples.mean(0)) / samples.std(0, correction=0)
    torch.testing.assert_close(follower.logits(y, samples), plain.logits(renamed, standardized))


@pytest.mark.parametrize(
    ("states", "actions"),
    [
        (torch.zeros(3, 2), torch.zeros(3).long()),
        (torch.zeros(3, 1), torch.zeros(3, 1).long()),
        (torch.zeros(3, 2, 2), torch.zeros(3).long()),
    ],
)
def test_pairs_of_another_shape_are_refused(states, actions) -> None:
    told = r"not those of one state: it has states \(..., 1\) and actions \(...\); reshape"
    with pytest.raises(BilevelError, match=told):
        pairs(TASK, states, actions)
    with pytest.raises(BilevelError, match=r"it has states \(..., 1\) and actions \(..., 2\)"):
        pairs(TASK._replace(discrete=False), torch.zeros(3, 1), torch.zeros(3))


def test_actions_that_a_task_does_not_have_are_refused() -> None:
    for missing in (2, -1):
        told = f"there is an action {missing}: one state takes one of 2 actions"
        with pytest.raises(BilevelError, match=told):
            pairs(TASK, torch.zeros(3, 1), torch.tensor([0, missing, 1]))


def test_a_start_is_a_copy_and_rewards_have_no_graph() -> None:
    follower = Discriminator(TASK, reward="survive")
    y, start = follower.init(None), ravel(follower.init(None))
    for leaf in y.values():
        leaf.add_(1.0).requires_grad_()
    assert torch.equal(ravel(follower.init(None)), start)
    assert not follower.reward(y, batch_of([2, 1], [1, 1]).rollout).requires_grad


def test_weights_are_kept_in_the_ball() -> None:
    follower = Discriminator(TASK, reward="neutral", max_norm=0.5)
    y = {name: torch.randn_like(leaf) for name, leaf in follower.init(None).items()}
    near = follower.project(y, None)
    assert ravel(near).norm().item() == pytest.approx(0.5)
    torch.testing.assert_close(ravel(near) / ravel(near).norm(), ravel(y) / ravel(y).norm())
    inside = {name: 0.1 * leaf for name, leaf in near.items()}
    assert all(map(torch.equal, follower.project(inside, None).values(), inside.values()))
    with pytest.raises(BilevelError, match="max_norm is 0"):
        Discriminator(TASK, reward="neutral", max_norm=0)


def test_a_start_lies_in_the_ball() -> None:
    """A solver starts from it, and a game refuses to start elsewhere."""
    follower = Discriminator(TASK, reward="neutral", max_norm=0.5)
    plain = Discriminator(TASK, reward="neutral")
    plain.network = follower.network
    start, whole = (ravel(one.init(None)) for one in (follower, plain))
    torch.testing.assert_close(start, 0.5 * whole / whole.norm())
    solver = Iterative(Gradient(0.1), 1, warm_start=True)
    leader = Still()
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    game = Bilevel(leader, follower, solver, leader_opt=optimizer, adjoint=Detached())
    game.step(batch_of([2, 1], [1, 1]))
    follower.max_norm = whole.norm().item() + 1
    assert torch.equal(ravel(follower.init(None)), whole)


def test_layers_that_are_frozen_stay_as_they_are() -> None:
    """Such as a pretrained encoder of states, in a network of one's own."""
    encoder = nn.Linear(3, 4).requires_grad_(False)
    follower = Discriminator(TASK, reward="neutral", hidden=())
    follower.network = nn.Sequential(encoder, nn.Tanh(), nn.Linear(4, 1))
    batch, y = batch_of([3, 1], [1, 4]), follower.init(None)
    assert sorted(y) == ["2.bias", "2.weight"]
    assert follower.size == 5
    answer = Iterative(Gradient(0.5), 3).solve(follower, Still(), batch).value
    assert follower.objective(None, answer, batch) > follower.objective(None, y, batch)
    torch.testing.assert_close(
        follower.logits(y, batch.expert), follower.network(batch.expert)[:, 0]
    )


def test_a_network_that_is_frozen_as_a_part_of_the_leader_is_told() -> None:
    follower, leader = Discriminator(TASK, reward="neutral"), Still()
    leader.network = follower.network
    with pytest.raises(BilevelError, match=r"no weight to train: .* keep it out of the leader"):
        Iterative(Gradient(0.5), 3).solve(follower, leader, batch_of([3, 1], [1, 4]))


def test_a_network_that_works_in_place_is_as_good_as_another() -> None:
    """The expert's pairs are those of all iterations."""

    class Centred(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(1))

    follower, batch = Discriminator(TASK, reward="neutral"), batch_of([3, 1], [1, 4])
    follower.network = Centred(follower.width, 1)
    before = batch.expert.clone()
    logits = follower.logits(follower.init(None), batch.expert)
    torch.testing.assert_close(logits, nn.Linear.forward(follower.network, before - 1)[:, 0])
    assert torch.equal(batch.expert, before)
