"""An expert's recorded episodes, and subsampling of their state–action pairs."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.environments import Task, make_envs
from bilevel.imitation.policies import Policy
from bilevel.imitation.rollouts import Sampler


class Demonstrations(NamedTuple):
    """Whole episodes of an expert, concatenated: E episodes of S steps in total.

    Attributes:
        env: The environment's name.
        observations: Before each step, ``(S, n)``.
        actions: ``(S,)`` discrete, ``(S, m)`` continuous, clipped as the environment received them.
        rewards: The environment's, ``(S,)``.
        lengths: Steps of each episode, ``(E,)``; their sum is S.
        last: The final observation of each episode, ``(E, n)``.
        terminated: Whether each episode terminated rather than being truncated, ``(E,)`` bool.
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
        """The undiscounted return of each episode.

        Returns:
            ``(E,)``.
        """
        return torch.stack([part.sum() for part in self.rewards.split(self.lengths.tolist())])

    def first(self, episodes: int) -> Demonstrations:
        """The first episodes.

        Args:
            episodes: How many.

        Returns:
            Those demonstrations.

        Raises:
            BilevelError: If there are fewer.
        """
        if not 1 <= episodes <= len(self.lengths):
            raise BilevelError(
                f"{episodes} demonstrations are requested and {len(self.lengths)} are there: "
                "record more, or request fewer"
            )
        steps = int(self.lengths[:episodes].sum())
        by_step = (part[:steps] for part in (self.observations, self.actions, self.rewards))
        by_episode = (part[:episodes] for part in (self.lengths, self.last, self.terminated))
        return Demonstrations._make((self.env, *by_step, *by_episode))

    def subsample(self, every: int = 1) -> tuple[Tensor, Tensor]:
        """Every k-th state–action pair of each episode, as in Ho & Ermon (2016).

        Args:
            every: k; in their code 5 for MountainCar and Acrobot, 10 for CartPole and 20 for the
                tasks of MuJoCo. 1 for all pairs.

        Returns:
            States and actions, from the first of each episode on.

        Raises:
            BilevelError: If k is not 1 or more.

        Example:
            >>> from bilevel.imitation import MountainCarExpert
            >>> episode = demonstrate("MountainCar-v0", MountainCarExpert(), 1, seed=0)
            >>> len(episode.observations), len(episode.subsample(20)[0])
            (122, 7)
        """
        if every < 1:
            raise BilevelError(f"every is {every}: every k-th pair is kept; give 1 or more")
        time = torch.cat([torch.arange(length) for length in self.lengths.tolist()])
        kept = time % every == 0
        return self.observations[kept], self.actions[kept]


def demonstrate(
    env: str, expert: Policy, episodes: int, *, seed: int = 0, max_steps: int = 10_000
) -> Demonstrations:
    """Records whole episodes of an expert.

    Args:
        env: The environment's name.
        expert: The expert's policy.
        episodes: Number of episodes.
        seed: Seed of the environments.
        max_steps: Maximum length of an episode.

    Returns:
        The first episode of each of ``episodes`` environments, so that short episodes are not
        over-represented.

    Raises:
        BilevelError: If there is no such environment, it returns NaN or infinity, ``episodes`` is
            not positive, or an episode does not end.
    """
    if episodes < 1:
        raise BilevelError(f"episodes is {episodes}: there is nothing to imitate; give 1 or more")
    with closing(make_envs(env, episodes)) as envs:
        sampler = Sampler(envs, expert, seed=seed)
        parts = [sampler.collect(1)]
        while not torch.cat([part.ended for part in parts]).any(0).all():
            played = sum(len(part.ended) for part in parts)
            if played >= max_steps:
                raise BilevelError(
                    f"an episode of {env} is not over after {max_steps} steps: only whole episodes "
                    "are recorded; give it a shorter time limit (gymnasium.register's "
                    "max_episode_steps, or TimeLimit), or raise max_steps"
                )
            parts.append(sampler.collect(min(50, max_steps - played)))
        names = ("observations", "actions", "rewards", "next_observations", "terminated", "ended")
        columns = [torch.cat([getattr(part, name) for part in parts]) for name in names]
        columns[1] = Task.of(envs).clip(columns[1])
    lengths = columns.pop().int().argmax(0) + 1
    last, terminated = (part[lengths - 1, torch.arange(episodes)] for part in columns[3:])
    by_step = (
        torch.cat([part[:length, index] for index, length in enumerate(lengths.tolist())])
        for part in columns[:3]
    )
    return Demonstrations._make((env, *by_step, lengths, last, terminated))
