r"""
Learn an optimizer
==================

Instead of choosing between SGD and Adam and tuning a learning rate, learn the step rule: a small
recurrent network :math:`g_\varphi` reads the gradient of each weight and proposes its change
(Andrychowicz et al., 2016). It is trained on many short runs, so that their last loss is small:

.. math::

    \min_\varphi \; \mathbb{E}_{\text{task}} \; q(y_K) \qquad \text{where} \qquad
    y_{k+1} = y_k + g_\varphi(-\nabla q(y_k)), \quad k = 0, \dots, K - 1

and then it trains networks of the same kind in an ordinary loop, as an optimizer of torch does.
"""

# %%
# The tasks
# ---------
#
# A task is a new subset of scikit-learn's digits whose classes are renamed at random, and a network
# with new weights. No two are alike, so that what is learned is how to descend, not a solution.

from collections.abc import Callable, Iterable
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

import bilevel
from bilevel.updates import CoordinateRNN, LearnedOptimizer

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)


def task() -> tuple[Tensor, Tensor]:
    chosen = torch.randperm(len(images))[:256]
    return images[chosen], torch.randperm(10)[labels[chosen]]


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


# %%
# The follower: a network's weights
# ---------------------------------
#
# The follower's variable is a dict of weights. ``functional_call`` evaluates the network with them.


class Fit(bilevel.FollowerProblem):
    """min over the weights of the cross entropy."""

    sense = "min"

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build, self.network = build, build()

    def init(self, batch):
        return {name: weight.detach() for name, weight in self.build().named_parameters()}

    def objective(self, leader, weights, batch):
        x, y = batch
        return F.cross_entropy(functional_call(self.network, weights, x), y)


# %%
# Learn the step rule
# -------------------
#
# :class:`~bilevel.updates.CoordinateRNN` is one recurrent network for all weights, with a memory
# for each. ``gradient_skip`` lets it begin as gradient descent, ``scale`` bounds a step. A solver
# applies it twenty times, and the game trains it through all of them. There is no leader to train.

fit = Fit(small)
update = CoordinateRNN(scale=0.05, gradient_skip=0.1)
solver = bilevel.Iterative(update, steps=20)
game = bilevel.Bilevel(
    bilevel.ZeroSum(nn.Identity(), fit),
    fit,
    solver,
    leader_opt=None,
    solver_opt=torch.optim.Adam(solver.parameters(), lr=3e-3),
)
log = bilevel.MetricLog()
for step in range(1, 201):
    log.add(game.step(task()))
    if step % 40 == 0:
        print(f"{step} tasks: loss after 20 steps {log.means()['objective_after']:.3f}")

# %%
# Use it as an optimizer
# ----------------------
#
# :class:`~bilevel.updates.LearnedOptimizer` is a ``torch.optim.Optimizer``. On five new tasks it is
# compared with Adam and with SGD, each at the best of four learning rates *for these tasks*, an
# advantage that the learned rule does not have. Its own learning rate is the part of each proposed
# step that is taken, so that torch's schedules apply to it.

Build = Callable[[], nn.Module]
Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def losses(make: Make, build: Build, factor=lambda step: 1.0) -> Tensor:
    """The loss before each of 80 steps, in the mean over five tasks."""
    curves = torch.zeros(5, 80)
    for seed, curve in enumerate(curves):
        torch.manual_seed(100 + seed)
        (x, y), network = task(), build()
        optimizer = make(network.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        for step in range(len(curve)):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            curve[step] = loss.item()
    return curves.mean(0)


def best(make: Callable[..., torch.optim.Optimizer], build: Build) -> Tensor:
    """The curve of the learning rate with the least loss after 20 steps."""
    rates = 0.03, 0.1, 0.3, 1.0
    curves = [losses(lambda p, rate=rate: make(p, lr=rate), build) for rate in rates]
    return min(curves, key=lambda curve: curve[20].nan_to_num(torch.inf).item())


def learned(parameters: Iterable[nn.Parameter]) -> LearnedOptimizer:
    return LearnedOptimizer(parameters, update)


def falling(step: int) -> float:
    return min(1, 20 / (step + 1))


def compare(axis: plt.Axes, build: Build) -> None:
    curves = {
        "learned": losses(learned, build),
        "learned, smaller steps after 20": losses(learned, build, falling),
        "Adam": best(torch.optim.Adam, build),
        "SGD with momentum": best(partial(torch.optim.SGD, momentum=0.9), build),
    }
    for name, curve in curves.items():
        axis.semilogy(curve, label=name)
        print(f"{build.__name__:6} {name:32} {curve[20]:.3f} after 20 steps")
    axis.axvline(20, color="grey", linewidth=0.8, linestyle=":")
    axis.set(title=f"{build.__name__} network", xlabel="steps", ylim=(1e-6, 10))


# %%
# To the right of the dotted line, the length of the runs in training, and for networks that the
# rule has never seen, nothing is promised: what was learned may carry over, or may not. The second
# curve takes smaller and smaller parts of the proposed steps there.


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def deep() -> nn.Module:
    hidden = [nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(32, 10))


figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
for axis, build in zip(axes, (small, wide, deep), strict=True):
    compare(axis, build)
axes[0].set_ylabel("loss")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
plt.show()

# %%
# On the small and the deep network the rule is ahead of Adam after twenty steps; on the wide one it
# is behind, or about as good after a training with another seed. Later it does not come to rest,
# since no run in training was that long; with smaller steps it does. (The same schedule makes Adam
# and SGD slower.)
#
# Next: :doc:`/recipes_learning` trains a rule on all its iterates, on long runs in windows, and
# without gradients through the run; :doc:`/minmax` has a follower that learns to converge.
