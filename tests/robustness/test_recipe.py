"""Recipes: the learning rate, and the fast recipe."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from bilevel import Alternating, BilevelError, Detached, LeaderProblem, ZeroSum
from bilevel.robustness import (
    RECIPES,
    Attacker,
    Augment,
    Linf,
    Recipe,
    build_model,
    fast,
    fitting_width,
    make_game,
    make_solver,
)


class Still(LeaderProblem):
    """A classifier whose loss is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(1, 1)

    def loss(self, y, batch):
        return self.model(y).sum()


def test_the_defaults_are_the_papers() -> None:
    paper = Recipe()
    assert (paper.epsilon, paper.epochs, paper.batch_size) == (0.031, 100, 128)
    assert (paper.lr, paper.attacker_lr, paper.weight_decay) == (0.1, 1e-3, 2e-4)
    assert paper.augment == Augment(padding=4, flip=True)
    assert (paper.one_cycle, paper.ema, paper.gradient_skip) == (False, 0, None)


def test_one_cycle_is_two_lines() -> None:
    recipe = Recipe(epochs=20, one_cycle=True)
    rates = torch.tensor(
        [recipe.lr_factor(epoch / 10) for epoch in range(201)], dtype=torch.float64
    )
    assert (rates.argmax(), rates.max()) == (60, 1)
    assert (rates[0], rates[-1]) == (1 / 25, 0)
    for line in (rates[:61], rates[60:]):
        assert line.diff().std() < 1e-12


@pytest.mark.parametrize("epochs", [1, 7, 100])
def test_milestones_are_shares_of_the_run(epochs: int) -> None:
    """Of a single epoch too; and the hundredths of a run of 100 epochs are its epochs."""
    for share in (0.3, 0.55, 0.57, 0.9):
        recipe = Recipe(epochs=epochs, milestones=(share,))
        assert recipe.lr_factor(0) == recipe.lr_factor((share - 0.001) * epochs) == 1.0
        assert recipe.lr_factor((share + 0.001) * epochs) == 0.1
    assert Recipe(milestones=(0.55,)).lr_factor(55) == 0.1
    assert Recipe(milestones=(1.0,)).lr_factor(99.9) == 1.0


@pytest.mark.parametrize("milestones", [(30.0, 60.0), (0.0,), (-0.5, 0.5), (float("nan"),)])
def test_milestones_that_are_no_shares(milestones: tuple[float, ...]) -> None:
    with pytest.raises(BilevelError, match=r"milestones are \(.*shares of the run; give numbers"):
        Recipe(milestones=milestones)


@pytest.mark.parametrize("name", ["padding", "epochs", "batch_size", "attacker_width"])
def test_counts_that_are_no_whole_numbers(name: str) -> None:
    with pytest.raises(BilevelError, match=f"{name} is 2.5: it must be a whole number"):
        Recipe(**{name: 2.5})


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_counts_that_are_missing(name: str) -> None:
    with pytest.raises(BilevelError, match=f"{name} is None: it must be a whole number"):
        Recipe(**{name: None})


def test_evaluation_takes_batches_of_twice_the_images_and_256_at_most() -> None:
    sizes = [Recipe(batch_size=size).evaluation_batch_size for size in (1, 64, 128, 512)]
    assert sizes == [2, 128, 256, 256]


def test_a_crop_or_a_flip_alone() -> None:
    assert Recipe(flip=False).augment == Augment(padding=4, flip=False)
    assert Recipe(padding=0).augment == Augment(padding=0, flip=True)
    assert Recipe(padding=0, flip=False).augment is None


