"""The trainer: one iteration is Algorithm 5, and a stopped run goes on bit for bit."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from bilevel import Alternating, Bilevel, BilevelError, Detached, Iterative, Parametric
from bilevel.frozen import frozen
from bilevel.imitation import (
    TRPO,
    Discriminator,
    ImitationBatch,
    Imitator,
    MountainCarExpert,
    Rollout,
    Sampler,
    Standardize,
    Task,
    Trainer,
    Value,
    demonstrate,
    make_envs,
    pairs,
)
from bilevel.tree import ravel
from bilevel.updates import CoordinateMLP

ENV = "MountainCar-v0"
KINDS = ["gail", "l2l-gail"]


class States(Discriminator):
    """Compares states, without the actions taken there."""

    @property
    def width(self) -> int:
        return self.task.observations

    def pairs(self, rollout: Rollout) -> torch.Tensor:
        return rollout.observations.flatten(0, 1)


def make(kind: str, discriminator: type[Discriminator] = Discriminator) -> Trainer:
    torch.manual_seed(0)
    envs = make_envs(ENV, 4)
    task = Task.of(envs)
    states, actions = demonstrate(ENV, MountainCarExpert(), 2).subsample()
    scale = Standardize(states)
    expert = states if discriminator is States else pairs(task, states, actions)
    follower = discriminator(task, reward="finish", inputs=Standardize(expert))
    leader = Imitator(task.policy(scale), Value(2, inputs=scale), follower)
    if kind == "gail":
        solver, schedule = Parametric(follower.network), Alternating(3, first="follower")
    else:
        solver, schedule = Iterative(CoordinateMLP(gradient_skip=0.1), 1, warm_start=True), None
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=TRPO(leader.policy),
        solver_opt=torch.optim.Adam(solver.parameters(), lr=1e-3),
        adjoint=Detached(),
        schedule=schedule,
    )
    sampler = Sampler(envs, leader.policy, seed=1)
    return Trainer(game, sampler, expert, steps=250)


class Smooth(Discriminator):
    """Penalises the slope of its logits (Gulrajani et al., 2017)."""

    def objective(self, leader, y, batch):
        expert = batch.expert.clone().requires_grad_()
        logits = self.logits(y, expert).sum()
        (slope,) = torch.autograd.grad(logits, expert, create_graph=True)
        return super().objective(leader, y, batch) - slope.square().mean()


def test_a_penalty_may_need_a_gradient() -> None:
    assert math.isfinite(make("gail", Smooth).iterate()["objective"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_iteration_moves_all_and_tells(kind: str) -> None:
    trainer = make(kind)
    parts = {
        "policy": trainer.leader.policy,
        "value": trainer.leader.value,
        "solver": trainer.game.solver,
    }
    before = {name: [p.clone() for p in part.parameters()] for name, part in parts.items()}
    told = trainer.iterate()
    for name, part in parts.items():
        moved = [not torch.equal(*p) for p in zip(before[name], part.parameters(), strict=True)]
        assert any(moved), name
    assert told["return"] == -200
    assert told["episodes"] == 4
    assert -2 < told["objective"] < 0
    assert 0 <= told["accuracy"] <= 1
    assert 0 < told["kl"] <= 0.01
    assert told["norm"] == pytest.approx(ravel(trainer.leader.discriminator_weights).norm().item())
    assert trainer.iteration == 1


def test_the_policy_of_gail_meets_a_discriminator_that_has_seen_its_rollout() -> None:
    """Ho & Ermon's order: D moves first, and the policy on what D has become."""
    trainer = make("gail")
    trainer.iterate()
    now = dict(trainer.game.solver.y.named_parameters())
    assert all(
        torch.equal(met, now[name]) for name, met in trainer.leader.discriminator_weights.items()
    )


