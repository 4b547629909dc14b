"""The imitation games: one leader, one follower, and three ways to answer for the follower.

gail        Parametric(θ_D), moved by Adam          Ho & Ermon (2016)
l2l-gail    Iterative(updater, 1, warm_start)       Algorithm 5 of Jiang et al. (2021)
constant    Iterative(updater, 0), D = ½            the control: rewards that tell nothing
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bilevel import Alternating, Bilevel, Detached, Iterative, Parametric, Simultaneous
from bilevel.imitation import (
    TRPO,
    Apprentice,
    Discriminator,
    Imitator,
    Sampler,
    Standardize,
    Task,
    Value,
    make_envs,
    pairs,
)
from bilevel.updates import MLP, CoordinateMLP, Gradient, Update

BLOCK = 16
"""Numbers of θ_D that a network of the block-diagonal updater moves."""

RATES = {"gail": 1e-3, "coordinate": 1e-3, "block": 1e-4, "dense": 1e-6}
"""Adam's learning rate for θ_D, and for the updaters' θ_U: the wider, the smaller."""

SUITED = {"CartPole-v1": "survive", "MountainCar-v0": "finish"}
"""The sign of the rewards as Ho & Ermon (2016) chose it."""


@dataclass(frozen=True)
class Setting:
    """All that a run depends on, beside what was shown."""

    env: str
    method: str
    seed: int
    updater: str
    gradient_skip: float | None
    reward: str
    follower_lr: float | None
    follower_steps: int
    max_kl: float
    max_norm: float | None
    steps: int
    environments: int

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        updater = f"-{self.updater}" if self.method == "l2l-gail" else ""
        return f"{self.env}/{self.method}{updater}-{self.seed}"

    def env_seed(self, iteration: int) -> int:
        """Of the environments that begin at an iteration, which take this one and those after it.

        No two iterations share one, nor do two runs with seeds below 1,000.
        """
        return (1000 * iteration + self.seed) * self.environments

    @property
    def rate(self) -> float:
        """Adam's learning rate for the solver's parameters."""
        default = RATES[self.updater if self.method == "l2l-gail" else "gail"]
        return default if self.follower_lr is None else self.follower_lr


def suited(env: str) -> str:
    """The convention of the rewards that suits an environment."""
    return SUITED.get(env, "neutral")


def make_apprentice(setting: Setting, states: torch.Tensor, actions: torch.Tensor) -> Apprentice:
    """The players of a setting and what was shown to them, ready to play."""
    torch.manual_seed(setting.seed)
    envs = make_envs(setting.env, setting.environments)
    task = Task.of(envs)
    expert, scale = pairs(task, states, actions), Standardize(states)
    follower = Discriminator(
        task, reward=setting.reward, inputs=Standardize(expert), max_norm=setting.max_norm
    )
    leader = Imitator(task.policy(scale), Value(task.observations, inputs=scale), follower)
    game = make_game(setting, leader, follower)
    sampler = Sampler(envs, leader.policy, seed=setting.env_seed(0))
    return Apprentice(game, sampler, expert, steps=-(-setting.steps // setting.environments))


def make_game(setting: Setting, leader: Imitator, follower: Discriminator) -> Bilevel:
    """The game in the library's nouns."""
    leader_opt, adjoint = TRPO(leader.policy, max_kl=setting.max_kl), Detached()
    if setting.method == "constant":
        for parameter in follower.network[-1].parameters():
            nn.init.zeros_(parameter)
        still = Iterative(Gradient(1.0), 0)
        return Bilevel(leader, follower, still, leader_opt=leader_opt, adjoint=adjoint)
    if setting.method == "gail":
        solver = Parametric(follower.init(None))
        schedule = Alternating(setting.follower_steps, first="follower")
    else:
        solver = Iterative(make_updater(setting, follower.size), 1, warm_start=True)
        schedule = Simultaneous()
    # Fused: the dense updater's step takes a fifth of the time.
    solver_opt = torch.optim.Adam(solver.parameters(), setting.rate, fused=True)
    return Bilevel(
        leader,
        follower,
        solver,
        leader_opt=leader_opt,
        solver_opt=solver_opt,
        adjoint=adjoint,
        schedule=schedule,
    )


def make_updater(setting: Setting, size: int) -> Update:
    """The learned optimizer of θ_D; its last layer is zero, since a random one makes θ_D noise."""
    skip = setting.gradient_skip
    if setting.updater == "coordinate":
        return CoordinateMLP(gradient_skip=skip)
    updater = MLP(size, blocks=blocks(setting.updater, size), gradient_skip=skip)
    for parameter in updater.network[-1].parameters():
        nn.init.zeros_(parameter)
    return updater


def blocks(updater: str, size: int) -> int:
    """Into how many parts θ_D is cut."""
    return -(-size // BLOCK) if updater == "block" else 1


def memory(updater: str, size: int) -> int:
    """Bytes of an updater of θ_D of that size, with gradients and Adam's moments."""
    if updater == "coordinate":
        return 0
    return 4 * 4 * 52 * size**2 // blocks(updater, size)