@pytest.mark.parametrize("dataset", RECIPES)
def test_the_fast_form(dataset: str) -> None:
    recipe = RECIPES[dataset]
    quick = fast(recipe)
    assert 15 <= quick.epochs <= 30
    assert quick.epochs <= recipe.epochs / 2
    steps = range(100 * quick.epochs)
    mean = quick.lr * sum(quick.lr_factor(step / 100) for step in steps) / len(steps)
    assert mean == pytest.approx(recipe.lr, rel=0.05)
    small = recipe.model == "small-cnn"
    assert (quick.ema, quick.gradient_skip, quick.attacker) == (0.995, 2.0, "two-layer")
    assert quick.weight_decay == (recipe.weight_decay if small else 5e-4)
    assert quick.attacker_width == (recipe.attacker_width if small else None)
    assert replace(quick, **{name: getattr(recipe, name) for name in (
        "epochs", "one_cycle", "lr", "weight_decay", "ema", "attacker", "attacker_width",
        "gradient_skip",
    )}) == recipe  # fmt: skip


def test_the_fast_form_of_a_single_epoch() -> None:
    assert fast(Recipe(epochs=1)).epochs == 1


def test_both_networks_have_the_papers_optimizers() -> None:
    follower, attacker = Linf(0.031), Attacker("two-layer", 4)
    solver = make_solver("grad-l2l", eps=0.031, channels=1, attacker=attacker)
    game = make_game(ZeroSum(nn.Linear(1, 1), follower), follower, solver, Recipe())
    sgd, adam = game.leader_opt.defaults, game.solver_opt.defaults
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.1, 0.9, 2e-4)
    assert (adam["lr"], adam["betas"], adam["weight_decay"]) == (1e-3, (0.9, 0.999), 2e-4)


def test_a_game_has_the_schedule_and_the_adjoint_that_it_is_given() -> None:
    leader, follower = Still(), Linf(0.1)
    solver = make_solver("pgm", eps=0.1, channels=1, attacker=Attacker())
    given = {"schedule": Alternating(follower_steps=3), "adjoint": Detached()}
    game = make_game(leader, follower, solver, Recipe(), **given)
    assert (game.schedule.follower_steps, type(game.adjoint)) == (3, Detached)


def test_an_attacker_may_cost_more_where_it_is_given_a_larger_share() -> None:
    with torch.device("meta"):
        classifier = build_model("resnet18", channels=3, classes=10)
    attacker, shape = Attacker("wide"), (3, 32, 32)
    widths = [fitting_width(attacker, classifier, shape, share) for share in (1e-6, 0.1, 1e6)]
    assert widths == [4, 8, 64]


@pytest.mark.parametrize(("model", "width"), [("resnet18", 8), ("wrn-34-10", 32), ("wrn-10-1", 4)])
def test_an_attacker_grows_with_its_classifier(model: str, width: int) -> None:
    with torch.device("meta"):
        classifier = build_model(model, channels=3, classes=10)
    assert fitting_width(Attacker("wide"), classifier, (3, 32, 32)) == width


class Checking(nn.Sequential):
    """A classifier that looks at its images, and has a constant that is no buffer."""

    offset = torch.tensor([0.5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert 0 <= x.min() <= x.max() <= 1
        return super().forward(x - self.offset)


class Attending(nn.Module):
    """A classifier of which most is attention between the pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2).mT.repeat(1, 1, 16).unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(rows, rows, rows).mean((1, 2))


def test_an_attacker_is_scaled_with_a_classifier_that_attends() -> None:
    widths = []
    for device in ("cpu", "meta"):
        classifier = Attending()
        classifier.register_parameter("place", nn.Parameter(torch.zeros((), device=device)))
        widths.append(fitting_width(Attacker(), classifier, (3, 16, 16), 3))
    assert 4 < widths[0] == widths[1] < 64


def test_an_attacker_is_scaled_with_a_classifier_that_needs_true_images() -> None:
    layers = [nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 2)]
    plain, checking = nn.Sequential(*copy.deepcopy(layers)).to("meta"), Checking(*layers)
    widths = [fitting_width(Attacker(), one, (3, 8, 8), 5) for one in (plain, checking)]
    assert 4 < widths[0] == widths[1] < 64
