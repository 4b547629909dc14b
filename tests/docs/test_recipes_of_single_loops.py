"""The recipes of bilevel methods in a single loop, against loops by hand in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel
from tests.recipes import example, follow

SINGLE = "Everything in a single loop"
TAKEN_AGAIN = "A step that is taken again: DARTS and Meta-Weight-Net"
STEPS = 6


@pytest.fixture
def names(tmp_path) -> Iterator[dict[str, Any]]:
    """The first recipe of the page, of players in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield follow(example(tmp_path), SINGLE)
    torch.set_default_dtype(before)


def minibatches() -> Iterator[dict[str, Tensor]]:
    torch.manual_seed(1)
    for _ in range(STEPS):
        batch = {name: torch.randn(20, 5) for name in ("x", "validation x")}
        yield batch | {name: torch.randn(20) for name in ("t", "validation t")}


def leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def q(theta: Tensor, y: Tensor, batch: dict[str, Tensor]) -> Tensor:
    error = batch["x"] @ y - batch["t"]
    return error.square().mean() + (theta.exp() * y.square()).sum()


def outer(y: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return (batch["validation x"] @ y - batch["validation t"]).square().mean()


def grad(value: Tensor, *inputs: Tensor, **kind: Any) -> Any:
    found = torch.autograd.grad(value, inputs, **kind)
    return found if len(found) > 1 else found[0]


def dy(theta: Tensor, y: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """∇_y q."""
    return torch.func.grad(q, argnums=1)(theta, y, batch)


def dtheta(theta: Tensor, y: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """∇_θ q."""
    return torch.func.grad(q)(theta, y, batch)


def douter(y: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return torch.func.grad(outer)(y, batch)


def product(theta: Tensor, y: Tensor, batch: dict[str, Tensor], v: Tensor) -> Tensor:
    """H v."""
    return torch.func.jvp(lambda y: dy(theta, y, batch), (y,), (v,))[1]


def mixed(theta: Tensor, y: Tensor, batch: dict[str, Tensor], v: Tensor) -> Tensor:
    """(∂²q/∂θ∂y) v."""
    return torch.func.grad(lambda theta: dy(theta, y, batch) @ v)(theta)


def follows(
    game: bilevel.Bilevel,
    by_hand: Callable[[int, Tensor, dict[str, Tensor]], Tensor],
    before: Callable[[bilevel.Bilevel, int], None] = lambda game, k: None,
) -> None:
    """The game's θ is that of the loop by hand after each step."""
    theta = game.leader.log_penalty.detach().clone()
    for k, batch in enumerate(minibatches()):
        before(game, k)
        game.step(batch)
        theta = by_hand(k, theta, batch)
        found = game.leader.log_penalty.detach()
        torch.testing.assert_close(found, theta, rtol=1e-12, atol=1e-12)
    assert theta.norm() > 1e-3


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_all_move_from_the_same_point(names, share) -> None:
    """SOBA; MA-SOBA where a share of each direction is averaged."""
    game, at = names["soba"], {"y": torch.zeros(5), "v": torch.zeros(5), "d": None}
    if share < 1:
        settings = {"momentum": 1 - share, "dampening": 1 - share}
        game.leader_opt = torch.optim.SGD(game.leader.parameters(), lr=0.5, **settings)

    def step(k, theta, batch):
        y, v, d = at["y"], at["v"], mixed(theta, at["y"], batch, at["v"])
        at["d"] = d if k == 0 else (1 - share) * at["d"] + share * d
        at["y"] = y - 0.1 * dy(theta, y, batch)
        at["v"] = v - 0.1 * (product(theta, y, batch, v) + douter(y, batch))
        return theta - 0.5 * at["d"]

    follows(game, step)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
@pytest.mark.parametrize("decreases", [False, True])
def test_all_move_one_after_the_other(names, decreases) -> None:
    at = {"y": torch.zeros(5), "v": torch.zeros(5)}

    def step(k, theta, batch):
        powers = [(k + 1) ** power if decreases else 1 for power in (0.4, 0.6)]
        eta, y, v = 0.1 / powers[0], at["y"], at["v"]
        y = at["y"] = y - eta * dy(theta, y, batch)
        v = at["v"] = v - eta * (product(theta, y, batch, v) + douter(y, batch))
        return theta - 0.5 / powers[1] * mixed(theta, y, batch, v)

    rates = {"before": names["decrease"]} if decreases else {}
    follows(names["single_loop"], step, **rates)


def test_a_step_is_taken_again(names) -> None:
    """DARTS of second order by hand, whose virtual step has the momentum of the kept one."""
    game = follow(names, TAKEN_AGAIN)["darts"]
    weights, theta = leaf(torch.zeros(5)), leaf(torch.zeros(5))
    adam = torch.optim.Adam([theta], lr=0.01, betas=(0.5, 0.999))
    sgd = torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=3e-4)

    def step(k, _, batch):
        y, buffer = weights.detach(), sgd.state[weights].get("momentum_buffer", torch.zeros(()))
        moved = y - 0.1 * (0.9 * buffer + dy(theta.detach(), y, batch) + 3e-4 * y)
        theta.grad = -0.1 * mixed(theta.detach(), y, batch, douter(moved, batch))
        adam.step()
        weights.grad = dy(theta.detach(), y, batch)
        sgd.step()
        return theta.detach()

    follows(game, step)
    torch.testing.assert_close(game.solver.kept[0], weights.detach())


def test_a_penalty_that_grows(names) -> None:
    """Both of y and z step at their own rates, θ by the penalised gradient."""
    follow(names, "A penalty that grows: F²SA")
    at = {"y": torch.zeros(5), "z": torch.zeros(5)}

    def step(k, theta, batch):
        weight, gamma = 10 * (k + 1) ** (1 / 7), 0.1 / (k + 1) ** (4 / 7)
        y, z = at["y"], at["z"]
        y = at["y"] = y - gamma / weight * (douter(y, batch) + weight * dy(theta, y, batch))
        z = at["z"] = z - gamma * dy(theta, z, batch)
        slope = weight * (dtheta(theta, y, batch) - dtheta(theta, z, batch))
        return theta - 0.1 / (k + 1) ** (5 / 7) * slope

    follows(names["f2sa"], step, names["grow"])


def test_a_penalty_that_is_computed(names) -> None:
    follow(names, "A penalty that is computed: BOME")
    at = {"y": torch.zeros(5)}
    weights = []

    def step(k, theta, batch):
        y = z = at["y"]
        for _ in range(10):
            z = z - 0.1 * dy(theta, z, batch)
        f = torch.cat([torch.zeros(5), douter(y, batch)])
        lower = dtheta(theta, y, batch) - dtheta(theta, z, batch), dy(theta, y, batch)
        excess = torch.cat(lower)
        square = excess.square().sum() + 1e-8
        weights.append(max(0.5 - (f @ excess / square).item(), 0))
        both = torch.cat([theta, y]) - 0.1 * (f + weights[-1] * excess)
        theta, at["y"] = both.chunk(2)
        return theta

    follows(names["bome"], step)
    torch.testing.assert_close(names["easy"].y.detach(), at["y"])
    assert any(weights)


def test_some_columns_of_the_hessian(names) -> None:
    """Against the inverse of the whole matrix of low rank."""
    follow(names, "Some columns of the Hessian: Nyström")

    def step(k, theta, batch):
        y = torch.zeros(5)
        for _ in range(100):
            y = y - 0.1 * dy(theta, y, batch)
        h = torch.func.hessian(q, argnums=1)(theta, y, batch)
        torch.manual_seed(k)
        chosen = torch.randperm(5)[:3]
        low = h[:, chosen] @ torch.linalg.solve(h[chosen][:, chosen], h[chosen])
        w = torch.linalg.solve(low + 0.5 * torch.eye(5), douter(y, batch))
        return theta + 0.5 * mixed(theta, y, batch, w)

    follows(names["sketched"], step, lambda game, k: torch.manual_seed(k))


def test_each_factor_has_a_minibatch_of_its_own(names) -> None:
    game = follow(names, "A minibatch for each factor of the hypergradient")["stocbio"]
    theta, (batch, *factors) = torch.zeros(5), minibatches()
    metrics = game.step(batch | {"factors": factors})
    y = torch.zeros(5)
    for _ in range(10):
        y = y - 0.1 * dy(theta, y, batch)
    series, factor = torch.eye(5), torch.eye(5)
    *hessians, last = factors
    for one in hessians:
        factor = (torch.eye(5) - 0.1 * torch.func.hessian(q, argnums=1)(theta, y, one)) @ factor
        series = series + factor
    theta = theta + 0.5 * mixed(theta, y, last, 0.1 * series @ douter(y, batch))
    torch.testing.assert_close(game.leader.log_penalty.detach(), theta)
    assert metrics["evaluations"] == 10 + len(factors)
