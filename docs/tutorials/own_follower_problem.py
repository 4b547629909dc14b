r"""
Your own ``FollowerProblem``
============================

This adversary perturbs the *points* of a data set, not pixels: each point of a two-dimensional
classification problem may move by at most :math:`\varepsilon` in Euclidean distance, but not along
the forbidden direction :math:`n`. The threat model takes fifteen lines, and then works with every
solver and schedule.

.. math::

    \min_\theta \; \max_{\|\delta_i\|_2 \le \varepsilon,\; \delta_i \perp n}
    \; \frac1n \sum_i \ell\bigl(f_\theta(x_i + \delta_i), y_i\bigr)
"""

# %%
# The data
# --------
#
# Two half-moons. A batch is any object that your own methods understand, here a named tuple.

import textwrap
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import make_moons
from torch import Tensor, nn

import bilevel

torch.manual_seed(0)


class Points(NamedTuple):
    x: Tensor  # (B, 2)
    y: Tensor  # (B,)


def moons(count: int, seed: int) -> Points:
    x, y = make_moons(count, noise=0.1, random_state=seed)
    return Points(torch.tensor(x, dtype=torch.float32), torch.tensor(y))


train, test = moons(512, seed=0), moons(512, seed=1)

# %%
# The follower
# ------------
#
# ``sense`` says whether the follower minimises or maximises. ``init`` returns the starting point,
# ``objective`` one value *per sample* (hence ``reduction="none"``), and ``project`` the nearest
# feasible point. ``context`` is optional: a learned update may read it besides the gradient.


class Shift(bilevel.FollowerProblem):
    """Points move by at most eps, and not along ``normal``."""

    sense = "max"

    def __init__(self, eps: float, normal: Tensor) -> None:
        self.eps = eps
        self.normal = F.normalize(normal, dim=0)

    def init(self, batch: Points) -> Tensor:
        return torch.zeros_like(batch.x)

    def context(self, delta: Tensor, batch: Points) -> Tensor:
        return batch.x + delta

    def objective(self, leader, delta: Tensor, batch: Points) -> Tensor:
        return F.cross_entropy(leader.model(batch.x + delta), batch.y, reduction="none")

    def project(self, delta: Tensor, batch: Points) -> Tensor:
        delta = delta - (delta @ self.normal)[:, None] * self.normal
        norm = delta.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return delta * (self.eps / norm).clamp(max=1)


follower = Shift(eps=0.35, normal=torch.tensor([1.0, 0.3]))

# %%
# Check it
# --------
#
# Before training, let the library check what it relies on: that the starting point is feasible,
# that ``project`` is idempotent, that a sample's value depends on its own y only, and more. It
# prints nothing if all checks pass.


def classifier() -> nn.Module:
    hidden = [nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(64, 2))


bilevel.testing.check_follower(follower, bilevel.ZeroSum(classifier(), follower), train)

# %%
# An error names the mistake. This objective averages over the batch, so each sample's value depends
# on all samples:


class Careless(Shift):
    def objective(self, leader, delta: Tensor, batch: Points) -> Tensor:
        return super().objective(leader, delta, batch).mean().expand(len(delta))


try:
    bilevel.testing.check_follower(
        Careless(0.35, follower.normal), bilevel.ZeroSum(classifier(), follower), train
    )
except AssertionError as error:
    print(textwrap.fill(str(error), 80))

# %%
# Solve it with hand-designed steps
# ---------------------------------
#
# The normalised gradient is the direction of steepest ascent in the Euclidean norm. A solver is a
# step rule and a number of steps; the projection belongs to the follower.

pgm = bilevel.Iterative(bilevel.updates.NormalizedGradient(step=0.1), steps=10)

model = classifier()
leader = bilevel.ZeroSum(model, follower)
solution = pgm.solve(follower, leader, train)
print({name: round(value.item(), 3) for name, value in solution.stats.items()})

# %%
# Train against it
# ----------------
#
# The leader minimises what the follower maximises, so this is a zero-sum game. ``step`` solves the
# follower's problem, then moves the leader, without synchronising with the device.


def play(solver: bilevel.Solver, steps: int = 300) -> nn.Module:
    """Trains a new classifier against ``solver``."""
    torch.manual_seed(0)
    model = classifier()
    leader = bilevel.ZeroSum(model, follower)
    learned = list(solver.parameters())
    game = bilevel.Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.Adam(leader.parameters(), lr=1e-2),
        solver_opt=torch.optim.Adam(learned, lr=1e-2) if learned else None,
    )
    log = bilevel.MetricLog()
    for _ in range(steps):
        log.add(game.step(train))
    print(*(f"{name} {value:.3f}" for name, value in log.means().items()), sep=", ")
    return model


no_follower = bilevel.Iterative(bilevel.updates.NormalizedGradient(step=0.1), steps=0)
models = {"no follower": play(no_follower), "ten gradient steps": play(pgm)}

# %%
# Learn the solver
# ----------------
#
# Now one line changes: the step rule is a network, trained by the same backward pass that trains
# the classifier. An :class:`~bilevel.updates.Update` takes ``(y, gradient, context, state)`` and
# returns the new y and the new state. The sign of the gradient is such that a step along it
# improves the follower's objective. Its scale differs between samples, so a learned update
# normalises it.


class Attacker(bilevel.Update):
    """Maps a point and the direction of its gradient to a shift."""

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, delta, gradient, context, state):
        direction = bilevel.updates.unit_norm(gradient, 2)
        proposal = self.network(torch.cat([context, direction], dim=1))
        return delta + self.reach * torch.tanh(proposal), state


bilevel.testing.check_update(Attacker(0.35), train.x * 0, context=train.x)
learned = bilevel.Iterative(Attacker(reach=0.35), steps=2)
models["two learned steps"] = play(learned)

# %%
# Evaluate it
# -----------
#
# Never use the attack of training for evaluation. Fifty small hand-designed steps are stronger than
# either follower was in training.

strong = bilevel.Iterative(bilevel.updates.NormalizedGradient(step=0.02), steps=50)


def accuracy(model: nn.Module, delta: Tensor) -> float:
    return (model(test.x + delta).argmax(1) == test.y).float().mean().item()


for name, model in models.items():
    attacked = strong.solve(follower, bilevel.ZeroSum(model, follower), test)
    clean, robust = accuracy(model, 0 * test.x), accuracy(model, attacked.value)
    print(f"{name:20} clean {clean:.3f}   attacked {robust:.3f}")

# %%
# The decision boundaries show the same: trained against a follower, the classifier keeps a margin
# along the direction in which points may move.

figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
grid = torch.cartesian_prod(torch.linspace(-1.5, 2.5, 200), torch.linspace(-1.1, 1.6, 200))
for axis, (name, model) in zip(axes, models.items(), strict=True):
    with torch.no_grad():
        score = model(grid).softmax(1)[:, 1].reshape(200, 200).T
    axis.contourf(score, levels=20, cmap="RdBu_r", extent=(-1.5, 2.5, -1.1, 1.6), alpha=0.7)
    axis.scatter(*test.x.T, c=test.y, cmap="RdBu_r", s=6, edgecolors="k", linewidths=0.2)
    axis.set_title(name)

# %%
# Next: :doc:`/choose` helps to choose a solver and a schedule, and
# ``applications/adv_training.py`` does the same on images.
