r"""
Learn a dictionary and its solver
=================================

Small pieces of photographs are sums of a few atoms, such as edges and stripes (Olshausen & Field,
1996). Neither is known: not the atoms, which are the rows of a dictionary :math:`D`, and not the
sum for each piece :math:`x`, its code :math:`y`, most of which is zero.

.. math::

    \min_D \; \mathbb{E}_x \; q(D, y^*) \qquad \text{where} \qquad
    y^* = \operatorname*{arg\,min}_y q(D, y), \qquad
    q(D, y) = \tfrac12 \lVert x - D^\top y \rVert^2 + \lambda \lVert y \rVert_1

The dictionary leads, and each piece has a follower. They do not play against each other, but
minimise one function. Its usual solver takes many steps; one that is learned along with the
dictionary takes a few, as LISTA does (Gregor & LeCun, 2010).
"""

# %%
# The pieces
# ----------
#
# Of 8 by 8 pixels, from one of scikit-learn's two photographs to train on and from the other to
# test, each without its mean.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import bilevel


def pieces(photograph, count: int) -> Tensor:
    grey = torch.tensor(photograph).float().mean(2) / 255
    all_pieces = grey.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 64)
    chosen = all_pieces[torch.randperm(len(all_pieces))[:count]]
    return (chosen - chosen.mean(1, keepdim=True)) / 0.2


torch.manual_seed(0)
temple, flower = load_sample_images().images
train, test = pieces(temple, 20_000), pieces(flower, 1_000)

# %%
# The problem
# -----------
#
# Each piece has its own y, so the objective is one value per piece. The rows of D are at most of
# length 1: with longer ones y could be as small as it likes. A game calls ``project`` after each
# step. Where y is held constant its penalty does not depend on D, so that the loss leaves it out.

PENALTY = 0.3


class Coding(bilevel.FollowerProblem):
    """min over y of ‖x − Dᵀy‖² / 2 + λ ‖y‖₁."""

    sense = "min"

    def init(self, x):
        return x.new_zeros(len(x), 100)

    def objective(self, leader, y, x):
        return (x - y @ leader.atoms).square().sum(1) / 2 + PENALTY * y.abs().sum(1)


class Dictionary(bilevel.LeaderProblem):
    def __init__(self):
        super().__init__()
        self.atoms = nn.Parameter(F.normalize(torch.randn(100, 64)))

    def project(self):
        self.atoms.div_(self.atoms.norm(dim=1, keepdim=True).clamp(min=1))

    def loss(self, y, x):
        return (x - y @ self.atoms).square().sum(1).mean() / 2


# %%
# Three step rules
# ----------------
#
# ISTA takes a gradient step on the square alone, and moves each number towards 0 by a threshold. An
# update is given the gradient of the whole objective, turned so that a step along it improves;
# the part of the penalty is taken out again. FISTA also goes on in the direction of its last step,
# which it keeps as its state.


def shrink(y: Tensor, threshold: float | Tensor) -> Tensor:
    return y.sign() * (y.abs() - threshold).relu()


class ISTA(bilevel.Update):
    step = 0.1

    def forward(self, y, gradient, context, state):
        smooth = gradient + PENALTY * y.sign()
        return shrink(y + self.step * smooth, self.step * PENALTY), state


class FISTA(ISTA):
    def forward(self, y, gradient, context, state):
        last, weight = (y, 1.0) if state is None else state
        new, _ = super().forward(y, gradient, context, None)
        following = (1 + (1 + 4 * weight**2) ** 0.5) / 2
        return new + (weight - 1) / following * (new - last), (new, following)


# %%
# The learned step has a matrix in place of the step size, and a threshold for each atom. It starts
# as ISTA. Since it reads the gradient, it sees the dictionary as it is now, also while that moves.


class Learned(bilevel.Update):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(ISTA.step * torch.eye(100))
        self.threshold = nn.Parameter(torch.full((100,), ISTA.step * PENALTY))

    def forward(self, y, gradient, context, state):
        smooth = gradient + PENALTY * y.sign()
        return shrink(y + smooth @ self.matrix, self.threshold), state


# %%
# Train
# -----
#
# One function trains a dictionary with any of them. ``Detached()`` takes y for a constant in the
# leader's gradient. At the best y that is exact, since a small change of it does not change q.


def fit(update: bilevel.Update, steps: int) -> tuple[Dictionary, bilevel.Solver]:
    torch.manual_seed(0)
    coding, dictionary, solver = Coding(), Dictionary(), bilevel.Iterative(update, steps)
    learned = list(solver.parameters())
    game = bilevel.Bilevel(
        dictionary,
        coding,
        solver,
        leader_opt=torch.optim.Adam(dictionary.parameters(), lr=3e-3),
        solver_opt=torch.optim.Adam(learned, lr=1e-3) if learned else None,
        adjoint=bilevel.Detached(),
    )
    for _ in range(600):
        game.step(train[torch.randint(len(train), (200,))])
    return dictionary, solver


def objective(dictionary: Dictionary, solver: bilevel.Solver) -> float:
    """Of the other photograph's pieces, in the mean."""
    return solver.solve(Coding(), dictionary, test).stats["objective_after"].item()


for update, steps in ((ISTA(), 3), (FISTA(), 3), (FISTA(), 10), (Learned(), 1), (Learned(), 3)):
    dictionary, solver = fit(update, steps)
    print(f"{type(update).__name__:8} {steps:2} steps: {objective(dictionary, solver):.3f}")

# %%
# One learned step leaves less than three of ISTA or FISTA, and three learned ones about as much as
# ten of FISTA, for which ten gradients are taken.
#
# What was learned
# ----------------
#
# The atoms of the dictionary that was trained with three learned steps; and for it, what each rule
# leaves above the best codes after any number of steps.

best = objective(dictionary, bilevel.Iterative(FISTA(), 500))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
rules = {"ISTA": ISTA(), "FISTA": FISTA(), "learned": solver.update}
for name, update in rules.items():
    counts = [*range(1, 10), 12, 16, 20]
    above = [objective(dictionary, bilevel.Iterative(update, n)) - best for n in counts]
    left.semilogy(counts, above, marker=".", label=name)
left.axvline(3, color="grey", linewidth=0.8, linestyle=":")
left.set(xlabel="steps", ylabel="objective − best", title="codes for one dictionary")
left.set_xticks([1, 3, 5, 10, 15, 20])
left.legend()
atoms = dictionary.atoms.detach().view(10, 10, 8, 8)
framed = F.pad(atoms / atoms.abs().amax((2, 3), keepdim=True), (1, 1, 1, 1), value=1.0)
right.imshow(framed.permute(0, 2, 1, 3).reshape(100, 100), cmap="gray")
right.set(title="the dictionary's atoms", xticks=[], yticks=[])
plt.show()

# %%
# On the dotted line, the length of the solves in training, three learned steps are as near to the
# best codes as ten of FISTA. Beyond it nothing was trained: FISTA comes nearer and nearer, the
# learned step soon no more. Where codes are to be exact, end with FISTA.
#
# Next: :doc:`/recipes_solvers` has proximal steps in which the leader has a part, and
# :doc:`/recipes_problems` followers that keep each sample's answer from one epoch to the next.
