"""Optimizers of ``torch.optim`` as updates: their steps, their derivatives, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from bilevel import BilevelError, FollowerProblem, Iterative, ZeroSum, testing
from bilevel.updates import Optimizer
from tests.valleys import F64

Settings = dict[str, Any]
SETTINGS: list[tuple[type[torch.optim.Optimizer], Settings]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
    (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    (torch.optim.Adamax, {"lr": 0.1, "weight_decay": 0.1}),
    (torch.optim.RMSprop, {"lr": 0.1, "weight_decay": 0.1}),
    (torch.optim.RMSprop, {"lr": 0.1, "centered": True, "momentum": 0.9}),
    (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-3}),
    (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1}),
    (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5}),
    (torch.optim.Adadelta, {"lr": 1.0, "weight_decay": 0.1}),
    (torch.optim.ASGD, {"lr": 0.1, "lambd": 0.3, "t0": 1, "weight_decay": 0.1}),
]


def both(
    kind: type[torch.optim.Optimizer], settings: Settings, *, scale: float = 1.0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Points and states of ours and of torch's, after each step along gradients of a size."""
    y = {"a": torch.randn(2, 3, dtype=F64), "b": torch.randn(4, dtype=torch.complex128)}
    theirs = {name: leaf.clone().requires_grad_() for name, leaf in y.items()}
    optimizer, update, state = kind(theirs.values(), **settings), Optimizer(kind, **settings), None
    pairs = []
    for _ in range(5):
        gradient = {name: scale * torch.randn_like(leaf) for name, leaf in reversed(y.items())}
        y, state = update(y, gradient, None, state)
        for name, leaf in theirs.items():
            leaf.grad = -gradient[name]
        optimizer.step()
        pairs += [(y[name], leaf.detach().clone()) for name, leaf in theirs.items()]
        for mine, leaf in zip(state, theirs.values(), strict=True):
            memory = optimizer.state[leaf]
            pairs += [(_real(mine[name]), _real(memory[name])) for name in mine]
    return pairs


def _real(value: Any) -> torch.Tensor:
    value = torch.as_tensor(value).clone()  # torch.optim writes into its state
    return torch.view_as_real(value) if value.is_complex() else value.double()


@pytest.mark.parametrize("scale", [1.0, 1e-8])
@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_the_steps_are_those_of_torch(kind, settings, scale) -> None:
    """ASGD's in torch has a learning rate in float32."""
    for ours, theirs in both(kind, settings, scale=scale):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        assert not ours.requires_grad


size = st.floats(1e-10, 1e3)
decay = st.sampled_from([0.0, 0.1])


@given(
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    dampening=st.sampled_from([0.0, 0.3]),
    nesterov=st.booleans(),
    weight_decay=decay,
    scale=size,
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_sgd_to_rounding(momentum, dampening, nesterov, weight_decay, scale) -> None:
    if nesterov and (dampening or not momentum):  # torch refuses it
        nesterov = False
    settings = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    settings |= {"lr": 0.1, "weight_decay": weight_decay}
    for ours, theirs in both(torch.optim.SGD, settings, scale=scale):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13 * max(1, scale))


