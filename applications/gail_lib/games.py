"""The imitation games: one leader, one follower, and three solvers.

gail        Parametric(θ_D), trained by Adam        Ho & Ermon (2016)
l2l-gail    Iterative(updater, 1, warm_start)       Algorithm 5 of Jiang et al. (2021)
constant    Iterative(updater, 0), D = ½            the control: an uninformative reward
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bilevel import Alternating, Bilevel, Detached, Iterative, Parametric, Simultaneous
from bilevel.imitation import (
    TRPO,
    Discriminator,
    Imitator,
    Sampler,
    Standardize,
    Task,
    Trainer,
    Value,
    make_envs,
    pairs,
)
from bilevel.updates import MLP, CoordinateMLP, Gradient, Update
from gail_lib.episodes import training_seed

BLOCK_SIZE = 16
"""Weights of D per network of the block-diagonal updater."""

LEARNING_RATES = {"gail": 1e-3, "coordinate": 1e-3, "block": 1e-4, "dense": 1e-6}
"""Adam's learning rates for θ_D (gail) and for the updaters' θ_U: the wider, the smaller."""

SUITED_REWARDS = {"CartPole-v1": "survive", "MountainCar-v0": "finish"}
"""The rewards that Ho & Ermon (2016) chose."""


@dataclass(frozen=True)
class Setting:
    """All that a run depends on, besides the demonstrations."""

    env: str
    method: str
    seed: int
    updater: str
    gradient_skip: float | None
    reward: str
    follower_lr: float | None
    follower_steps: int
    max_kl: float
    damping: float
    discount: float
    gae_lambda: float
    max_norm: float | None
    steps: int
    environments: int

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        updater = f"-{self.updater}" if self.method == "l2l-gail" else ""
        env = self.env.replace(":", "-")  # Windows has no : in names of files
        return f"{env}/{self.method}{updater}-{self.seed}"

    def env_seed(self, iteration: int) -> int:
        """Seed of the first environment after a reset; see :func:`training_seed`."""
        return training_seed(iteration, self.seed, self.environments)

    @property
    def lr(self) -> float:
        """Adam's learning rate for the solver's parameters."""
        default = LEARNING_RATES[self.updater if self.method == "l2l-gail" else "gail"]
        return default if self.follower_lr is None else self.follower_lr


def suited_reward(env: str) -> str:
    """The reward for ``--reward suited``."""
    return SUITED_REWARDS.get(env, "neutral")


def make_trainer(setting: Setting, states: torch.Tensor, actions: torch.Tensor) -> Trainer:
    """The training loop of a setting on the expert's state–action pairs."""
    torch.manual_seed(setting.seed)
    envs = make_envs(setting.env, setting.environments)
    task = Task.of(envs)
    steps, seed = -(-setting.steps // setting.environments), setting.env_seed(0)
    untrained = Sampler(envs, task.policy(), seed=seed).collect(steps)
    scale = Standardize(states, untrained.observations.flatten(0, 1))
    expert = pairs(task, states, actions)
    others = pairs(task, untrained.observations, untrained.actions)
    follower = Discriminator(
        task,
        reward=setting.reward,
        inputs=Standardize(expert, others),
        max_norm=setting.max_norm,
    )
    leader = Imitator(
        task.policy(scale),
        Value(task.observations, inputs=scale),
        follower,
        discount=setting.discount,
        gae_lambda=setting.gae_lambda,
    )
    game = make_game(setting, leader, follower)
    return Trainer(game, Sampler(envs, leader.policy, seed=seed), expert, steps=steps)


def make_game(setting: Setting, leader: Imitator, follower: Discriminator) -> Bilevel:
    """The game of a setting."""
    leader_opt = TRPO(leader.policy, max_kl=setting.max_kl, damping=setting.damping)
    adjoint = Detached()
    if setting.method in ("bc", "constant"):  # of bc only the policy is used
        for parameter in follower.network[-1].parameters():
            nn.init.zeros_(parameter)
        constant = Iterative(Gradient(1.0), 0)
        return Bilevel(leader, follower, constant, leader_opt=leader_opt, adjoint=adjoint)
    if setting.method == "gail":
        solver = Parametric(follower.init(None))
        schedule = Alternating(setting.follower_steps, first="follower")
    else:
        solver = Iterative(make_updater(setting, follower.size), 1, warm_start=True)
        schedule = Simultaneous()
    # Fused: takes a fifth of the time with the dense updater.
    solver_opt = torch.optim.Adam(solver.parameters(), setting.lr, fused=True)
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
    """The learned update of θ_D; its last layer starts at zero: a random one would add noise."""
    skip = setting.gradient_skip
    if setting.updater == "coordinate":
        return CoordinateMLP(gradient_skip=skip)
    updater = MLP(size, blocks=block_count(setting.updater, size), gradient_skip=skip)
    for parameter in updater.network[-1].parameters():
        nn.init.zeros_(parameter)
    return updater


def block_count(updater: str, size: int) -> int:
    """The number of blocks of θ_D."""
    return -(-size // BLOCK_SIZE) if updater == "block" else 1


def updater_bytes(updater: str, size: int) -> int:
    """Bytes of an updater of ``size`` weights, with gradients and Adam's moments."""
    if updater == "coordinate":
        return 0
    return 4 * 4 * 52 * size**2 // block_count(updater, size)
