r"""
Imitate an expert
=================

A policy learns from an expert's episodes, without rewards. A discriminator learns to tell the two
apart, and the policy is rewarded for being mistaken for the expert: generative adversarial
imitation learning (GAIL, Ho & Ermon, 2016), eq. 9 of Jiang et al. (2021). The policy is updated by
TRPO, not by a gradient step; the discriminator is a follower whose variable is the weights of a
network. Replacing the discriminator's optimizer by a learned one changes one line.
"""

# %%
# The expert
# ----------
#
# MountainCar's expert is a script that pushes in the direction of the velocity. The policy learns
# from ten of its episodes.

import matplotlib.pyplot as plt
import torch

import bilevel
from bilevel import imitation, updates

torch.manual_seed(0)
torch.set_num_threads(1)
env = "MountainCar-v0"
demonstrations = imitation.demonstrate(env, imitation.MountainCarExpert(), episodes=10)
states, actions = demonstrations.subsample()
print(f"{len(states)} pairs of an expert with mean return {demonstrations.returns.mean():.1f}")

# %%
# Leader and follower
# -------------------
#
# The follower defines the rewards, and their sign matters: with ``"finish"`` every step has a
# negative reward, so short episodes are best. That is the environment's own reward, so a
# discriminator that has learned nothing would teach it too; with ``"neutral"`` such a discriminator
# gives no reward. :class:`~bilevel.imitation.Standardize` brings position and velocity to the same
# scale; without it nothing is learned in a hundred iterations. Both sides count in it, the expert
# and a policy that has learned nothing: what either sees is near zero then.


def make_trainer(updater=None):
    """GAIL, or with an updater L2L-GAIL."""
    envs = imitation.make_envs(env, 16)
    task = imitation.Task.of(envs)
    untrained = imitation.Sampler(envs, task.policy(), seed=0).collect(313)
    scale = imitation.Standardize(states, untrained.observations.flatten(0, 1))
    expert = imitation.pairs(task, states, actions)
    others = imitation.pairs(task, untrained.observations, untrained.actions)
    inputs = imitation.Standardize(expert, others)
    follower = imitation.Discriminator(task, reward="neutral", inputs=inputs)
    value = imitation.Value(task.observations, inputs=scale)
    leader = imitation.Imitator(task.policy(scale), value, follower)
    if updater is None:  # the weights are parameters, trained by five steps of Adam per step
        solver = bilevel.Parametric(follower.init(None))
        schedule = bilevel.Alternating(5, first="follower")
    else:  # the weights are the updater's answer, which warm-starts its next step
        solver = bilevel.Iterative(updater, steps=1, warm_start=True)
        schedule = bilevel.Simultaneous()
    game = bilevel.Bilevel(
        leader,
        follower,
        solver,
        leader_opt=imitation.TRPO(leader.policy),
        solver_opt=torch.optim.Adam(solver.parameters(), lr=1e-3),
        adjoint=bilevel.Detached(),
        schedule=schedule,
    )
    sampler = imitation.Sampler(envs, leader.policy, seed=0)
    return imitation.Trainer(game, sampler, expert, steps=313)


# %%
# Train
# -----
#
# An iteration is a rollout of 5,000 steps, a step of the game, and a fit of the value function. The
# learned updater is one network with 708 parameters that is applied to each of the discriminator's
# weights separately; it starts as a gradient step.

figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
axes.axhline(demonstrations.returns.mean(), color="gray", linestyle="--", label="expert")
for name, updater in (("GAIL", None), ("L2L-GAIL", updates.CoordinateMLP(gradient_skip=0.1))):
    trainer = make_trainer(updater)
    curve = [trainer.iterate()["return"] for _ in range(30)]
    axes.plot(curve, label=name)
axes.set(xlabel="iteration", ylabel="return", title="MountainCar, no reward seen")
axes.legend()
plt.show()

# %%
# What it learned
# ---------------
#
# The policy pushes right where the car moves right, as the expert does: the colour is the
# probability of pushing right minus that of pushing left.

position, velocity = torch.meshgrid(
    torch.linspace(-1.2, 0.6, 60), torch.linspace(-0.07, 0.07, 60), indexing="xy"
)
with torch.no_grad():
    grid = torch.stack([position, velocity], -1).flatten(0, 1)
    probs = trainer.leader.policy(grid).probs.view(60, 60, 3)
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
mesh = axes.pcolormesh(
    position, velocity, probs[..., 2] - probs[..., 0], cmap="RdBu", vmin=-1, vmax=1
)
axes.scatter(*states[::20].T, s=4, color="black", label="states of the expert")
axes.set(xlabel="position", ylabel="velocity")
axes.legend(loc="lower left")
figure.colorbar(mesh, label="right − left")
plt.show()

# %%
# From here
# ---------
#
# ``applications/gail.py`` does this for any environment with vector observations, with checkpoints
# and controls: :doc:`/imitation`.