@given(
    kind=st.sampled_from([torch.optim.Adam, torch.optim.AdamW]),
    betas=st.tuples(st.sampled_from([0.0, 0.9]), st.sampled_from([0.5, 0.999])),
    eps=st.sampled_from([1e-8, 1e-3]),
    weight_decay=decay,
    amsgrad=st.booleans(),
    decoupled=st.booleans(),
    scale=size,
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_adam_to_rounding(kind, betas, eps, weight_decay, amsgrad, decoupled, scale) -> None:
    """At gradients of the size of eps too, which is where it matters where eps stands."""
    settings = {"lr": 0.1, "betas": betas, "eps": eps}
    settings |= {"weight_decay": weight_decay, "amsgrad": amsgrad}
    if decoupled and kind is torch.optim.Adam:
        settings["decoupled_weight_decay"] = True
    for ours, theirs in both(kind, settings, scale=scale):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13 * max(1, scale))


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_the_derivatives_are_exact(kind, settings) -> None:
    """Of three steps, in where they start and in their gradients, with moments."""
    update = Optimizer(kind, **settings)

    def moved(y: torch.Tensor, *gradients: torch.Tensor) -> torch.Tensor:
        state = None
        for gradient in gradients:
            y, state = update(y, gradient, None, state)
        return y

    inputs = [torch.randn(3, dtype=F64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(moved, inputs)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_derivative_of_adam_where_no_gradient_was_met(amsgrad) -> None:
    """The first step is lr · g / (|g| + ε), whose derivative at 0 is lr / ε."""
    update = Optimizer(torch.optim.Adam, lr=0.1, eps=0.5, amsgrad=amsgrad)
    gradient = torch.zeros(1, dtype=F64, requires_grad=True)
    y, _ = update(torch.zeros(1, dtype=F64), gradient, None, None)
    y.backward()
    assert gradient.grad.item() == pytest.approx(0.1 / 0.5)


LINEAR = ["SGD", "Adam", "Adamax", "RMSprop", "Adagrad", "Adadelta"]


@pytest.mark.parametrize("kind", LINEAR)
def test_the_derivative_in_a_learned_rate(kind) -> None:
    """Along given gradients and without decay, y − y₀ is proportional to it."""
    rate = torch.tensor(0.1, dtype=F64, requires_grad=True)
    ends, gradients = [], torch.randn(3, 3, dtype=F64)
    for lr in (rate, 0.1):
        update = Optimizer(getattr(torch.optim, kind), lr=lr)
        y, state = torch.zeros(3, dtype=F64), None
        for gradient in gradients:
            y, state = update(y, gradient, None, state)
        ends.append(y)
    torch.testing.assert_close(*ends)
    (slope,) = torch.autograd.grad(ends[0].sum(), rate)
    torch.testing.assert_close(slope, ends[1].sum() / 0.1)


def test_the_derivative_in_a_learned_momentum() -> None:
    """After two steps y is lr · (g₀ + μ g₀ + g₁)."""
    momentum = torch.tensor(0.9, dtype=F64, requires_grad=True)
    update = Optimizer(torch.optim.SGD, lr=0.1, momentum=momentum)
    first, second = torch.randn(2, 3, dtype=F64)
    y, state = update(torch.zeros(3, dtype=F64), first, None, None)
    y, _ = update(y, second, None, state)
    (slope,) = torch.autograd.grad(y.sum(), momentum)
    torch.testing.assert_close(slope, 0.1 * first.sum())


LEARNED = [
    ("SGD", {}, "weight_decay"),
    ("SGD", {}, "momentum"),
    ("SGD", {"momentum": 0.5}, "dampening"),
    ("Adam", {}, "weight_decay"),
    ("RMSprop", {}, "momentum"),
]


@pytest.mark.parametrize(("kind", "settings", "name"), LEARNED)
def test_a_setting_that_is_learned_has_a_derivative_where_it_is_0(kind, settings, name) -> None:
    """That of the steps that torch.optim takes near it, to which a leader may clamp it."""
    y, gradients = torch.randn(3, dtype=F64), torch.randn(3, 3, dtype=F64)

    def moved(setting: torch.Tensor) -> torch.Tensor:
        update = Optimizer(getattr(torch.optim, kind), lr=0.1, **settings, **{name: setting})
        point, state = y, None
        for gradient in gradients:
            point, state = update(point, gradient, None, state)
        return point.sum()

    setting = torch.zeros((), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(moved(setting), setting)
    rise = moved(torch.tensor(1e-6, dtype=F64)) - moved(torch.tensor(0.0, dtype=F64))
    assert slope.item() == pytest.approx(rise.item() / 1e-6, rel=1e-4)
    assert abs(slope) > 1e-3


def test_settings_may_be_changed_between_solves() -> None:
    update, y = Optimizer(torch.optim.SGD, lr=1.0, momentum=0.9), torch.zeros(2)
    update.settings["lr"] = 0.1
    assert torch.equal(update(y, torch.ones(2), None, None)[0], torch.full((2,), 0.1))
    assert repr(update) == "Optimizer(SGD, lr=0.1, momentum=0.9)"
    update = Optimizer(torch.optim.Adam)
    assert repr(update) == "Optimizer(Adam)"
    update.settings["lr"] *= 0.5  # of torch's default
    assert repr(update) == "Optimizer(Adam, lr=0.0005)"


def test_only_what_was_given_is_shown() -> None:
    """A rate that is learned may be several numbers."""
    assert repr(Optimizer(torch.optim.AdamW, lr=0.1)) == "Optimizer(AdamW, lr=0.1)"
    rates = Optimizer(torch.optim.SGD, lr=0.1)
    rates.settings["lr"] = torch.tensor([0.1, 0.2])
    assert repr(rates) == "Optimizer(SGD, lr=tensor([0.1000, 0.2000]))"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.RMSprop, {"momentum": 0.9}),
        (torch.optim.RMSprop, {"centered": True}),
    ],
)
def test_a_setting_may_be_switched_on_between_solves(kind, settings) -> None:
    """What it remembers begins then."""
    update, y, gradient = Optimizer(kind, lr=0.1), torch.zeros(2), torch.ones(2)
    y, state = update(y, gradient, None, None)
    update.settings.update(settings)
    _, state = update(y, 2 * gradient, None, state)
    _, fresh = Optimizer(kind, lr=0.1, **settings)(y, gradient, None, None)
    assert state[0].keys() == fresh[0].keys()


