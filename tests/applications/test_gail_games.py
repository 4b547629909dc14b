"""The games of `applications/gail.py` are those of their settings, and so are their seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bilevel import Alternating, Simultaneous
from bilevel.imitation import CategoricalPolicy, MountainCarExpert, Task, demonstrate, pairs

ENV = "MountainCar-v0"
SHOWN = demonstrate(ENV, MountainCarExpert(), 1).subsample()


@pytest.fixture
def lib(applications: Callable[[str], ModuleType]) -> Callable[[str], ModuleType]:
    return lambda name: applications(f"gail_lib.{name}")


@pytest.fixture
def make(lib: Callable[[str], ModuleType]) -> Callable[..., Any]:
    """The trainer of a setting."""
    games = lib("games")
    rest = ("coordinate", None, "finish", None, 3, 0.01, 0.01, 0.99, 0.98, None, 64, 4)
    one = games.Setting(ENV, "gail", 0, *rest)
    return lambda **other: games.make_trainer(dataclasses.replace(one, **other), *SHOWN)


def test_the_discriminator_steps_before_the_policy(make: Callable[..., Any]) -> None:
    schedule = make().game.schedule
    assert isinstance(schedule, Alternating)
    assert (schedule.follower_steps, schedule.first) == (3, "follower")


def test_a_learned_discriminator_takes_one_step_from_its_last(make: Callable[..., Any]) -> None:
    """Beside the policy's, from the same rollout (Algorithm 5)."""
    game = make(method="l2l-gail").game
    assert isinstance(game.schedule, Simultaneous)
    assert (game.solver.steps, game.solver.warm_start) == (1, True)


def test_a_trainer_is_of_its_setting(make: Callable[..., Any]) -> None:
    policy = {"max_kl": 0.02, "damping": 0.3, "discount": 0.9, "gae_lambda": 0.8}
    trainer = make(**policy, max_norm=8.0, reward="neutral", follower_lr=0.03)
    [group] = trainer.game.solver_opt.param_groups
    assert group["lr"] == 0.03
    [of_policy], leader = trainer.leader_opt.param_groups, trainer.leader
    assert {**of_policy, **vars(leader)}.items() >= policy.items()
    follower = trainer.leader.follower
    assert (follower.max_norm, follower.reward_name) == (8.0, "neutral")


def test_networks_see_what_is_standardised_by_both_sides(make: Callable[..., Any]) -> None:
    """By the expert's and an untrained policy's: a policy begins far from an expert at rest."""
    trainer = make(steps=4000)
    policy, value = (part.network[0] for part in (trainer.leader.policy, trainer.leader.value))
    untrained = trainer.sampler.collect(1000)
    assert torch.equal(policy(SHOWN[0]), value(SHOWN[0]))
    standard(policy(SHOWN[0]), policy(untrained.observations.flatten(0, 1)))
    see = trainer.leader.follower.network[0]
    expert = pairs(Task(ENV, 2, 3, discrete=True), *SHOWN)
    standard(see(expert), see(trainer.leader.follower.pairs(untrained)))


def standard(one: torch.Tensor, other: torch.Tensor) -> None:
    """Of mean 0 and mean square 1 in equal parts, as far as another rollout shows."""
    zeros, ones = torch.zeros(one.shape[-1]), torch.ones(one.shape[-1])
    torch.testing.assert_close(one.mean(0) + other.mean(0), zeros, atol=0.1, rtol=0)
    squares = one.square().mean(0) + other.square().mean(0)
    torch.testing.assert_close(squares / 2, ones, atol=0.2, rtol=0)


