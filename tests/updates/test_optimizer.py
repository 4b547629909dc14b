"""Optimizers of ``torch.optim`` as updates: their steps, and what cannot be unrolled."""

from __future__ import annotations

import pytest
import torch

from bilevel import BilevelError, testing
from bilevel.updates import Optimizer

SETTINGS = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    (torch.optim.Adadelta, {"lr": 1.0}),
    (torch.optim.Adamax, {"lr": 0.1}),
    (torch.optim.ASGD, {"lr": 0.1}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_the_steps_are_those_of_torch(kind, settings) -> None:
    y = {"a": torch.randn(2, 3, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    theirs = {name: leaf.clone().requires_grad_() for name, leaf in y.items()}
    optimizer, update, state = kind(theirs.values(), **settings), Optimizer(kind, **settings), None
    for _ in range(5):
        gradient = {name: torch.randn_like(leaf) for name, leaf in reversed(y.items())}
        y, state = update(y, gradient, None, state)
        for name, leaf in theirs.items():
            leaf.grad = -gradient[name]
        optimizer.step()
        for name, leaf in theirs.items():
            torch.testing.assert_close(y[name], leaf.detach(), rtol=1e-6, atol=1e-7)
    assert not any(leaf.requires_grad for leaf in y.values())


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_it_conforms(kind, settings) -> None:
    testing.check_update(Optimizer(kind, **settings), torch.randn(2, 3))


def test_two_solves_at_once_do_not_share_a_memory() -> None:
    update, g = Optimizer(torch.optim.SGD, lr=1.0, momentum=0.5), torch.ones(1)
    y, state = update(torch.zeros(1), g, None, None)
    update(torch.zeros(1), 100 * g, None, None)
    for _ in range(2):  # a state is not written into
        assert update(y, g, None, state)[0].item() == 2.5


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.LBFGS])
def test_an_optimizer_that_cannot_be_unrolled(kind) -> None:
    with pytest.raises(BilevelError, match=rf"{kind.__name__} cannot .*SGD, Adam, .*Implicit"):
        Optimizer(kind, lr=0.1)
