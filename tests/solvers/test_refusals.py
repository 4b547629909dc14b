"""What a solve refuses: steps and modes, batches, objectives and starts that it cannot take."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bilevel import Bilevel, BilevelError, Iterative, Parametric, pgm
from bilevel.robustness import Linf
from bilevel.updates import CNN, CoordinateRNN, Gradient, SignGradient
from tests.problems import Saddle, Weights, image_game


def test_steps_below_zero() -> None:
    with pytest.raises(BilevelError, match=r"steps is -1.*give 0, 1"):
        Iterative(SignGradient(0.1), -1)


def test_an_unknown_leader_mode() -> None:
    with pytest.raises(BilevelError, match=r"leader_mode is 'test'.*give one of 'eval', 'train'"):
        pgm(0.1, 1, leader_mode="test")


class Images(NamedTuple):
    x: torch.Tensor


class Keyed(Linf):
    def init(self, batch):
        return torch.zeros_like(batch["images"])


@pytest.mark.parametrize(
    ("follower", "wrap", "message"),
    [
        (Linf(0.1), list, r"Linf cannot read a batch of type list \(.*'x'\): .*wrap"),
        (Linf(0.1), lambda batch: Images(batch.x), r"batch of type Images \(.*'y'\): .*wrap"),
        (
            Keyed(0.1),
            lambda batch: {"x": batch.x},
            r"Keyed reads a key 'images', .* \(it has 'x'\)",
        ),
        (Keyed(0.1), lambda _: None, "Keyed cannot read a batch of type NoneType"),
        (Keyed(0.1), torch.utils.data.DataLoader, "Keyed cannot read a batch of type DataLoader"),
        (Keyed(0.1), list, "Keyed cannot read a batch of type list .*indices must be integers"),
        (Keyed(0.1), tuple, "Keyed cannot read a batch of type tuple .*: a batch must have the"),
    ],
)
def test_a_batch_with_the_wrong_fields(follower, wrap, message) -> None:
    leader, _, batch = image_game()
    with pytest.raises(BilevelError, match=message):
        pgm(0.1, 1).solve(follower, leader, wrap(batch))


@pytest.mark.parametrize(
    ("method", "solver"),
    [
        ("project", Iterative(CoordinateRNN(0.1), 1)),
        ("project", Parametric(torch.zeros(6, 1, 4, 4))),
        ("context", Iterative(CNN(1, 0.1, form="two-layer", width=4), 1)),
    ],
)
def test_a_field_that_an_optional_method_misses(method, solver) -> None:
    leader, follower, batch = image_game()
    setattr(follower, method, lambda y, batch: batch.bounds)
    optimizers = [torch.optim.SGD(player.parameters(), lr=0.1) for player in (leader, solver)]
    game = Bilevel(leader, follower, solver, leader_opt=optimizers[0], solver_opt=optimizers[1])
    with pytest.raises(BilevelError, match=r"Linf cannot read a batch .*'bounds'"):
        game.step(batch)


@pytest.mark.parametrize("wrap", [lambda batch: batch, lambda batch: batch._asdict()])
def test_an_error_that_is_not_the_batchs_is_left_alone(wrap) -> None:
    leader, follower, batch = image_game()
    follower.init = lambda _: torch.zeros_like(batch.x)
    follower.objective = lambda leader, y, _: leader.classifier(batch.x + y)
    with pytest.raises(AttributeError, match="classifier"):
        pgm(0.1, 1).solve(follower, leader, wrap(batch))
    follower.objective = lambda leader, y, _: leader.model[batch.x + y]
    with pytest.raises(TypeError, match="'BatchNormNet' object is not subscriptable"):
        pgm(0.1, 1).solve(follower, leader, wrap(batch))


@pytest.mark.parametrize(
    "objective",
    [
        lambda leader, y, batch: leader.model(batch.x + y),
        lambda leader, y, batch: leader.model(batch.x + y).sum(1)[:2],
        lambda leader, y, batch: leader.model(batch.x + y).sum(1, keepdim=True),
    ],
)
def test_an_objective_of_the_wrong_shape(objective) -> None:
    leader, follower, batch = image_game()
    follower.objective = objective
    with pytest.raises(BilevelError, match=r"one value per sample.*reduction"):
        pgm(0.1, 1).solve(follower, leader, batch)


def test_an_objective_that_ignores_y() -> None:
    leader, follower, batch = image_game()
    follower.objective = lambda leader, y, batch: leader.model(batch.x + y.detach()).sum(1)
    with pytest.raises(BilevelError, match=r"does not depend on y.*detach"):
        pgm(0.1, 1).solve(follower, leader, batch)


def test_the_buffers_of_a_network_are_no_start() -> None:
    network = nn.BatchNorm1d(2)

    class Fit(Saddle):
        def init(self, batch):
            return network.state_dict()

        def objective(self, leader, y, batch):
            return functional_call(network.eval(), y, (torch.ones(2, 2),)).sum()

    with pytest.raises(BilevelError, match=r"torch\.int64: .* named_parameters\(\) of a network"):
        Iterative(Gradient(0.1), 1).solve(Fit(), Weights(2), None)


def test_a_sense_that_is_none() -> None:
    leader, follower, batch = image_game()
    follower.sense = "ascend"
    with pytest.raises(BilevelError, match=r"sense is .ascend.*set sense"):
        pgm(0.1, 1).solve(follower, leader, batch)