class Allocations(TorchDispatchMode):
    """Counts the operations that return a new tensor."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation._schema.is_mutable
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "settings", "count"),
    [
        (torch.optim.SGD, {}, 2),  # the gradient turned to descend, and y
        (torch.optim.SGD, {"momentum": 0.9}, 3),  # and the momentum
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, 5),
        (torch.optim.Adam, {}, 7),  # both moments, g², the root with and without ε
        (torch.optim.AdamW, {}, 8),  # and y decayed
        (torch.optim.Adamax, {}, 7),
        (torch.optim.RMSprop, {}, 7),
        (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}, 10),
        (torch.optim.Adagrad, {}, 6),
        (torch.optim.Adadelta, {}, 11),
        (torch.optim.ASGD, {}, 6),
    ],
)
def test_what_a_step_allocates(kind, settings, count) -> None:
    """It is what a step of large tensors costs."""
    update, g = Optimizer(kind, lr=0.1, **settings), torch.randn(3)
    y, state = update(torch.zeros(3), g, None, None)
    with Allocations() as allocations:
        update(y, g, None, state)
    assert allocations.count <= count


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_it_conforms(kind, settings) -> None:
    testing.check_update(Optimizer(kind, **settings), torch.randn(2, 3))


def test_two_solves_at_once_do_not_share_a_memory() -> None:
    update, g = Optimizer(torch.optim.SGD, lr=1.0, momentum=0.5), torch.ones(1)
    y, state = update(torch.zeros(1), g, None, None)
    update(torch.zeros(1), 100 * g, None, None)
    for _ in range(2):  # a state is not written into
        assert update(y, g, None, state)[0].item() == 2.5


@pytest.mark.parametrize("kind", [torch.optim.Rprop, torch.optim.LBFGS])
def test_an_optimizer_that_cannot_be_unrolled(kind) -> None:
    with pytest.raises(BilevelError, match=rf"{kind.__name__} cannot .*SGD, Adam, .*Implicit"):
        Optimizer(kind, lr=0.1)


def test_an_optimizer_in_place_of_its_class() -> None:
    with pytest.raises(BilevelError, match=r"optimizer is an object \(SGD\): .* give its class"):
        Optimizer(torch.optim.SGD([torch.zeros(1)], lr=0.1))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.ASGD])
def test_the_followers_sense_says_which_way(kind) -> None:
    with pytest.raises(BilevelError, match=r'maximize=True would make y worse: .* sense = "max"'):
        Optimizer(kind, lr=0.1, maximize=True)


def test_a_misspelt_setting() -> None:
    with pytest.raises(BilevelError, match=r"no setting of SGD 'momentun': did you mean momentum"):
        Optimizer(torch.optim.SGD, lr=0.1, momentun=0.9)


class Lookup(FollowerProblem):
    """Weights of an embedding whose gradients are sparse."""

    sense = "min"

    def __init__(self) -> None:
        self.network = torch.nn.Embedding(4, 2, sparse=True)

    def init(self, batch):
        return {name: p.detach() for name, p in self.network.named_parameters()}

    def objective(self, leader, weights, batch):
        return functional_call(self.network, weights, (batch,)).square().sum()


def test_a_sparse_gradient() -> None:
    lookup, solver = Lookup(), Iterative(Optimizer(torch.optim.Adam, lr=0.1), 2)
    with pytest.raises(BilevelError, match=r"Optimizer cannot compute .*sparse.*sparse=False"):
        solver.solve(lookup, ZeroSum(torch.nn.Identity(), lookup), torch.tensor([1, 2]))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_second_moments_of_half_precision(kind) -> None:
    """They are smaller than the smallest normal number of float16."""
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float16))
    optimizer, update = kind([weight], lr=0.1), Optimizer(kind, lr=0.1)
    y, state = torch.zeros(3, dtype=torch.float16), None
    for _ in range(3):
        weight.grad = torch.full_like(weight, -0.01)
        optimizer.step()
        y, state = update(y, torch.full_like(y, 0.01), None, state)
    torch.testing.assert_close(y, weight.detach(), rtol=0.02, atol=0)