def test_the_policy_of_l2l_gail_meets_the_updaters_answer() -> None:
    """Algorithm 5: θ_D ← U(θ_D, g), then θ_U and the policy move on it."""
    trainer = make("l2l-gail")
    batches: list[ImitationBatch] = []
    step = trainer.game.step
    trainer.game.step = lambda batch: (batches.append(batch), step(batch))[1]  # type: ignore[method-assign]
    follower, start = trainer.leader.follower, trainer.leader.follower.init(None)
    trainer.iterate()
    y = {name: leaf.clone().requires_grad_() for name, leaf in start.items()}
    slopes = torch.autograd.grad(
        follower.objective(trainer.leader, y, batches[0]), list(y.values())
    )
    for (name, leaf), slope in zip(start.items(), slopes, strict=True):
        torch.testing.assert_close(trainer.leader.discriminator_weights[name], leaf + 0.1 * slope)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_bit_for_bit(kind: str) -> None:
    whole, stopped = make(kind), make(kind)
    torch.manual_seed(5)
    rows = []
    for part in range(2):
        whole.sampler.restart(part)
        rows += [whole.iterate() for _ in range(2)]
    torch.manual_seed(5)
    stopped.sampler.restart(0)
    for _ in range(2):
        stopped.iterate()
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = make(kind)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.sampler.restart(1)
    assert resumed.iteration == 2
    assert [resumed.iterate() for _ in range(2)] == rows[2:]
    actual, expected = (one.game.trained_parameters() for one in (resumed, whole))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("lacking", ["game", "value_opt", "iteration", "random"])
def test_a_state_of_something_else_changes_nothing(lacking: str) -> None:
    trainer, moved = make("gail"), make("gail")
    moved.iterate()
    state = moved.state_dict()
    del state[lacking]
    before = {name: one.clone() for name, one in trainer.game.trained_parameters().items()}
    with pytest.raises(BilevelError, match=f"no '{lacking}': it is not that of an imitation"):
        trainer.load_state_dict(state)
    torch.testing.assert_close(trainer.game.trained_parameters(), before, rtol=0, atol=0)
    assert trainer.iteration == 0


def test_other_games_are_refused() -> None:
    trainer = make("gail")
    game = trainer.game
    game.leader_opt = torch.optim.SGD(game.leader.parameters(), lr=0.1)
    with pytest.raises(BilevelError, match="moved by SGD: this trainer is for an Imitator"):
        Trainer(game, trainer.sampler, trainer.expert, steps=3)


@pytest.mark.parametrize("kind", KINDS)
def test_each_rollout_is_valued_once_which_changes_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    valued = Value.advantages_and_returns
    monkeypatch.setattr(
        Value, "advantages_and_returns", lambda *a, **k: (calls.append(1), valued(*a, **k))[1]
    )
    once, anew = make(kind), make(kind)
    loss = anew.leader.loss
    anew.leader.loss = lambda *a: (setattr(anew.leader, "_batch", None), loss(*a))[1]  # type: ignore[method-assign]
    rows = []
    for trainer, count in ((once, [1, 1]), (anew, None)):
        torch.manual_seed(5)
        counts = []
        for _ in range(2):
            calls.clear()
            rows.append(trainer.iterate())
            counts.append(len(calls))
        assert counts == count if count else min(counts) > 1
    assert rows[:2] == rows[2:]
    assert all(map(torch.equal, once.leader.parameters(), anew.leader.parameters()))


def test_the_value_that_was_fitted_is_asked_anew() -> None:
    trainer = make("gail")
    batches: list[ImitationBatch] = []
    step = trainer.game.step
    trainer.game.step = lambda batch: (batches.append(batch), step(batch))[1]  # type: ignore[method-assign]
    trainer.iterate()
    leader = trainer.leader
    leader.loss(leader.discriminator_weights, batches[0])
    _, returns = leader.advantages_and_returns(leader.discriminator_weights, batches[0])
    assert torch.equal(leader.returns, returns)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda game: pickle.loads(pickle.dumps(game))])
