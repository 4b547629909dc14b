"""Rollouts of a policy in vectorised environments."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.imitation.environments import Task
from bilevel.imitation.policies import Policy, check_untouched

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


Array = np.ndarray[Any, Any]


class Rollout(NamedTuple):
    """T steps of N environments.

    Attributes:
        observations: Before each step, ``(T, N, n)``.
        actions: As the policy sampled them, ``(T, N)`` discrete, ``(T, N, m)`` continuous.
        log_probs: Of the actions, under the policy that sampled them, ``(T, N)``.
        next_observations: After each step, before any reset, ``(T, N, n)``.
        rewards: The environment's, ``(T, N)``; an imitator does not use them.
        terminated: Whether the step reached a terminal state, ``(T, N)`` bool.
        ended: Whether the step ended the episode, terminated or truncated, ``(T, N)`` bool.
        returns: Undiscounted returns of the episodes that ended, in the order of their ends.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    next_observations: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    returns: Tensor


class _Played(NamedTuple):
    """What was played, as arrays of the shapes of a :class:`Rollout`, but T + 1 observations.

    ``last`` has the last observations of the episodes that ended, by the step.
    """

    observations: Array
    actions: Array
    rewards: Array
    terminated: Array
    ended: Array
    last: dict[int, Array]

    def next_observations(self) -> Array:
        """After each step, before any reset."""
        after = self.observations[1:].copy()
        for t, last in self.last.items():
            after[t, self.ended[t]] = last
        return after


