"""TRPO of sb3-contrib, with our settings where it has them."""

from __future__ import annotations

import math
import time
from typing import Any

ENVIRONMENTS = 16


def train(env: str, seed: int, iterations: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of training, and the mean return of each iteration, NaN if no episode ended in it."""
    from sb3_contrib import TRPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Returns(BaseCallback):
        """Records the returns of the episodes that end in each rollout."""

        def __init__(self) -> None:
            super().__init__()
            self.rollouts: list[list[float]] = []

        def _on_rollout_start(self) -> None:
            self.rollouts.append([])

        def _on_step(self) -> bool:
            infos: list[dict[str, Any]] = self.locals["infos"]
            self.rollouts[-1] += [info["episode"]["r"] for info in infos if "episode" in info]
            return True

    learner = TRPO(
        "MlpPolicy",
        make_vec_env(env, ENVIRONMENTS, seed=1000 * seed),
        n_steps=-(-steps // ENVIRONMENTS),
        batch_size=256,
        n_critic_updates=3,
        cg_max_steps=10,
        cg_damping=0.01,
        gae_lambda=0.98,
        target_kl=0.01,
        policy_kwargs={"net_arch": {"pi": [32, 32], "vf": [64, 64]}},
        seed=seed,
        device="cpu",
    )
    returns = Returns()
    begun = time.perf_counter()
    learner.learn(iterations * ENVIRONMENTS * -(-steps // ENVIRONMENTS), callback=returns)
    seconds = time.perf_counter() - begun
    return seconds, [sum(one) / len(one) if one else math.nan for one in returns.rollouts]
