"""Times GAIL of HumanCompatibleAI's ``imitation``; run by a Python that has this package.

    python -m venv other && other/bin/pip install imitation "sb3-contrib<2.3"
    other/bin/python imitation_gail.py ENV DEMONSTRATIONS.npz STEPS ITERATIONS

It pins gymnasium 0.29, so it needs an environment of its own, and this script does not use bilevel.
"""

import json
import sys
import tempfile
import time

import numpy as np
import torch
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data.types import Transitions
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util.logger import configure
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env

ENVIRONMENTS = 16


def transitions(path: str) -> Transitions:
    """All pairs of the demonstrations; GAIL reads states and actions only."""
    with np.load(path) as file:
        states, actions = file["observations"], file["actions"]
    dones = np.zeros(len(states), bool)
    return Transitions(states, actions, np.array([{}] * len(states)), states, dones)


def main() -> None:
    """Trains, and prints the seconds of each iteration as JSON."""
    env, path, steps, iterations = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    # Of whole rounds of all environments: else an iteration begins a second rollout for the rest.
    steps = ENVIRONMENTS * -(-steps // ENVIRONMENTS)
    envs = make_vec_env(env, ENVIRONMENTS, seed=0)
    learner = TRPO(
        "MlpPolicy",
        envs,
        n_steps=steps // ENVIRONMENTS,
        batch_size=256,
        n_critic_updates=3,
        gae_lambda=0.98,
        policy_kwargs={"net_arch": {"pi": [32, 32], "vf": [64, 64]}},
        seed=0,
        device="cpu",
    )
    demonstrations = transitions(path)
    trainer = GAIL(
        demonstrations=demonstrations,
        demo_batch_size=min(1024, len(demonstrations)),
        gen_train_timesteps=steps,
        n_disc_updates_per_round=5,
        venv=envs,
        gen_algo=learner,
        reward_net=BasicRewardNet(
            envs.observation_space, envs.action_space, hid_sizes=(64, 32), activation=torch.nn.Tanh
        ),
        allow_variable_horizon=True,
        custom_logger=configure(tempfile.mkdtemp(), ()),
    )
    seconds = []
    for _ in range(iterations):
        begun = time.perf_counter()
        trainer.train(steps)
        seconds.append(time.perf_counter() - begun)
    assert learner.num_timesteps == iterations * steps
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
