"""Games of parts drawn at random, of which every combination is one that a user may write."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

import bilevel
from bilevel import (
    Alternating,
    Bilevel,
    Detached,
    FollowerProblem,
    Forward,
    Implicit,
    Iterative,
    LeaderProblem,
    Parametric,
    Penalty,
    Sampled,
    Unrolled,
    ZeroSum,
    updates,
)

F64 = torch.float64
Batch = namedtuple("Batch", "x t")
NAMES = {"b": 1, "a": 3}
"""Of the tensors in which y is split, with their sizes."""


class Chase(FollowerProblem):
    """min over y of ½‖y − f(x)‖² + ½√(1 + ‖y‖²), or max of its negative; Y may be a box.

    ``form`` is "rows" (``(B, 4)``), "images", or "named rows", with a y for each sample, or
    "shared" or "named", with one for all.
    """

    def __init__(self, form: str, sense: str, box: bool, order: int = 1) -> None:
        self.form, self.sense, self.box, self.order = form, sense, box, order
        self.apart = form not in ("shared", "named")

    def joined(self, y: Any) -> Tensor:
        if isinstance(y, dict):
            return torch.cat([y[name] for name in NAMES], -1)
        return y.flatten(1) if self.apart else y

    def init(self, batch: Batch) -> Any:
        z = 0.1 * (batch.x if self.apart else batch.x.mean(0))
        if self.form == "images":
            return z.view(-1, 1, 2, 2)
        if not self.form.startswith("named"):
            return z
        named = dict(zip(NAMES, z.split([*NAMES.values()], -1), strict=True))
        return dict([*named.items()][:: self.order])

    def context(self, y: Any, batch: Batch) -> Any:
        return y + batch.x.view_as(y) if self.form == "images" else None

    def objective(self, leader: Any, y: Any, batch: Batch) -> Tensor:
        z = self.joined(y)
        off = (z - leader.model(batch.x)).square().sum(-1) + (1 + z.square().sum(-1)).sqrt()
        cost = off / 2 if self.apart else off.mean() / 2
        return -cost if self.sense == "max" else cost


class Boxed(Chase):
    def project(self, y: Any, batch: Batch) -> Any:
        if isinstance(y, dict):
            return {name: part.clamp(-0.3, 0.3) for name, part in y.items()}
        return y.clamp(-0.3, 0.3)


class Net(nn.Module):
    """x ↦ w ∘ norm(x), which differs in training and evaluation."""

    def __init__(self, split: bool) -> None:
        super().__init__()
        w = torch.linspace(0.5, 1.5, 4, dtype=F64)
        self.w = nn.ParameterList(w.split([1, 3] if split else [4]))
        # Its running statistics stay, so that gradients can be taken again after the loss.
        self.norm = nn.BatchNorm1d(4, momentum=0.0, dtype=F64)
        self.norm.num_batches_tracked = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*self.w]) * self.norm(x)


class Wishes(LeaderProblem):
    """Wants the answers elsewhere."""

    def __init__(self, model: nn.Module, follower: Chase) -> None:
        super().__init__()
        self.model, self.joined = model, follower.joined

    def loss(self, y: Any, batch: Batch) -> Tensor:
        off = self.joined(y) - batch.t
        return off.square().mean() + 0.1 * self.model(batch.x).square().mean()


UPDATES: dict[str, Callable[[], Any]] = {
    "gradient": lambda: updates.Gradient(0.4),
    "sign": lambda: updates.SignGradient(0.1),
    "normalized": lambda: updates.NormalizedGradient(0.1),
    "momentum": lambda: updates.Momentum(updates.Gradient(0.2), 0.5),
    "mi-fgsm": lambda: updates.Momentum(updates.SignGradient(0.1), 1.0, normalize=True),
    "sgd": lambda: updates.Optimizer(SGD, lr=0.2, momentum=0.5, nesterov=True),
    "adam": lambda: updates.Optimizer(Adam, lr=0.1),
    "rmsprop": lambda: updates.Optimizer(RMSprop, lr=0.05, centered=True, momentum=0.3),
    "perceptron": lambda: updates.CoordinateMLP(scale=0.1, gradient_skip=0.3),
    "rnn": lambda: updates.Momentum(updates.CoordinateRNN(0.1, hidden=2, gradient_skip=0.2), 0.5),
    "mlp": lambda: updates.MLP(4, blocks=2),
    "cnn": lambda: updates.CNN(1, 0.1, form="two-layer", width=2),
    "conv-rnn": lambda: updates.ConvRNN(1, 0.1, hidden=2, gradient_skip=0.5),
}
JOINT = ("normalized", "mi-fgsm", "perceptron", "rnn")  # a norm over all that is one sample's
ADJOINTS = (
    Detached(), Unrolled(), Unrolled(truncate=2), Unrolled(recompute=2),
    Unrolled(truncate=3, recompute=True), Implicit(), Implicit(damping=0.2), Implicit("gmres"),
    Implicit("exact", warm_start=True), Implicit("neumann", max_steps=300), Forward(),
    Penalty(100.0), Sampled(0.1, samples=2),
)  # fmt: skip
FIRST = (
    bilevel.Simultaneous(), Alternating(), Alternating(2, first="follower", solver_mode="train"),
    bilevel.Extragradient(), bilevel.ProximalPoint(3), bilevel.Optimistic(),
    bilevel.Lookahead(steps=2), bilevel.Lookahead(bilevel.Optimistic(), steps=3),
)  # fmt: skip
CORRECTED = (
    bilevel.Consensus(0.1), bilevel.SymplecticAdjustment(), bilevel.CompetitiveGradient()
)  # fmt: skip
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda weights: SGD(weights, lr=0.1),
    "momentum": lambda weights: SGD(weights, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda weights: AdamW(weights, lr=0.02),
    "adagrad": lambda weights: Adagrad(weights, lr=0.05),
    "learned": lambda weights: updates.LearnedOptimizer(weights, drawn("rnn"), lr=0.1),
}


def drawn(update: str) -> Any:
    """The update, its network with numbers that tell."""
    torch.manual_seed(0)
    made = UPDATES[update]().double()
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


SUITED = [
    (form, update)
    for form in ("rows", "images", "named rows", "shared", "named")
    for update in (*UPDATES, None)
    if (update not in ("cnn", "conv-rnn") or form == "images")
    and (update != "mlp" or form in ("shared", "named"))
]


def specs(
    schedules: Any = FIRST, optimizers: Any = (*OPTIMIZERS,)
) -> st.SearchStrategy[dict[str, Any]]:
    choices: dict[str, Any] = {
        "suited": SUITED,
        "sense": ("min", "max"),
        "box": (False, True),
        "zero_sum": (False, True),
        "steps": (1, 2, 5),
        "warm_start": (False, False, True),
        "leader_mode": ("eval", "train"),
        "adjoint": ADJOINTS,
        "schedule": schedules,
        "leader_opt": optimizers,
        "solver_opt": optimizers,
    }
    return st.fixed_dictionaries({name: st.sampled_from(of) for name, of in choices.items()})


def build(spec: dict[str, Any], *, split: bool = True, order: int = 1) -> Bilevel:
    (form, update), sense, box = spec["suited"], spec["sense"], spec["box"]
    follower = (Boxed if box else Chase)(form, sense, box, order)
    leader = (ZeroSum if spec["zero_sum"] else Wishes)(Net(split), follower)
    mode: Any = {"leader_mode": spec["leader_mode"]}
    if update is None:
        solver = Parametric(follower.init(drawn_batch(4)), **mode)
    else:
        solver = Iterative(drawn(update), spec["steps"], warm_start=spec["warm_start"], **mode)
    phi = [*solver.parameters()]
    return Bilevel(
        leader,
        follower,
        solver,
        leader_opt=OPTIMIZERS[spec["leader_opt"]](leader.parameters()),
        solver_opt=OPTIMIZERS[spec["solver_opt"]](phi) if phi else None,
        adjoint=spec["adjoint"],
        schedule=spec["schedule"],
    )


def drawn_batch(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(*torch.rand(2, size, 4, generator=generator, dtype=F64) * 2 - 1)
