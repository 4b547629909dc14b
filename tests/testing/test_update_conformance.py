"""The check of updates names the requirement that is violated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel.testing import check_update
from bilevel.updates import Gradient, Update
from tests.testing.violations import PASSES, violation


class Scaled(Update):
    """Its step is a function of the gradient and a parameter."""

    def __init__(self, step: Callable[[Any, Any, Any, Any], Any]) -> None:
        super().__init__()
        self.step, self.scale = step, nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.ones(()))

    def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> Any:
        state = torch.zeros(()) if state is None else state
        return self.step(y, self.scale * gradient, context, state), state


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda y, g, c, s: y + g, PASSES),
        (lambda y, g, c, s: (y + g).double(), "Scaled gives .*float64.* where y is"),
        (lambda y, g, c, s: (y + g)[:1], r"Scaled gives .*\[1, 3\].* where y is"),
        (lambda y, g, c, s: {"y": y + g}, "Scaled gives a dict where y is a Tensor"),
        (lambda y, g, c, s: None, "Scaled gives None where y is a tensor"),
        (lambda y, g, c, s: [y + g], "Scaled gives a list where y is a tensor"),
        (lambda y, g, c, s: {"y": None}, r"Scaled gives a dict of \['y'\] where y is a tensor"),
        (lambda y, g, c, s: y.detach().add_(g.detach()) + g, "modifies its arguments"),
        (lambda y, g, c, s: y + g + c.mul_(2), "modifies its arguments"),
        (lambda y, g, c, s: y + g + s.add_(1), "modifies its arguments"),
        (lambda y, g, c, s: y + g.detach(), "does not depend on its parameters"),
        (lambda y, g, c, s: y + g / g.norm(), "NaN or infinity where the gradient is zero"),
    ],
)
def test_an_update(step: Callable[..., Any], message: str | None) -> None:
    y = torch.randn(2, 3)
    with violation(message):
        check_update(Scaled(step), y, context=torch.ones(2, 3))


def with_decay_and_noise(y: Any, gradient: Any, context: Any, state: Any) -> Any:
    parts = {n: 0.1 * (gradient[n] - 9 * y[n]) + torch.randn_like(y[n]) for n in y}
    return {name: y[name] + part for name, part in parts.items()}, state


class Drawn:
    """Noise of a generator that the check cannot rewind."""

    generator = torch.Generator()

    def __call__(self, y: Any, gradient: Any, context: Any, state: Any) -> Any:
        noise = {n: torch.randn(y[n].shape, generator=self.generator) for n in y}
        return {n: y[n] + 1e-3 * gradient[n] + 9 * noise[n] for n in y}, state


def against(y: Any, gradient: Any, context: Any, state: Any) -> Any:
    return {name: y[name] - 0.1 * gradient[name] for name in y}, state


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Gradient(0.1), PASSES),
        (with_decay_and_noise, PASSES),
        *[(Drawn(), PASSES)] * 3,
        (against, "Odd moves y against the gradient"),
        (lambda y, g, c, s: ({name: y[name] + 1 for name in y}, s), PASSES),  # anywhere
        (lambda y, g, c, s: y, "Odd returns a dict where it must return y and its state, a pair"),
        (lambda y, g, c, s: (y, s, 0), "Odd returns a tuple where it must return y and its state"),
    ],
)
def test_the_direction_of_an_update(step: Any, message: str | None) -> None:
    odd = type("Odd", (Update,), {"forward": lambda _, *arguments: step(*arguments)})
    with violation(message):
        check_update(odd(), {"a": torch.randn(2, 3), "b": torch.randn(4)})


@pytest.mark.parametrize(
    "kept",
    ["a tensor", "in place", "a count", "a cache", "a buffer", "a dict", "a list", "an object"],
)
def test_an_update_that_keeps_its_state_in_self(kept: str) -> None:
    class Own(Update):
        def __init__(self) -> None:
            super().__init__()
            self.momentum, self.steps, self.cache = torch.zeros(2, 3), 0, None
            self.register_buffer("mean", torch.zeros(2, 3))
            self.kept: dict[str, Any] = {"sum": torch.zeros(2, 3)}
            self.history, self.counter = deque([torch.zeros(2, 3)]), SimpleNamespace(taken=0)

        def forward(self, y: Tensor, gradient: Tensor, context: Any, state: Any) -> Any:
            if kept == "a buffer":
                self.mean.lerp_(gradient, 0.5)
            elif kept == "a dict":
                self.kept["sum"] = self.kept["sum"] + gradient
            elif kept == "a list":
                self.history.append(gradient)
            elif kept == "an object":
                self.counter.taken += 1
            elif kept == "a tensor":
                self.momentum = self.momentum / 2 + gradient
            elif kept == "in place":
                self.momentum += gradient
            elif kept == "a count":
                self.steps += 1
            else:
                self.cache = torch.ones_like(y)
            step = gradient / (1 + self.steps + self.counter.taken)
            step = step + self.momentum + self.mean + self.kept["sum"]
            return y + step + sum(self.history), state

    with violation(PASSES if kept == "a cache" else "Own keeps its state in self"):
        check_update(Own(), torch.randn(2, 3))


def test_an_update_is_called_with_what_is_given() -> None:
    seen, given = [], (torch.ones(3), torch.full((3,), 2.0))
    check_update(Scaled(lambda y, g, c, s: seen.append((g, c)) or y + g), torch.zeros(3), *given)
    assert all(map(torch.equal, seen[0], given))


def test_an_update_that_does_not_fit_its_own_state() -> None:
    class Grows(Update):
        def forward(self, y: Tensor, gradient: Any, context: Any, state: Any) -> Any:
            return (y if state is None else torch.cat([y, y])), True

    with pytest.raises(AssertionError, match=r"Grows with its own state gives .*\[4, 3\]"):
        check_update(Grows(), torch.randn(2, 3))


def test_the_direction_of_an_update_with_noise_that_can_be_rewound() -> None:
    class Stumbling(Update):
        def forward(self, y: Tensor, gradient: Any, context: Any, state: Any) -> Any:
            return y - gradient + torch.randn_like(y), state

    with pytest.raises(AssertionError, match="Stumbling moves y against the gradient"):
        check_update(Stumbling(), torch.randn(2, 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda gradient, state: gradient.mul_(2),
        lambda gradient, state: gradient.sign_(),  # a second time it is the same
        lambda gradient, state: gradient.mul_(2) if state is None else gradient,
    ],
)
def test_a_gradient_is_no_place_to_compute_in(change: Callable[[Any, Any], Tensor]) -> None:
    class Changing(Update):
        def forward(self, y: Tensor, gradient: Any, context: Any, state: Any) -> Any:
            return y + change(gradient, state), torch.ones(())

    with pytest.raises(AssertionError, match="Changing modifies its arguments"):
        check_update(Changing(), torch.zeros(3))
