r"""
Find wrong labels by a hypergradient
====================================

Two out of five training labels are wrong, and it is not known which. A few hundred samples with
clean labels can tell *which training samples to trust*: give each a weight :math:`w_i(\theta)`,
train on the weighted samples, and choose the weights for which the trained model is best on the
clean ones.

.. math::

    \min_\theta \; L(y^*(\theta)) \qquad \text{s.t.} \qquad
    y^*(\theta) = \operatorname*{arg\,min}_y \; \frac1n \sum_i w_i(\theta)\, \ell(y; x_i, t_i)
    + \lambda \|y\|^2

The gradient of :math:`L` in :math:`\theta` leads through a whole training run: it is a
*hypergradient*. How it is computed is one argument of the game, its *adjoint*. Which one is right?
"""

# %%
# The data
# --------
#
# Scikit-learn's digits: 400 to train on, whose labels are partly wrong, 400 clean ones, and the
# rest for the test.

import textwrap
import warnings

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bilevel

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
pixels = torch.tensor(digits.images).flatten(1)[order] / 16
x, labels = pixels - pixels.mean(0), torch.tensor(digits.target)[order]
train, clean, test = slice(0, 400), slice(400, 800), slice(800, None)

wrong = torch.rand(400) < 0.4
given = torch.where(wrong, (labels[train] + torch.randint(1, 10, (400,))) % 10, labels[train])


# %%
# Follower and leader
# -------------------
#
# The follower trains a linear model y on the weighted samples. The leader holds θ, from which the
# weights come, and its loss is that of the trained model on the clean samples. Each step sees all
# samples, so there are no batches: ``batch`` is None.

DECAY = 0.003


class Training(bilevel.FollowerProblem):
    """min over y of the weighted cross entropy on labels that may be wrong."""

    sense = "min"

    def init(self, batch):
        return x.new_zeros(64, 10)

    def objective(self, leader, y, batch):
        losses = F.cross_entropy(x[train] @ y, given, reduction="none")
        return (leader.weights() * losses).mean() + DECAY * y.square().sum()


class Trust(bilevel.LeaderProblem):
    """min over θ of the cross entropy of y* on clean samples."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Parameter(x.new_zeros(400))  # θ

    def weights(self) -> Tensor:
        return self.score.sigmoid()

    def loss(self, y, batch):
        return F.cross_entropy(x[clean] @ y, labels[clean])


# %%
# Which adjoint is right?
# -----------------------
#
# A solve gives an answer with a graph, whatever the adjoint, and the leader's loss is
# differentiated through it. ``Unrolled`` goes back through the steps of the training, ``Implicit``
# solves a linear system at its end. They have nothing in common, so if they agree after a long
# training, both are right.

leader, follower = Trust(), Training()


def hypergradient(adjoint: bilevel.Adjoint, steps: int) -> Tensor:
    solver = bilevel.Iterative(bilevel.updates.Gradient(1.0), steps)
    answer = adjoint.solve(solver, follower, leader, None).value
    return torch.autograd.grad(leader.loss(answer, None), leader.score)[0]


def difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


truth = hypergradient(bilevel.Implicit(), 3000)
print(f"they differ by {difference(hypergradient(bilevel.Unrolled(), 3000), truth):.1g}")

# %%
# Real trainings are shorter. What is the error then?

lengths = [5, 10, 20, 50, 100, 200, 400, 800]
told = []
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
for adjoint in (
    bilevel.Unrolled(),
    bilevel.Unrolled(truncate=20),
    bilevel.Implicit(),
    bilevel.Penalty(100),
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        errors = [difference(hypergradient(adjoint, steps), truth) for steps in lengths]
    axis.loglog(lengths, errors, marker="o", label=repr(adjoint))
    told += [str(one.message) for one in caught]
axis.set(xlabel="inner steps", ylabel="relative error of the hypergradient")
axis.legend(fontsize="small")
plt.show()

# %%
# After few steps y is not optimal, and no adjoint gives the gradient of an optimum that was not
# reached. ``Unrolled`` is then still the exact gradient of what was computed; ``Implicit`` and
# ``Penalty`` assume an optimum, and warn if there is none. Truncation keeps an error however long
# the training is: it leaves out what all steps but the last twenty contribute.

for message in told:
    print(textwrap.fill(message, 80), "\n")

# %%
# Learn whom to trust
# -------------------
#
# Forty steps of the leader, each of which trains the model anew.

solver = bilevel.Iterative(bilevel.updates.Gradient(1.0), steps=100)
game = bilevel.Bilevel(
    leader,
    follower,
    solver,
    leader_opt=torch.optim.Adam(leader.parameters(), lr=0.2),
    adjoint=bilevel.Unrolled(),
)


def accuracy() -> float:
    y = solver.solve(follower, leader, None).value
    return (x[test] @ y).argmax(1).eq(labels[test]).double().mean().item()


print(f"all samples alike: {accuracy():.1%} of the test images are classified correctly")
log = bilevel.MetricLog()
for _ in range(40):
    log.add(game.step(None))
print(f"weighted:          {accuracy():.1%}")
weights = leader.weights().detach()
found = (weights < 0.5) == wrong
print(f"{found.double().mean():.1%} of the labels are told right from wrong")

# %%
# The weights separate the two kinds, and the samples that are trusted least show why.

figure, axes = plt.subplot_mosaic(
    [["weights", *range(4)], ["weights", *range(4, 8)]],
    figsize=(10, 3.4),
    layout="constrained",
    width_ratios=[5, 1, 1, 1, 1],
)
bins = torch.linspace(0, 1, 21)
for kind, name in ((~wrong, "right labels"), (wrong, "wrong labels")):
    axes["weights"].hist(weights[kind], bins=bins, alpha=0.6, label=name)
axes["weights"].set(xlabel="weight", ylabel="samples")
axes["weights"].legend()
for place, sample in enumerate(weights.argsort()[:8].tolist()):
    axes[place].imshow(pixels[sample].view(8, 8), cmap="gray_r")
    axes[place].set_title(f"“{given[sample]}”", color="C1" if wrong[sample] else "C0")
    axes[place].axis("off")
plt.show()

# %%
# Next: :doc:`/adjoints` tells what each adjoint costs and when to use it, and
# :doc:`/hyper_cleaning` compares all of them on this task, in accuracy, time and memory.