class Sampler:
    """Collects rollouts of a policy; each call continues the episodes of the last one.

    Once another sampler has played in the same environments, those episodes cannot be continued:
    :meth:`restart` it, or give it environments of its own.

    Args:
        envs: As made by :func:`~bilevel.imitation.make_envs`.
        policy: Samples the actions; continuous ones are clipped to their range for the environment
            only.
        seed: Of the first environment, the others take the following ones; the policy is seeded
            from torch's generator.

    Raises:
        BilevelError: If the environments are not reset in the step in which an episode ends, or
            :meth:`Task.of` refuses their spaces.

    Example:
        >>> from bilevel.imitation import CategoricalPolicy, make_envs
        >>> sampler = Sampler(make_envs("CartPole-v1", 4), CategoricalPolicy(4, 2), seed=0)
        >>> sampler.collect(8).observations.shape
        torch.Size([8, 4, 4])
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], policy: Policy, *, seed: int = 0) -> None:
        from gymnasium.vector import AutoresetMode

        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise BilevelError(
                f"the environments' autoreset_mode is {mode}: resets would count as steps of "
                "the policy; use make_envs, or AutoresetMode.SAME_STEP"
            )
        self.envs = envs
        self.policy = policy
        task = Task.of(envs)
        self._name = task.env or "the environment"
        space: Any = envs.single_action_space
        self._range = None if task.discrete else (space.low, space.high)
        self.restart(seed)
        self._check_repeats(seed)

    def restart(self, seed: int) -> None:
        """Resets all environments.

        Args:
            seed: Of the first environment, the others take the following ones.
        """
        observation, _ = self.envs.reset(seed=seed)
        self._observation = observation.astype(np.float32)
        self._partial_returns = np.zeros(self.envs.num_envs)  # of the unfinished episodes
        self._mark = self._marked()

    def _marked(self) -> object:
        """A new mark, which the environments bear until any sampler moves them again."""
        envs: Any = self.envs.unwrapped  # which are copied and pickled together with the sampler
        envs._bilevel_mark = mark = object()
        return mark

    def _check_repeats(self, seed: int) -> None:
        """Warns if resets with one seed start differently: no run could be repeated or resumed."""
        once = self._observation
        self.restart(seed)
        if not np.array_equal(once, self._observation, equal_nan=True):
            warnings.warn(
                f"{self._name} starts otherwise if it is reset with the same seed again: it keeps "
                "statistics (NormalizeObservation), which each copy gathers for itself, or draws "
                "from a generator of its own, so that evaluations, demonstrations and resumed runs "
                "are those of another environment; give the policy Standardize(states) in the "
                "place of the wrapper, and draw by self.np_random",
                stacklevel=3,
            )

    def collect(self, steps: int) -> Rollout:
        """Steps all environments.

        Args:
            steps: T, in each environment.

        Returns:
            The rollout.

        Raises:
            BilevelError: If ``steps`` is not positive, another sampler has moved the environments
                since, the policy is not on the CPU in float32, changes its observations in place,
                its actions are not the environments' or it gives NaN, or an environment returns NaN
                or infinity, ends at each step, or ends an episode without ``final_obs``.
        """
        if steps < 1:
            raise BilevelError(f"steps is {steps}: there is nothing to play; give 1 or more")
        self._check_unmoved()
        self._check_policy()
        played = self._play(steps)
        returns = self._returns(played.rewards, played.ended)  # which the next rollout goes on with
        states = torch.from_numpy(played.observations[:-1])
        actions = torch.from_numpy(played.actions)
        read = states.flatten(0, 1).clone()
        with torch.no_grad():
            log_probs = self.policy(read).log_prob(actions.flatten(0, 1))
        rollout = Rollout(
            observations=states,
            actions=actions,
            log_probs=log_probs.unflatten(0, played.rewards.shape),
            next_observations=torch.from_numpy(played.next_observations()),
            rewards=torch.from_numpy(played.rewards),
            terminated=torch.from_numpy(played.terminated),
            ended=torch.from_numpy(played.ended),
            returns=returns,
        )
        self._check_policy_gave_numbers(rollout)
        self._check_finite("observations", played.observations, rollout.next_observations.numpy())
        check_untouched(states.flatten(0, 1), read)
        self._check_finite("rewards", played.rewards)
        self._check_episodes(played)
        return rollout

    def _play(self, steps: int) -> _Played:
        # A step of a vector environment takes 100 µs or less, so the loop does only what it must.
        observations = np.empty((steps + 1, *self._observation.shape), np.float32)
        rewards = np.empty((steps, self.envs.num_envs), np.float32)
        terminated, truncated = np.empty((2, *rewards.shape), bool)
        actions, last = [], {}
        observations[0] = self._observation
        actor = self.policy.actor()
        for t in range(steps):
            action = actor(observations[t])
            if t == 0:
                self._check_actions(action)
                mark = self._marked()  # its own only if no step fails
            observations[t + 1], rewards[t], terminated[t], truncated[t], info = self.envs.step(
                self._clip(action)
            )
            actions.append(action)
            if "final_obs" in info and (over := terminated[t] | truncated[t]).any():
                last[t] = np.stack(info["final_obs"][over])  # the array may be reused
        # Before any check: the environments have moved also where one fails.
        self._observation, self._mark = observations[-1], mark
        ended = terminated | truncated
        return _Played(observations, np.stack(actions), rewards, terminated, ended, last)

    def _clip(self, actions: Array) -> Array:
        """The actions as the environments receive them."""
        return actions if self._range is None else actions.clip(*self._range)

    def _returns(self, rewards: Array, ended: Array) -> Tensor:
        """Returns of the episodes that ended; rewards of the others count in the next rollout."""
        # Of a rollout that is refused: the returns of the next one would not be finite either.
        rewards = np.where(np.isfinite(rewards), rewards, 0.0)
        cumulative = self._partial_returns + rewards.cumsum(0, dtype=np.float64)
        before, returns = np.zeros_like(self._partial_returns), []  # before the current episode
        for t, env in np.argwhere(ended):
            returns.append(cumulative[t, env] - before[env])
            before[env] = cumulative[t, env]
        self._partial_returns = cumulative[-1] - before
        return torch.tensor(returns, dtype=torch.float32)

    def _check_unmoved(self) -> None:
        if getattr(self.envs.unwrapped, "_bilevel_mark", None) is not self._mark:
            raise BilevelError(
                "another sampler has moved the environments since, or a rollout was interrupted: "
                "they are no longer in the state that the last one ended in; call restart(seed), "
                "or give each sampler its own make_envs(…)"
            )

    def _check_policy(self) -> None:
        for name, tensor in self.policy.state_dict().items():
            kind = tensor.dtype, tensor.device.type
            if tensor.is_floating_point() and kind != (torch.float32, "cpu"):
                raise BilevelError(
                    f"the policy's {name} is {tensor.dtype} on {tensor.device}: rollouts "
                    "run on the CPU in float32; call policy.cpu().float()"
                )

    def _check_actions(self, actions: Array) -> None:
        shape = self.envs.action_space.shape
        if actions.shape != shape:  # numpy would stretch (N, 1) to (N, m) when it clips
            raise BilevelError(
                f"the policy's actions are {actions.shape}: {self._name} takes {shape}, one per "
                "environment; give the policy as many outputs as there are actions"
            )

    def _check_policy_gave_numbers(self, rollout: Rollout) -> None:
        """Where the observations are finite; elsewhere the environment is at fault."""
        finite = rollout.observations.isfinite().all(-1)
        given = ("actions", rollout.actions), ("log-probabilities", rollout.log_probs)
        for name, part in given:
            if part[finite].isnan().any():
                raise BilevelError(
                    f"the policy's {name} are NaN: its weights are, or its actions lie where their "
                    "density is infinite; check its weights, or keep what act returns off bounds"
                )

    def _check_finite(self, kind: str, *parts: Array) -> None:
        if not all(np.isfinite(part).all() for part in parts):
            raise BilevelError(
                f"{self._name} returned NaN or infinity in its {kind}: nothing can be learned from "
                "it; check the environment, or wrap it so that the episode ends before"
            )

    def _check_episodes(self, played: _Played) -> None:
        ended = played.ended
        if len(played.last) < ended.any(1).sum():
            raise BilevelError(
                f"{self._name} ended an episode without info['final_obs']: its last observation "
                "would be that of the reset; return it from step, as AutoresetMode.SAME_STEP has it"
            )
        if ended.size >= 20 and ended.all():  # fewer may by chance
            raise BilevelError(
                f"{self._name} ends at each step: there is no behaviour to learn, only a first "
                "action; check its termination and its time limit"
            )
