"""What an expert did: whole episodes, and the pairs of them that are shown."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.environments import Task, make_envs
from bilevel.imitation.policies import Policy
from bilevel.imitation.rollouts import Sampler


class Demonstrations(NamedTuple):
    """Whole episodes of an expert, one after the other: E episodes of S steps in all.

    Attributes:
        env: The environment's name.
        observations: Before each step, ``(S, n)``.
        actions: ``(S,)`` discrete, ``(S, m)`` continuous; as the environment took them.
        rewards: The environment's own, ``(S,)``.
        lengths: Of the episodes, ``(E,)``; they add up to S.
        last: What was seen after the last step of each, ``(E, n)``.
        terminated: Whether the task was over then, or only the time, ``(E,)`` bool.
    """

    env: str
    observations: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor
    last: Tensor
    terminated: Tensor

    @property
    def returns(self) -> Tensor:
        """Sums of the rewards.

        Returns:
            Of each episode, ``(E,)``.
        """
        return torch.stack([part.sum() for part in self.rewards.split(self.lengths.tolist())])

    def first(self, episodes: int) -> Demonstrations:
        """The first episodes only.

        Args:
            episodes: How many.

        Returns:
            Fewer demonstrations.

        Raises:
            BilevelError: If there are not so many.
        """
        if not 1 <= episodes <= len(self.lengths):
            raise BilevelError(
                f"{episodes} demonstrations are asked for and {len(self.lengths)} are there: "
                "record more, or ask for fewer"
            )
        steps = int(self.lengths[:episodes].sum())
        by_step = (part[:steps] for part in (self.observations, self.actions, self.rewards))
        by_episode = (part[:episodes] for part in (self.lengths, self.last, self.terminated))
        return Demonstrations._make((self.env, *by_step, *by_episode))

    def shown(self, every: int = 1) -> tuple[Tensor, Tensor]:
        """Every k-th pair of each episode, as Ho & Ermon (2016) subsample theirs.

        Args:
            every: k, 20 in their work; 1 shows all.

        Returns:
            States and actions; the first of each episode is among them.

        Raises:
            BilevelError: If k is not 1 or more.

        Example:
            >>> from bilevel.imitation import MountainCarExpert
            >>> episode = demonstrate("MountainCar-v0", MountainCarExpert(), 1, seed=0)
            >>> len(episode.observations), len(episode.shown(20)[0])
            (122, 7)
        """
        if every < 1:
            raise BilevelError(f"every {every}th pair is no choice: give 1 or more")
        place = torch.cat([torch.arange(length) for length in self.lengths.tolist()])
        kept = place % every == 0
        return self.observations[kept], self.actions[kept]


def demonstrate(
    env: str, expert: Policy, episodes: int, *, seed: int = 0, max_steps: int = 10_000
) -> Demonstrations:
    """Lets an expert play whole episodes.

    Args:
        env: The environment's name.
        expert: Who plays.
        episodes: How many.
        seed: Of the environments.
        max_steps: How long an episode may be.

    Returns:
        The first episode of as many environments, so that short ones are no likelier to be recorded
        than long ones.

    Raises:
        BilevelError: If there is no such environment, no episode is asked for, or one does not end.
    """
    if episodes < 1:
        raise BilevelError(f"episodes is {episodes}: there is nothing to imitate; give 1 or more")
    envs = make_envs(env, episodes)
    sampler = Sampler(envs, expert, seed=seed)
    parts = [sampler.collect(1)]
    while not torch.cat([part.ended for part in parts]).any(0).all():
        if sum(len(part.ended) for part in parts) >= max_steps:
            raise BilevelError(
                f"an episode of {env} is not over after {max_steps} steps: only whole ones are "
                "shown; give it a time limit of so many or fewer (gymnasium.register's "
                "max_episode_steps, or TimeLimit), or allow more max_steps"
            )
        parts.append(sampler.collect(50))
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "ended")
    columns = [torch.cat([getattr(part, name) for part in parts]) for name in names]
    columns[1] = Task.of(envs).clip(columns[1])
    lengths = columns.pop().int().argmax(0) + 1
    numbers = torch.arange(episodes)
    after, terminated = (part[lengths - 1, numbers] for part in columns[3:])
    by_step = (
        torch.cat([part[:length, number] for number, length in enumerate(lengths.tolist())])
        for part in columns[:3]
    )
    return Demonstrations._make((env, *by_step, lengths, after, terminated))
