"""Training hyperparameters: the paper's, and those for small datasets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from bilevel import Adjoint, Bilevel, FollowerProblem, LeaderProblem, Schedule, Solver
from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.robustness.data.augment import Augment
from bilevel.robustness.methods import Form
from bilevel.robustness.threats.norms import Norm, check_epsilon


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run; the defaults are the paper's (Sec. 4.1).

    Args:
        model: Name of the classifier, see :func:`~bilevel.robustness.build_model`, or a function
            ``MODULE:FUNCTION`` that is called with ``channels`` and ``classes``.
        epsilon: ε of the threat model, in units of the pixel range.
        norm: The norm that it bounds: ``"linf"`` as in the paper, ``"l2"`` or ``"l1"``.
        epochs: Passes over the training set.
        batch_size: Images a step; a last batch of one image is left out.
        lr: The classifier's learning rate (SGD, momentum 0.9), times 0.1 at each milestone.
        milestones: Fractions of the run in (0, 1]; epochs 30, 60 and 90 of 100 in the paper.
        one_cycle: Whether the learning rate instead rises linearly to ``lr`` and falls to 0 (Smith
            & Topin, 2018), changing at each step.
        weight_decay: Weight decay of both networks.
        ema: Decay of the classifier's averaged weights, which are then validated, kept and
            evaluated (:class:`~bilevel.robustness.EMA`); 0 for no averaging, as in the paper.
        warm_start: Whether each image's attack starts where the last one on it has ended, see
            :class:`~bilevel.robustness.Memory`; in the paper each attack starts anew.
        attacker_lr: The attacker's learning rate (Adam), constant.
        attacker: See :class:`~bilevel.robustness.Attacker`.
        attacker_width: Likewise; None for :func:`~bilevel.robustness.fitting_width`.
        gradient_skip: Likewise; the paper has none.
        padding: Pixels of the random crop.
        flip: Whether images are flipped at random.

    Raises:
        BilevelError: If a number is out of its range.
    """

    model: str = "wrn-34-10"
    epsilon: float = 0.031
    norm: Norm = "linf"
    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.1
    milestones: tuple[float, ...] = (0.3, 0.6, 0.9)
    one_cycle: bool = False
    weight_decay: float = 2e-4
    ema: float = 0.0
    warm_start: bool = False
    attacker_lr: float = 1e-3
    attacker: Form = "wide"
    attacker_width: int | None = 64
    gradient_skip: float | None = None
    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        """Checks the numbers before any image is read."""
        count("padding", self.padding, least=0)
        for name in ("epochs", "batch_size"):
            count(name, getattr(self, name))
        if self.attacker_width is not None:
            count("attacker_width", self.attacker_width)
        for name in ("lr", "weight_decay", "attacker_lr"):
            if not 0 <= (rate := getattr(self, name)) < math.inf:
                raise BilevelError(f"{name} is {rate}: a rate is finite; give a number from 0 on")
        if not 0 <= self.ema < 1:
            raise BilevelError(
                f"ema is {self.ema}: it is the weight of the average in each update; give "
                "0 ≤ ema < 1, 0.995 for an average over 200 steps, 0 for none"
            )
        if not all(0 < share <= 1 for share in self.milestones):
            raise BilevelError(
                f"milestones are {self.milestones}: they are shares of the run; give numbers in "
                "(0, 1], 0.3 for epoch 30 of 100"
            )
        if self.gradient_skip is not None and not math.isfinite(self.gradient_skip):
            raise BilevelError(
                f"gradient_skip is {self.gradient_skip}: it is the initial value of a weight; give "
                "a finite number"
            )
        check_epsilon(self.epsilon, self.norm)

    def lr_factor(self, epoch: float) -> float:
        """The factor on the classifier's learning rate.

        Args:
            epoch: Epochs done, fractional within an epoch.

        Returns:
            0.1^n after n milestones. With ``one_cycle``, linear from 1/25 to 1 over the first three
            tenths of the run, then linear to 0.

        Example:
            >>> [round(Recipe().lr_factor(epoch), 6) for epoch in (0, 29.9, 30, 60, 90)]
            [1.0, 1.0, 0.1, 0.01, 0.001]
            >>> recipe = Recipe(one_cycle=True)
            >>> [round(recipe.lr_factor(epoch), 6) for epoch in (0, 15, 30, 65, 100)]
            [0.04, 0.52, 1.0, 0.5, 0.0]
        """
        if self.one_cycle:
            done = epoch / self.epochs
            rising = 1 / 25 + (1 - 1 / 25) * done / 0.3
            return min(rising, (1 - done) / 0.7)
        passed = sum(epoch / self.epochs >= share for share in self.milestones)
        return 0.1**passed

    @property
    def evaluation_batch_size(self) -> int:
        """Images a batch in validation and evaluation.

        Returns:
            Twice the batch size of training, which fits its memory, and at most 256.
        """
        return min(256, 2 * self.batch_size)

    @property
    def augment(self) -> Augment | None:
        """The augmentation.

        Returns:
            The random crop and flip; None if there is neither.
        """
        return Augment(self.padding, flip=self.flip) if self.padding or self.flip else None


