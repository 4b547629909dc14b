"""The recipes of single loops with steps that decrease, and of a minibatch for each factor."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.recipes import example, follow

SINGLE = "Everything in a single loop"


def minibatch() -> dict[str, Any]:
    batch = {name: torch.randn(20, 5) for name in ("x", "validation x")}
    return batch | {name: torch.randn(20) for name in ("t", "validation t")}


def slope(names: dict[str, Any], theta: Tensor, y: Tensor, batch: Any) -> Tensor:
    """∇_y of the follower's objective."""
    by_hand = types.SimpleNamespace(log_penalty=theta)
    objective = names["Penalized"]().objective(by_hand, y, batch)
    return torch.autograd.grad(objective, y, create_graph=True)[0]


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_a_single_loop_with_steps_that_decrease(tmp_path) -> None:
    names = follow(example(tmp_path), SINGLE)
    game, loss = names["single_loop"], names["penalties"].loss
    theta = names["penalties"].log_penalty.detach().clone().requires_grad_()
    y, v = torch.zeros(5), torch.zeros(5)
    for k in range(5):
        batch, step = minibatch(), 0.1 / (k + 1) ** 0.4
        names["decrease"](game, k)
        game.step(batch)
        y = (y - step * slope(names, theta, y.requires_grad_(), batch)).detach().requires_grad_()
        gradient = slope(names, theta, y, batch)
        (product,) = torch.autograd.grad(gradient, y, v, retain_graph=True)
        v = v + step * (torch.autograd.grad(loss(y, batch), y)[0] - product)
        theta.data += 0.5 / (k + 1) ** 0.6 * torch.autograd.grad(gradient, theta, v)[0]
        y = y.detach()
    torch.testing.assert_close(names["penalties"].log_penalty.detach(), theta.detach())


def test_each_factor_has_a_minibatch_of_its_own(tmp_path) -> None:
    names = follow(example(tmp_path), SINGLE)
    follow(names, "A minibatch for each factor of the hypergradient")
    theta = names["penalties"].log_penalty.detach().clone().requires_grad_()
    batch = minibatch() | {"factors": [minibatch() for _ in range(4)]}
    metrics = names["stocbio"].step(batch)
    y = torch.zeros(5)
    for _ in range(10):
        y = (y - 0.1 * slope(names, theta, y.requires_grad_(), batch)).detach()
    *hessians, mixed = batch["factors"]
    (v,) = torch.autograd.grad(names["penalties"].loss(y.requires_grad_(), batch), y)
    series, factor = torch.eye(5), torch.eye(5)
    for one in hessians:
        h = torch.autograd.functional.jacobian(lambda y, one=one: slope(names, theta, y, one), y)
        factor = (torch.eye(5) - 0.1 * h) @ factor
        series = series + factor
    slopes = slope(names, theta, y, mixed)
    theta.data += 0.5 * torch.autograd.grad(slopes, theta, 0.1 * series @ v)[0]
    torch.testing.assert_close(names["penalties"].log_penalty.detach(), theta.detach())
    assert metrics["evaluations"] == 10 + 4
