"""The training loop of an imitation game: rollout, step of the game, fit of the value function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel.errors import BilevelError
from bilevel.game import Bilevel
from bilevel.imitation.discriminator import ImitationBatch
from bilevel.imitation.imitator import Imitator
from bilevel.imitation.rollouts import Sampler
from bilevel.imitation.trpo import TRPO
from bilevel.tree import ravel


class Trainer:
    """Trains an imitation game iteration by iteration (Algorithm 5 of Jiang et al., 2021).

    Args:
        game: An :class:`Imitator` optimised by :class:`TRPO` against a :class:`Discriminator`,
            with any solver of the discriminator's weights. Schedules that extrapolate move the
            policy further than the trust region, of which the metric ``kl`` knows nothing: take
            :class:`~bilevel.Simultaneous` or :class:`~bilevel.Alternating`.
        sampler: Collects rollouts of the imitator's policy.
        expert: The expert's state–action pairs, ``(E, n + m)``, see :func:`pairs`; what a
            discriminator of your own compares, ``(E, width)``.
        steps: Steps of each environment per iteration.
        value_lr: Adam's learning rate for the value function.

    Attributes:
        iteration: Number of completed iterations.

    Raises:
        BilevelError: If the leader is not an imitator optimised by TRPO, the expert's pairs do not
            fit its task, or the sampler's policy or the game's follower is not the imitator's.
    """

    def __init__(
        self,
        game: Bilevel,
        sampler: Sampler,
        expert: Tensor,
        *,
        steps: int,
        value_lr: float = 1e-3,
    ) -> None:
        if not (isinstance(game.leader, Imitator) and isinstance(game.leader_opt, TRPO)):
            raise BilevelError(
                f"the game's leader is {type(game.leader).__name__}, moved by "
                f"{type(game.leader_opt).__name__}: this trainer is for an Imitator moved by TRPO; "
                "play other games with their own step"
            )
        task, width = game.leader.follower.task, game.leader.follower.width
        if expert.shape[1:] != (width,) or not len(expert) or expert.dtype != torch.float32:
            raise BilevelError(
                f"the expert's pairs are {tuple(expert.shape)} {expert.dtype}: in {task.env} they "
                f"are (E, {width}) of torch.float32, one or more; make them with pairs(task, "
                "observations, actions), or as the follower's own pairs does"
            )
        if sampler.policy is not game.leader.policy or game.follower is not game.leader.follower:
            raise BilevelError(
                "the sampler plays another policy than the leader's, or the game has another "
                "follower: what is played would not be what is trained; pass the same objects, "
                "Sampler(envs, leader.policy) and Bilevel(leader, leader.follower, …)"
            )
        self.game = game
        self.leader = game.leader
        self.leader_opt = game.leader_opt
        self.sampler = sampler
        self.expert = expert
        self.steps = steps
        self.value_opt = torch.optim.Adam(self.leader.value.parameters(), lr=value_lr, fused=True)
        self.iteration = 0

    def iterate(self) -> dict[str, float]:
        """One iteration: collects a rollout, steps the game on it, and fits the value function.

        Returns:
            ``return`` (mean over the episodes that ended; NaN if none did), ``episodes``, the
            ``objective``, ``accuracy`` and ``norm`` ‖θ_D‖ of the discriminator that rewarded the
            policy, the policy's ``kl``, and the value function's ``explained_variance``.
        """
        batch = ImitationBatch(self.sampler.collect(self.steps), self.expert)
        rollout, follower = batch.rollout, self.leader.follower
        self.game.step(batch)
        self.iteration += 1
        y = self.leader.discriminator_weights
        explained_variance = self.leader.value.fit(
            self.value_opt, rollout.observations.flatten(0, 1), self.leader.returns.flatten()
        )
        with self.leader.discriminator_state.restored():
            objective = follower.objective(self.leader, y, batch)  # a penalty may need its gradient
            accuracy = follower.accuracy(y, batch)
        return {
            "return": rollout.returns.mean().item(),  # NaN if no episode ended
            "episodes": float(len(rollout.returns)),
            "objective": objective.item(),
            "accuracy": accuracy.item(),
            "norm": ravel(y).norm().item(),
            "kl": self.leader_opt.last.kl,
            "explained_variance": explained_variance.item(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of everything but the environments, which :meth:`Sampler.restart` resets.

        Returns:
            Tensors and plain values, for ``torch.save`` and ``torch.load(weights_only=True)``.
        """
        return {
            "game": self.game.state_dict(),
            "value_opt": self.value_opt.state_dict(),
            "iteration": self.iteration,
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a :meth:`state_dict`, including the state of torch's random generator.

        Args:
            state: The state; if a part is missing or the game is another, all stays as it was.

        Raises:
            BilevelError: If it belongs to another game, or to none.
        """
        for name in self.state_dict():
            if name not in state:
                raise BilevelError(
                    f"the state has no {name!r}: it is not that of an imitation trainer; give what "
                    "its state_dict() returned"
                )
        self.game.load_state_dict(state["game"])
        self.value_opt.load_state_dict(state["value_opt"])
        self.iteration = state["iteration"]
        torch.set_rng_state(state["random"])
