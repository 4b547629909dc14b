"""The recipes for text, as they are printed."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from tests.recipes import example, follow

IDS, LABELS = torch.tensor([[4, 7, 9, 0], [3, 8, 0, 0]]), torch.tensor([0, 2])


def test_words_move_as_far_and_padding_does_not(tmp_path) -> None:
    """The steps of a loop by hand, on a copy of the classifier."""
    names = follow(example(tmp_path), "Perturb the embeddings of words")
    game, batch = names["robust"], {"ids": IDS, "labels": LABELS}
    model = copy.deepcopy(game.leader.model).eval()
    found = game.solver.solve(game.follower, game.leader, batch).value
    delta = torch.zeros(2, 4, 16)
    for _ in range(3):
        delta.requires_grad_()
        logits = model(model.embed(IDS) + delta, IDS > 0)
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, LABELS, reduction="sum"), delta)
        delta = delta.detach() + 0.2 * F.normalize(slope, dim=-1)
        length = delta.norm(dim=-1, keepdim=True)
        delta = torch.where(length > 0.5, 0.5 * delta / length, delta)
        delta[IDS == 0] = 0
    torch.testing.assert_close(found, delta)
    assert found.norm(dim=-1)[IDS > 0].min() > 0.3
    before = game.leader.model.embed.weight.clone()
    game.step(batch)
    assert not torch.equal(before, game.leader.model.embed.weight)


def test_adapters_are_trained_and_their_base_is_not(tmp_path) -> None:
    names = follow(example(tmp_path), "Train adapters within the solve")
    before = copy.deepcopy(names["tuned"].state_dict())

    class Weights(bilevel.LeaderProblem):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(8))

        def loss(self, y: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
            logits = torch.func.functional_call(names["tuned"], y, (batch["x"],))
            return F.cross_entropy(logits, batch["labels"])

    leader = Weights()
    sgd = torch.optim.SGD(leader.parameters(), lr=1.0)
    solver = bilevel.Iterative(bilevel.updates.Optimizer(torch.optim.AdamW, lr=0.01), steps=5)
    tuning = bilevel.Bilevel(
        leader, names["Tuning"](), solver, leader_opt=sgd, adjoint=bilevel.Unrolled()
    )
    rows = torch.arange(8)
    tuning.step({"x": torch.randn(8, 16), "labels": rows % 3, "rows": rows})
    assert leader.weights.abs().min() > 0
    for name, tensor in names["tuned"].state_dict().items():
        assert torch.equal(tensor, before[name])


def test_layers_that_are_computed_again_in_a_lent_network(tmp_path) -> None:
    names = follow(example(tmp_path), "Attention, recurrence and activation checkpointing")
    blocks = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)]
    found = []
    for network in (nn.Sequential(*blocks), names["Frugal"](*blocks)):
        lent = {n: (2 * p.detach() + 1).requires_grad_() for n, p in network.named_parameters()}
        torch.func.functional_call(network, lent, (torch.ones(2, 4),)).sum().backward()
        found.append([w.grad for w in lent.values()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