def test_a_seed_is_that_of_the_networks(make: Callable[..., Any]) -> None:
    first, again, other = (
        torch.cat([weight.flatten() for weight in make(seed=seed).leader.policy.parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("method", "updater", "lr"),
    [("gail", "dense", 1e-3), ("l2l-gail", "coordinate", 1e-3), ("l2l-gail", "block", 1e-4)],
)
def test_a_wider_updater_learns_by_smaller_steps(
    make: Callable[..., Any], method: str, updater: str, lr: float
) -> None:
    [group] = make(method=method, updater=updater).game.solver_opt.param_groups
    assert group["lr"] == lr


def test_runs_are_as_the_arguments_say(applications: Callable[[str], ModuleType]) -> None:
    gail = applications("gail")
    given = {
        "updater": "block",
        "gradient_skip": None,
        "reward": "neutral",
        "follower_lr": 0.3,
        "follower_steps": 7,
        "max_kl": 0.2,
        "damping": 0.3,
        "discount": 0.9,
        "gae_lambda": 0.8,
        "max_norm": 8.0,
        "steps": 33,
        "environments": 3,
    }
    args = gail.Args(env=(ENV, "Pendulum-v1"), method=("bc", "gail"), seed=4, seeds=2, **given)
    settings = gail.plan_runs(args)
    assert [(one.seed, one.env, one.method) for one in settings] == [
        (seed, env, method) for seed in (4, 5) for env in args.env for method in args.method
    ]
    for one in settings:
        assert {name: getattr(one, name) for name in given} == given
    suited = gail.plan_runs(gail.Args(env=(ENV, "CartPole-v1"), method=("gail",)))
    assert [one.reward for one in suited] == ["finish", "survive"]


def test_the_suited_rewards_are_those_of_the_paper(lib: Callable[[str], ModuleType]) -> None:
    suited = lib("games").suited_reward
    found = [suited(env) for env in ("CartPole-v1", ENV, "Pendulum-v1")]
    assert found == ["survive", "finish", "neutral"]


@pytest.mark.parametrize(
    ("resume", "left"), [(False, []), (True, ["checkpoint.pt", "policy.safetensors"])]
)
def test_a_new_run_leaves_nothing_of_an_old_one_to_resume(
    lib: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    resume: bool,
    left: list[str],
) -> None:
    """Neither its checkpoint nor the policy of a short run, which --resume would take for this."""
    runs, folder = lib("runs"), tmp_path / "a run"
    folder.mkdir()
    for name in ("checkpoint.pt", "policy.safetensors"):
        (folder / name).touch()
    monkeypatch.setattr(runs, "run_one", lambda *_: sorted(one.name for one in folder.iterdir()))
    setting = SimpleNamespace(name="a run", method="gail", env=ENV)
    given = {"resume": resume, "jobs": 1, "progress": print}
    assert runs.run_all([setting], 1, {ENV: SHOWN}, tmp_path, **given) == [left]


def test_a_policy_is_evaluated_on_the_same_episodes_each_time(
    lib: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = lib("runs")
    monkeypatch.setattr(runs, "EVALUATION_EPISODES", 3)
    policy = CategoricalPolicy(4, 2)
    first, again = (runs.evaluate(policy, "CartPole-v1") for _ in range(2))
    assert torch.equal(first, again)


def test_a_policy_is_evaluated_on_other_episodes_than_its_expert_showed(
    lib: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    runs, experts, seeds = lib("runs"), lib("experts"), set[int]()  # of episodes played

    def play(env: str, policy: Any, episodes: int, seed: int) -> Any:
        own = {seed + number for number in range(episodes)}
        assert not own & seeds
        seeds.update(own)
        return demonstrate(env, MountainCarExpert(), 1)

    for module in (experts, runs):
        monkeypatch.setattr(module, "play", play)
    experts.expert_demonstrations(ENV, None, tmp_path, print, iterations=1, episodes=100)
    runs.evaluate(MountainCarExpert(), ENV)
    assert len(seeds) == 200
    for environments in (1, 3, 16, 100):
        own = [
            lib("episodes").training_seed(iteration, run, environments) + number
            for run in range(1000)
            for iteration in (0, 25, 50)
            for number in range(environments)
        ]
        assert len({*own} - seeds) == len(own)  # nor do two runs train on the same episodes


def test_a_seed_is_that_of_the_episodes(lib: Callable[[str], ModuleType]) -> None:
    starts = [
        lib("episodes").play(ENV, MountainCarExpert(), 1, seed).observations[0] for seed in (1, 2)
    ]
    assert not torch.equal(*starts)
