"""The recipe that accumulates gradients, as it is printed."""

from __future__ import annotations

import copy

import torch
from torch import nn

import bilevel
from bilevel.robustness import Batch
from tests.recipes import example, flat, follow


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path) -> None:
    names = follow(example(tmp_path), "Accumulate gradients")
    whole, x = names["leader"], torch.rand(16, 3, 8, 8)
    parts, y = copy.deepcopy(whole), torch.arange(16) % 4
    optimizers = [torch.optim.SGD(leader.parameters(), lr=0.1) for leader in (whole, parts)]
    optimizers[1] = names["Accumulated"](optimizers[1], every=4)
    games = [
        bilevel.Bilevel(leader, leader.follower, bilevel.pgm(0.01, 2), leader_opt=optimizer)
        for leader, optimizer in zip((whole, parts), optimizers, strict=True)
    ]
    for _ in range(2):
        games[0].step(Batch(x, y))
        for part in range(4):
            games[1].step(Batch(x[4 * part : 4 * part + 4], y[4 * part : 4 * part + 4]))
    torch.testing.assert_close(flat(parts), flat(whole))


def test_both_players_move_once_their_gradients_are_accumulated(tmp_path) -> None:
    names = follow(example(tmp_path), "Accumulate gradients")
    before = [flat(names[player]) for player in ("leader", "solver")]
    for part, (x, y) in enumerate(names["loader"]):
        names["game"].step(Batch(x, y))
        after = [flat(names[player]) for player in ("leader", "solver")]
        assert [*map(torch.equal, after, before)] == [part < 3, part < 3]


class Experts(bilevel.LeaderProblem):
    """Two layers, of which each batch names those that it uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))

    def loss(self, y, batch):
        x, used = batch
        return sum(self.layers[layer](x).square().mean() for layer in used)


class Nothing(bilevel.FollowerProblem):
    sense = "min"

    def init(self, batch):
        return torch.zeros(1)

    def objective(self, leader, y, batch):
        return y.square().sum()


def test_accumulated_gradients_are_clipped_once_and_resumed(tmp_path) -> None:
    """Against the loop by hand; the second layer is used by some parts only, never by the last."""
    names = follow(example(tmp_path), "Clip gradients")
    clip, accumulated = names["clip"], follow(names, "Accumulate gradients")["Accumulated"]

    def build() -> bilevel.Bilevel:
        leader = Experts()
        optimizer = torch.optim.SGD(leader.parameters(), lr=0.1, momentum=0.9)
        optimizer.register_step_pre_hook(clip)
        return bilevel.Bilevel(
            leader,
            Nothing(),
            bilevel.Iterative(bilevel.updates.Gradient(0.1), 1),
            leader_opt=accumulated(optimizer, every=4),
            adjoint=bilevel.Detached(),
        )

    batches = [(3 * torch.randn(5, 3), (0,) if part % 4 == 3 else (0, 1)) for part in range(12)]
    game, by_hand = build(), Experts()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    for part, batch in enumerate(batches):
        if part == 6:  # in the middle of an accumulation
            torch.save(game.state_dict(), tmp_path / "run.pt")
            game = build()
            game.load_state_dict(torch.load(tmp_path / "run.pt"))
        game.step(batch)
        (by_hand.loss(None, batch) / 4).backward()
        if part % 4 == 3:
            assert nn.utils.clip_grad_norm_(by_hand.parameters(), max_norm=1.0) > 1.5
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(flat(game.leader), flat(by_hand))
