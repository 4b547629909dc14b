"""What the graph of autograd leads to."""

from __future__ import annotations

import torch

from bilevel.autograd_graph import reached


def test_a_value_leads_to_itself() -> None:
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    assert reached([b.exp(), a], {"a": a, "b": b, "c": c}) == ["a", "b"]


def test_a_long_graph_is_freed_after_it_was_searched() -> None:
    """After a walk through all of its nodes that would overflow the stack."""
    a, b = (torch.ones((), requires_grad=True) for _ in range(2))
    held, value = b.exp(), a
    for _ in range(50_000):
        value = torch.minimum(value * a, a)
    wanted = {"a": a, "b": b, "held": held, "constant": torch.ones(())}
    assert reached([value + 0 * held], wanted) == ["a", "b"]
    assert reached([value], wanted) == ["a"]
    del value
