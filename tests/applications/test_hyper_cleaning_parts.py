"""The parts of hyper-cleaning: problem, data, adjoints and metrics."""

from __future__ import annotations

import itertools

import pytest
import torch

from bilevel import Bilevel, HypergradientWarning
from tests.applications.conftest import Part


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")  # eight samples are few
def test_every_adjoint_has_its_name(part: Part) -> None:
    """Each gives a gradient of its own kind, which points where the exact one does."""
    adjoints, problem = part("adjoints"), part("problem")
    data = part("data").load("digits", seed=0, train_size=10)
    exact = None
    for name in adjoints.NAMES:
        if name == "compiled":  # seconds; the benchmark's test runs it
            continue
        torch.manual_seed(0)
        follower = problem.Training(data.network("linear"), decay=1.0)
        leader = problem.SampleWeights(follower, 10)
        adjoint, solver = adjoints.make(name, step=0.5, steps=12)
        solution = adjoint.solve(solver, follower, leader, data.images)
        (gradient,) = torch.autograd.grad(leader.loss(solution.value, data.images), leader.logits)
        exact = gradient if exact is None else exact
        cosine = float(torch.cosine_similarity(gradient, exact, dim=0))
        assert cosine > (0.2 if name == "sampled" else 0.99), (name, cosine)
    assert set(adjoints.ALL) == set(adjoints.NAMES) - {"forward"}


def test_the_solvers_start_where_their_adjoint_asks(part: Part) -> None:
    make = part("adjoints").make
    assert make("unrolled", 1.0, 5)[1].repeatable
    assert not make("implicit", 1.0, 5)[1].repeatable


def test_the_objective_in_numbers(part: Part) -> None:
    problem = part("problem")
    network = torch.nn.Linear(2, 3, bias=False)
    torch.nn.init.zeros_(network.weight)
    follower = problem.Training(network, decay=0.5)
    leader = problem.SampleWeights(follower, 2)
    leader.logits.data = torch.tensor([0.0, torch.inf])  # weights ½ and 1
    x, labels = torch.eye(2), torch.tensor([0, 2])
    images = problem.Images(problem.Batch(x, labels), problem.Batch(x, labels))
    y = {"weight": torch.zeros(3, 2)}
    y["weight"][0, 0] = 2.0  # logits (2, 0, 0) and (0, 0, 0)
    first = torch.tensor([2.0, 0, 0]).logsumexp(0) - 2
    expected = (0.5 * first + torch.tensor(3.0).log()) / 2 + 0.5 / 2 * 4
    torch.testing.assert_close(follower.objective(leader, y, images).detach(), expected)
    torch.testing.assert_close(leader.loss(y, images), (first + torch.tensor(3.0).log()) / 2)


def test_labels_are_wrong_where_it_is_said(part: Part) -> None:
    data = part("data").load("digits", seed=3, share=0.25, train_size=400, validation_size=100)
    assert int(data.wrong.sum()) == 100
    assert torch.equal(data.images.train.y != data.truth, data.wrong)
    assert data.images.train.y[data.wrong].bincount(minlength=10).min() > 0
    assert len(data.images.validation.y) == 100
    again = part("data").load("digits", seed=3, share=0.25, train_size=400, validation_size=100)
    assert torch.equal(again.images.train.y, data.images.train.y)
    other = part("data").load("digits", seed=4, share=0.25, train_size=400)
    assert not torch.equal(other.wrong, data.wrong)
    assert torch.equal(other.test.x, data.test.x)


def test_a_wrong_label_may_be_any_other(part: Part) -> None:
    data = part("data").load("digits", seed=0)
    moved = (data.images.train.y - data.truth) % 10
    counts = moved[data.wrong].bincount(minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 400 / 9 / 2


def test_no_image_is_both_trained_on_and_held_out(part: Part) -> None:
    data = part("data").load("digits", seed=0)
    parts = (*data.images, data.test)
    for one, other in itertools.combinations([part.x for part in parts], 2):
        assert torch.cdist(one, other).min() > 0.1


def test_accuracy_is_that_on_test_images(part: Part) -> None:
    data = part("data").load("digits", seed=0)
    network = data.network("linear")
    torch.nn.init.zeros_(network[0].weight)
    network[0].bias.data = 1.0 * (torch.arange(10) == 3)  # it always says 3
    share = (data.test.y == 3).double().mean()
    assert part("metrics").accuracy(network, data) == pytest.approx(share)


def test_a_curve_in_numbers(part: Part) -> None:
    scores = part("metrics")
    weights = torch.tensor([0.1, 0.2, 0.3, 0.9])
    wrong = torch.tensor([True, False, True, False])
    curve = scores.roc(weights, wrong)
    assert curve.true_positives.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.false_positives.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.auc == 0.75  # three of four pairs are in order
    assert scores.found(weights, wrong) == {"found": 1.0, "false_alarms": 0.5}
    assert scores.roc(weights, ~wrong).auc == 0.25
    assert scores.roc(torch.ones(4), wrong).auc == scores.roc(torch.ones(4), ~wrong).auc == 0.5


def test_a_game_that_is_doubtful_says_so(part: Part) -> None:
    """Two steps of training are no minimum: the implicit gradient is not what it is called."""
    problem = part("problem")
    data = part("data").load("digits", seed=0, train_size=30)
    follower = problem.Training(data.network("mlp"), decay=1e-3)
    leader = problem.SampleWeights(follower, 30)
    adjoint, solver = part("adjoints").make("implicit", step=0.1, steps=2)
    optimizer = torch.optim.Adam(leader.parameters())
    game = Bilevel(leader, follower, solver, leader_opt=optimizer, adjoint=adjoint)
    with pytest.warns(HypergradientWarning, match="not stationary|negative curvature"):
        game.step(data.images)
