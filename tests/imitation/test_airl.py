"""The discriminator of docs/imitation.md that compares with the policy's probabilities."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F

from bilevel import Alternating, Bilevel, Detached, Parametric
from bilevel.imitation import (
    TRPO,
    Discriminator,
    ImitationBatch,
    Imitator,
    MountainCarExpert,
    Sampler,
    Task,
    Trainer,
    Value,
    demonstrate,
    make_envs,
    pairs,
)

PAGE = Path(__file__).parents[2] / "docs" / "imitation.md"
ENV = "MountainCar-v0"


def make() -> Trainer:
    """The page's class in a game; its network starts at f = 0."""
    torch.manual_seed(0)
    names: dict[str, type[Discriminator]] = {}
    (code,) = re.findall(r"```python\n((?:(?!```).)*class AIRL.*?)```", PAGE.read_text(), re.DOTALL)
    exec(code, names)
    envs = make_envs(ENV, 4)
    task, shown = Task.of(envs), demonstrate(ENV, MountainCarExpert(), 2)
    follower = names["AIRL"](task, reward="neutral")
    torch.nn.init.zeros_(follower.network[-1].weight)
    leader, solver = Imitator(task.policy(), Value(2), follower), Parametric(follower.network)
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=TRPO(leader.policy),
        solver_opt=torch.optim.Adam(solver.parameters(), lr=1e-2),
        adjoint=Detached(),
        schedule=Alternating(50, first="follower"),
    )
    expert = pairs(task, *shown.subsample())
    return Trainer(game, Sampler(envs, leader.policy, seed=1), expert, steps=100)


def test_with_a_constant_network_the_policy_is_its_own_discriminator() -> None:
    trainer = make()
    leader, follower = trainer.leader, trainer.leader.follower
    batch = ImitationBatch(trainer.sampler.collect(50), trainer.expert)
    y = follower.init(batch)
    rollout, states = batch.rollout, trainer.expert[:, :2]
    shown = leader.policy(states).log_prob(MountainCarExpert().act(states))
    expected = F.logsigmoid(rollout.log_probs).mean() + F.logsigmoid(-shown).mean()
    torch.testing.assert_close(follower.objective(leader, y, batch), expected)
    torch.testing.assert_close(follower.reward(y, rollout), -rollout.log_probs)


def test_it_rewards_what_the_expert_does() -> None:
    trainer = make()
    told = trainer.iterate()
    assert told["objective"] > -1.2  # 2 log ½ where D is undecided
    follower, y = trainer.leader.follower, trainer.leader.discriminator_weights
    states = trainer.expert[:, :2]
    right = follower.logits(y, trainer.expert).mean()  # −f
    wrong = 2 - MountainCarExpert().act(states)
    assert right < follower.logits(y, pairs(follower.task, states, wrong)).mean() - 0.5
    assert 0 < told["kl"] <= 0.01
