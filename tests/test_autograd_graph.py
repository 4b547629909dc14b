"""What the graph of autograd leads to."""

from __future__ import annotations

import torch

from bilevel.autograd_graph import reached


def test_a_value_leads_to_itself() -> None:
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    assert reached([b.exp(), a], {"a": a, "b": b, "c": c}) == ["a", "b"]
