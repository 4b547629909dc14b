"""Checks of arguments, and the constructors that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bilevel import (
    Alternating,
    BilevelError,
    Implicit,
    Iterative,
    Lookahead,
    Penalty,
    ProximalPoint,
    Sampled,
    Unrolled,
)
from bilevel.arguments import choices, count
from bilevel.updates import CNN, MLP, CoordinateRNN, Gradient

COUNTS: list[Callable[[Any], Any]] = [
    Alternating,
    ProximalPoint,
    lambda n: Lookahead(steps=n),
    lambda n: Iterative(Gradient(0.1), n),
    lambda n: Implicit(max_steps=n),
    lambda n: Penalty(1.0, steps=n),
    lambda n: Sampled(1.0, samples=n),
    lambda n: Unrolled(truncate=n),
    lambda n: Unrolled(recompute=n),
    lambda n: CNN(3, 0.1, width=n),
    lambda n: CoordinateRNN(0.1, hidden=n),
    MLP,
]


@pytest.mark.parametrize("make", COUNTS)
def test_a_number_of_things_is_a_whole_number(make: Callable[[Any], Any]) -> None:
    for wrong in (-1, 2.5, "2"):
        with pytest.raises(BilevelError, match=r"whole number of at least \d; give \d, \d"):
            make(wrong)
    # What an array holds is one too, and is kept as a number of Python.
    assert repr(make(np.int64(8))) == repr(make(8))


def test_a_seed_is_one_that_torch_takes() -> None:
    torch.Generator().manual_seed(count("seed", 2**63 - 1, least=0))
    with pytest.raises(BilevelError, match="seed is 9223372036854775808: torch takes numbers of"):
        count("seed", 2**63, least=0)


def test_a_step_is_no_parameter() -> None:
    assert Gradient(torch.tensor(0.5))(torch.zeros(1), torch.ones(1), None, None)[0].item() == 0.5
    with pytest.raises(BilevelError, match=r"Parameter that is trained: .* read one .* leader"):
        Gradient(torch.nn.Parameter(torch.tensor(0.5)))


@pytest.mark.parametrize("step", [torch.ones(2), np.ones(2), "0.1", None], ids=repr)
def test_a_step_is_one_number(step: Any) -> None:
    with pytest.raises(BilevelError, match=r"step is .*: it is one number; give one"):
        Gradient(step)


def test_choices_are_one_at_least_known_and_taken_once() -> None:
    assert choices("method", ["b", "a", "b"]) == choices("method", ["b", "a"], "ab") == ("b", "a")
    with pytest.raises(BilevelError, match="no method is given"):
        choices("method", [])
    with pytest.raises(BilevelError, match="there is no method 'pgn': did you mean pgm"):
        choices("method", ["fgsm", "pgn"], ["fgsm", "pgm"])