def test_a_copy_of_a_game_plays_on_as_the_game_does(copied) -> None:
    trainer = make("gail")
    trainer.iterate()
    game = copied(trainer.game)
    assert game.leader_opt.policy is game.leader.policy
    assert game.leader_opt.last == trainer.game.leader_opt.last
    batch = ImitationBatch(trainer.sampler.collect(100), trainer.expert)
    for each in (game, trainer.game):
        each.step(batch)
    actual, expected = (one.trained_parameters() for one in (game, trainer.game))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "spoil", [torch.Tensor.double, lambda pairs: pairs[:, 1:], lambda pairs: pairs[:0]]
)
def test_pairs_that_are_none_of_the_task_are_refused(spoil) -> None:
    trainer = make("gail")
    with pytest.raises(
        BilevelError, match=r"expert's pairs are \(.*they are \(E, 5\) of torch.float32"
    ):
        Trainer(trainer.game, trainer.sampler, spoil(trainer.expert), steps=3)


def test_what_is_played_is_what_is_trained() -> None:
    trainer, other = make("gail"), make("gail")
    with pytest.raises(BilevelError, match=r"plays another policy .*Sampler\(envs, leader.policy"):
        Trainer(trainer.game, other.sampler, trainer.expert, steps=3)
    trainer.leader.follower = other.leader.follower
    with pytest.raises(BilevelError, match=r"the game has another follower"):
        Trainer(trainer.game, trainer.sampler, trainer.expert, steps=3)


class Shaky(Discriminator):
    """Has a layer of each mode, and tells how it does before it gives the rewards."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.network.append(nn.BatchNorm1d(1)).append(nn.Dropout(0.2))

    def reward(self, y, rollout):
        batch = ImitationBatch(rollout, self.expert)
        mode = "train" if self.network.training else "eval"
        with torch.random.fork_rng(), frozen(self.network, mode):
            self.told = self.objective(None, y, batch).item(), self.accuracy(y, batch).item()
        return super().reward(y, rollout)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_of_the_discriminator_as_it_gave_the_rewards(kind: str) -> None:
    """In its mode, which is another one for each kind, and without a trace."""
    trainer = make(kind, Shaky)
    follower, value = trainer.leader.follower, trainer.leader.value
    follower.expert = trainer.expert
    after: list[torch.Tensor] = []

    def fit(*args: object) -> torch.Tensor:
        explained = Value.fit(value, *args)
        after.extend([follower.network[-2].running_mean.clone(), torch.get_rng_state()])
        return explained

    value.fit = fit  # type: ignore[method-assign]
    told = trainer.iterate()
    assert (told["objective"], told["accuracy"]) == follower.told
    assert torch.equal(follower.network[-2].running_mean, after[0])
    assert torch.equal(torch.get_rng_state(), after[1])


def test_a_discriminator_that_sees_states_only() -> None:
    trainer = make("gail", States)
    assert trainer.expert.shape[1] == 2
    accuracies = [trainer.iterate()["accuracy"] for _ in range(10)]
    assert accuracies[-1] > accuracies[0] + 0.1


def test_no_steps_are_no_iteration() -> None:
    trainer = make("gail")
    trainer.steps = 0
    with pytest.raises(BilevelError, match="steps is 0: there is nothing to play"):
        trainer.iterate()


def test_where_no_episode_ended_there_is_no_return() -> None:
    trainer = make("gail")
    trainer.steps = 5
    told = trainer.iterate()
    assert math.isnan(told["return"])
    assert told["episodes"] == 0


def test_the_value_is_fitted_to_what_the_discriminators_rewards_return() -> None:
    trainer = make("gail")
    value, fitted = trainer.leader.value, []
    value.fit = lambda *args: (fitted.append(args[2]), Value.fit(value, *args))[1]  # type: ignore[method-assign]
    trainer.iterate()
    assert torch.equal(fitted[0], trainer.leader.returns.flatten())


def test_the_value_moves_at_a_rate_of_its_own() -> None:
    trainer, states = make("gail"), torch.randn(20, 2)
    still = Trainer(trainer.game, trainer.sampler, trainer.expert, steps=50, value_lr=0.0)
    before = trainer.leader.value(states)
    still.iterate()
    torch.testing.assert_close(trainer.leader.value(states), before)
