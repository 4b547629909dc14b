"""docs/algorithms.md, VAT and SMART: the leader is smooth where a divergence is the adversary's."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from bilevel.robustness import Batch
from tests.docs.algorithms import PAGE, Move, assert_same, batches, sgd


def smooth() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 3)
    return nn.Sequential(*layers).double()


class Own(bilevel.LeaderProblem):
    def __init__(self, model: nn.Module, loss: Move) -> None:
        super().__init__()
        self.model = model
        self.own = loss

    def loss(self, delta: Tensor, batch: Batch) -> Tensor:
        return self.own(self.model, delta, batch)


def trained(follower: bilevel.FollowerProblem, update: bilevel.Update, loss: Move) -> nn.Module:
    model = smooth()
    game = bilevel.Bilevel(
        Own(model, loss),
        follower,
        bilevel.Iterative(update, 1),
        leader_opt=sgd(model),
        adjoint=bilevel.Detached(),
    )
    for k, batch in enumerate(batches()):
        torch.manual_seed(k)
        game.step(batch)
    return model


def trained_by_hand(attack: Callable[[nn.Module, Batch], Tensor], loss: Move) -> nn.Module:
    model = smooth()
    optimizer = sgd(model)
    for k, batch in enumerate(batches()):
        torch.manual_seed(k)
        delta = attack(model, batch)
        optimizer.zero_grad()
        loss(model, delta, batch).backward()
        optimizer.step()
    return model


def unit(delta: Tensor) -> Tensor:
    return delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def test_virtual_adversarial_training() -> None:
    """The divergence of the page in L2, one step of the power method, pixels without bounds."""
    xi, eps = 0.1, 1.0
    page = {"bilevel": bilevel, "torch": torch, "F": F}
    trades = re.findall(r"```python\n(.*?)\n\n\nclass Trades", PAGE, re.DOTALL)[0]
    exec(trades.replace("Linf", "L2"), page)

    class InL2(page["Divergence"]):
        def init(self, batch: Batch) -> Tensor:
            return xi * unit(torch.randn_like(batch.x))

    class Power(bilevel.Update):
        def forward(self, y, gradient, context, state):
            return eps * unit(gradient), state

    def loss(model: nn.Module, delta: Tensor, batch: Batch) -> Tensor:
        clean = model(batch.x)
        moved, held = model(batch.x + delta).log_softmax(1), clean.softmax(1).detach()
        return F.cross_entropy(clean, batch.y) + F.kl_div(moved, held, reduction="batchmean")

    def attack(model: nn.Module, batch: Batch) -> Tensor:
        delta = (xi * unit(torch.randn_like(batch.x))).requires_grad_()
        clean, moved = model(batch.x).softmax(1).detach(), model(batch.x + delta)
        divergence = F.kl_div(moved.log_softmax(1), clean, reduction="sum")
        return eps * unit(torch.autograd.grad(divergence, delta)[0])

    (code,) = re.findall(r"as an `(L2\(.*?\))`", PAGE)
    assert_same(
        trained(eval(code, {"L2": InL2, "eps": eps}), Power(), loss),
        trained_by_hand(attack, loss),
    )


def symmetric(model: nn.Module, delta: Tensor, batch: Batch) -> Tensor:
    clean, moved = model(batch.x), model(batch.x + delta)
    pairs = (clean, moved), (moved, clean)
    both = [
        F.kl_div(a.log_softmax(1), b.softmax(1).detach(), reduction="batchmean") for a, b in pairs
    ]
    return F.cross_entropy(clean, batch.y) + sum(both)


def log_odds(p: Tensor) -> Tensor:
    return (p / (1 - p)).log().detach()


def test_smoothness_inducing_regularisation() -> None:
    """SMART: rows of the images are words, the ascent is in the direction from f(x + δ) to f(x)."""

    class Odds(bilevel.FollowerProblem):
        sense = "max"

        def init(self, batch: Batch) -> Tensor:
            return 0.01 * torch.randn_like(batch.x)

        def objective(self, leader: Own, delta: Tensor, batch: Batch) -> Tensor:
            p, q = (leader.model(x).softmax(1) for x in (batch.x + delta, batch.x))
            return (p * (log_odds(p) - log_odds(q))).sum(1)

    class WordByWord(bilevel.Update):
        def forward(self, y, gradient, context, state):
            moved = y + 0.1 * gradient
            return moved / moved.abs().amax(-1, keepdim=True), state

    def attack(model: nn.Module, batch: Batch) -> Tensor:
        noise = (0.01 * torch.randn_like(batch.x)).requires_grad_()
        p, q = model(batch.x + noise).softmax(1), model(batch.x).softmax(1).detach()
        total = (p * (torch.special.logit(p) - torch.special.logit(q)).detach()).sum()
        moved = noise.detach() + 0.1 * torch.autograd.grad(total, noise)[0]
        return torch.stack([word / word.abs().max() for word in moved.flatten(0, 2)]).view_as(moved)

    assert_same(trained(Odds(), WordByWord(), symmetric), trained_by_hand(attack, symmetric))