SMALL = Recipe(
    model="small-cnn",
    epsilon=0.2,
    epochs=30,
    batch_size=64,
    milestones=(0.5, 0.8),
    weight_decay=5e-3,
    attacker_lr=5e-4,
    attacker="two-layer",
    attacker_width=32,
    gradient_skip=2.0,
    padding=0,
    flip=False,
)

RECIPES = {
    "digits": SMALL,
    "fashion-mnist": SMALL,
    "cifar10": Recipe(),
    "cifar100": Recipe(),
    "folder": Recipe(),
    "npz": Recipe(),
}
"""The recipe of each dataset: the paper's for CIFAR, a small one for small images."""


def fast(recipe: Recipe) -> Recipe:
    """A faster recipe: half of the epochs, at most 30, and averaged weights.

    The learning rate takes one cycle with a peak of twice the recipe's (its mean is then the
    recipe's initial one), weight decay is at least 5e-4 (Pang et al., 2021, "Bag of tricks for
    adversarial training"), the average spans 200 steps, and the attacker has two layers, starts
    near FGSM and costs at most a tenth of the classifier: on a GPU the paper's, of many short
    kernels, takes nearly half of a step of a ResNet-18 at that cost.

    Args:
        recipe: A dataset's recipe.

    Returns:
        The fast recipe.

    Example:
        >>> fast(Recipe()).epochs, fast(RECIPES["digits"]).epochs
        (30, 15)
    """
    return replace(
        recipe,
        epochs=min(30, max(1, recipe.epochs // 2)),
        one_cycle=True,
        lr=2 * recipe.lr,
        weight_decay=max(recipe.weight_decay, 5e-4),
        ema=0.995,
        attacker="two-layer",
        attacker_width=recipe.attacker_width if recipe.attacker == "two-layer" else None,
        gradient_skip=2.0,
    )


def make_game(
    leader: LeaderProblem,
    follower: FollowerProblem,
    solver: Solver,
    recipe: Recipe,
    *,
    schedule: Schedule | None = None,
    adjoint: Adjoint | None = None,
) -> Bilevel:
    """The game of classifier and attacker, with the paper's optimizers.

    Args:
        leader: The classifier and its loss; ``ZeroSum(model, follower)`` for adversarial training.
        follower: The threat model.
        solver: A training method's solver.
        recipe: Learning rates and weight decay.
        schedule: See :class:`~bilevel.Bilevel`.
        adjoint: Likewise.

    Returns:
        The game.
    """
    attacker = list(solver.parameters())
    # On a GPU one kernel updates all weights; on a processor torch chooses.
    fused = None if any(p.is_cpu or p.is_meta for p in leader.parameters()) else True
    return Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(
            leader.parameters(),
            lr=recipe.lr,
            momentum=0.9,
            weight_decay=recipe.weight_decay,
            fused=fused,
        ),
        solver_opt=torch.optim.Adam(
            attacker, lr=recipe.attacker_lr, weight_decay=recipe.weight_decay, fused=fused
        )
        if attacker
        else None,
        adjoint=adjoint,
        schedule=schedule,
    )
