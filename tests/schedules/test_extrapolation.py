"""Extragradient, Optimistic, ProximalPoint, Lookahead: any leader, follower, solver, optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    Bilevel,
    BilevelError,
    Detached,
    Extragradient,
    Iterative,
    LeaderProblem,
    Lookahead,
    Optimistic,
    Parametric,
    ProximalPoint,
    Schedule,
    Simultaneous,
    ZeroSum,
    pgm,
)
from bilevel.games import Game, begin, trajectory
from bilevel.robustness import Batch
from bilevel.updates import CNN, Gradient
from tests.problems import Nearest, Saddle, Scalar, Weights, image_game
from tests.schedules.critics import combine, critic_game, state

MAKERS: dict[str, Callable[[], Schedule]] = {
    "extragradient": Extragradient,
    "optimistic": Optimistic,
    "proximal point": lambda: ProximalPoint(3),
    "lookahead": lambda: Lookahead(steps=3),
    "lookahead around extragradient": lambda: Lookahead(Extragradient(), steps=2),
    "lookahead around optimistic": lambda: Lookahead(Optimistic(), steps=2),
}
Step = Callable[[list[Tensor]], list[Tensor]]


def plain_step(game: Bilevel, batch: Tensor) -> Step:
    """W → S(w) of the simultaneous game, with optimizers that remember."""
    plain = Simultaneous()

    def step(at: list[Tensor]) -> list[Tensor]:
        for player, value in zip(game.trained_parameters().values(), at, strict=True):
            player.copy_(value)
        plain.step(game, batch)
        return state(game)

    return step


def extragradient(step: Step, w: list[Tensor]) -> list[Tensor]:
    ahead = step(w)
    return combine((1, w), (1, step(ahead)), (-1, ahead))


def proximal_point(step: Step, w: list[Tensor]) -> list[Tensor]:
    ahead = step(w)
    for _ in range(2):
        ahead = combine((1, w), (1, step(ahead)), (-1, ahead))
    return ahead


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}),
        (torch.optim.Adam, {"lr": 0.05, "betas": (0.5, 0.9)}),
        (torch.optim.RMSprop, {"lr": 0.01}),
    ],
    ids=["SGD", "momentum", "Adam", "RMSprop"],
)
@pytest.mark.parametrize(
    ("schedule", "formula"),
    [(Extragradient(), extragradient), (ProximalPoint(3), proximal_point)],
    ids=["extragradient", "proximal point"],
)
def test_a_step_with_any_optimizer(schedule, formula, optimizer, options) -> None:
    """By definition, from the displacements of a twin whose optimizers see the same points."""
    game = critic_game(schedule, optimizer, **options)
    twin = critic_game(Simultaneous(), optimizer, **options)
    w = state(twin)
    for seed in range(4):
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        game.step(batch)
        w = formula(plain_step(twin, batch), w)
        torch.testing.assert_close(state(game), w, atol=1e-6, rtol=1e-5)


def test_optimistic_adam_as_its_authors_write_it() -> None:
    """θ ← θ − 2η m̂ₜ/(√v̂ₜ + ε) + η m̂ₜ₋₁/(√v̂ₜ₋₁ + ε) (Daskalakis et al., 2018, Alg. 1)."""
    lr, (b1, b2), eps = 0.05, (0.5, 0.9), 1e-8
    game = critic_game(Optimistic(), torch.optim.Adam, lr=lr, betas=(b1, b2), eps=eps)
    twin = critic_game(Simultaneous(), torch.optim.SGD, lr=1.0)
    w = state(twin)
    m, v, last = ([torch.zeros_like(part) for part in w] for _ in range(3))
    for t in range(1, 6):
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(t))
        game.step(batch)
        gradient = combine((1, w), (-1, plain_step(twin, batch)(w)))
        m = combine((b1, m), (1 - b1, gradient))
        v = [b2 * old + (1 - b2) * part.square() for old, part in zip(v, gradient, strict=True)]
        pairs = zip(m, v, strict=True)
        move = [lr * a / (1 - b1**t) / ((b / (1 - b2**t)).sqrt() + eps) for a, b in pairs]
        w = combine((1, w), (-2, move), (1, move if t == 1 else last))
        last = move
        torch.testing.assert_close(state(game), w, atol=1e-6, rtol=1e-5)


def test_one_iteration_and_all_of_the_way_are_simultaneous_play() -> None:
    batch = torch.randn(8, 4)
    plain = critic_game(Simultaneous(), torch.optim.Adam, lr=0.1)
    same = [ProximalPoint(1), Lookahead(steps=2, alpha=1.0), Lookahead(steps=1, alpha=1.0)]
    games = [critic_game(schedule, torch.optim.Adam, lr=0.1) for schedule in same]
    for _ in range(4):
        losses = [game.step(batch)["loss"] for game in (plain, *games)]
        assert all(torch.equal(loss, losses[0]) for loss in losses)
    for game in games:
        torch.testing.assert_close(state(game), state(plain))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("stop", range(1, 6))
def test_a_resumed_game_goes_on_bit_for_bit(name: str, stop: int, tmp_path) -> None:
    batches = torch.randn(6, 8, 4)

    def play(game: Bilevel, rows: Tensor) -> Bilevel:
        for batch in rows:
            game.step(batch)
        return game

    make = MAKERS[name]
    straight = play(critic_game(make(), torch.optim.Adam, lr=0.1), batches)
    stopped = play(critic_game(make(), torch.optim.Adam, lr=0.1), batches[:stop])
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed = critic_game(make(), torch.optim.Adam, lr=0.1)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    play(resumed, batches[stop:])
    assert all(map(torch.equal, state(resumed), state(straight)))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("learned", [False, True], ids=["pgm", "learned"])
def test_adversarial_training_runs_under_each(name: str, learned: bool) -> None:
    """Both players move; the loss that is reported is the one before the step."""
    torch.manual_seed(0)
    leader, follower, batch = image_game()
    solver = Iterative(CNN(1, 0.1, width=4), 2) if learned else pgm(0.05, 2)
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1, momentum=0.9),
        solver_opt=torch.optim.Adam(solver.parameters()) if learned else None,
        schedule=MAKERS[name](),
    )
    start = state(game)
    first = copy.deepcopy(game)
    metrics = game.step(batch)
    expected = Simultaneous().step(first, batch)["loss"]
    torch.testing.assert_close(metrics["loss"], expected)
    for _ in range(2):
        game.step(batch)
    moved = [not torch.equal(a, b) for a, b in zip(start, state(game), strict=True)]
    assert moved[0]
    assert moved[-1]


@pytest.mark.parametrize("name", MAKERS)
def test_a_game_that_is_not_zero_sum(name: str) -> None:
    follower, leader = Nearest(), Weights(3)
    game = Bilevel(
        leader,
        follower,
        pgm(0.1, 2),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        adjoint=Detached(),
        schedule=MAKERS[name](),
    )
    batch = Batch(torch.ones(4, 3), torch.zeros(4))
    for _ in range(90):
        game.step(batch)
    assert leader.w.abs().max() < 0.1


class Kept(LeaderProblem):
    """A leader that may only be positive."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def loss(self, y: Tensor, batch: Batch) -> Tensor:
        return self.w.sum() + 0 * y.sum()

    def project(self) -> None:
        self.w.data.clamp_(min=0)


@pytest.mark.parametrize("name", ["simultaneous", *MAKERS])
def test_a_leader_stays_where_it_may_be(name: str) -> None:
    leader, follower = Kept(), Nearest()
    game = Bilevel(
        leader,
        follower,
        pgm(0.1, 1),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.7),
        adjoint=Detached(),
        schedule=MAKERS.get(name, Simultaneous)(),
    )
    for _ in range(7):
        game.step(Batch(torch.ones(2, 3), torch.zeros(2)))
        assert leader.w.min() >= 0
    assert leader.w.max() == 0


class Boxed(Game):
    """f(x, y) = x·y, each player in [−1, 1]."""

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        return x @ y

    def onto(self, z: Tensor) -> Tensor:
        return z.clamp(-1, 1)


@pytest.mark.parametrize("name", MAKERS)
def test_a_start_outside_the_constraints_is_their_nearest_point(name: str) -> None:
    origin = torch.zeros(1, dtype=torch.float64)
    paths = []
    for far in (0.0, 4.0):
        game = begin(Boxed((origin, origin)), -1.0, 1.0, lr=0.1, schedule=MAKERS[name]())
        for player, away in zip(game.trained_parameters().values(), (-far, far), strict=True):
            player.add_(away)
        paths.append(trajectory(game, 4)[1:])
    torch.testing.assert_close(paths[1], paths[0])


def warm_game(schedule: Schedule) -> Bilevel:
    follower, leader = Nearest(), Weights(3)
    return Bilevel(
        leader,
        follower,
        Iterative(Gradient(0.1), 1, warm_start=True),
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.1),
        adjoint=Detached(),
        schedule=schedule,
    )


@pytest.mark.parametrize(
    "name", ["extragradient", "proximal point", "lookahead around extragradient"]
)
def test_a_solver_that_cannot_be_evaluated_twice(name: str) -> None:
    with pytest.raises(BilevelError, match=r"starts from its last answer.*Optimistic\(\)"):
        warm_game(MAKERS[name]())
    warm_game(ProximalPoint(1))  # once it can


def test_one_schedule_may_be_given_to_two_games() -> None:
    """Each game has a memory of its own."""
    schedule, batch = Optimistic(), torch.randn(8, 4)
    pair = [critic_game(schedule, torch.optim.SGD, lr=0.1) for _ in range(2)]
    for _ in range(3):
        pair[0].step(batch)
    for _ in range(3):
        pair[1].step(batch)
    assert all(map(torch.equal, state(pair[0]), state(pair[1])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProximalPoint(0), "iterations is 0"),
        (lambda: ProximalPoint(2.5), "iterations is 2.5"),
        (lambda: Lookahead(steps=0), "steps is 0"),
        (lambda: Lookahead(alpha=0.0), "alpha is 0.0"),
        (lambda: Lookahead(alpha=1.5), "alpha is 1.5"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        make()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_what_stops_a_step_leaves_the_players_where_they_were(kind: type[BaseException]) -> None:
    class Stops(Saddle):
        def objective(self, leader, y, batch):
            if y.detach().item() != 1:  # at the extrapolated point
                raise kind
            return super().objective(leader, y, batch)

    leader = ZeroSum(Scalar(1.0), Stops())
    solver = Parametric(torch.ones((), dtype=torch.float64))
    opts = [torch.optim.SGD(player.parameters(), lr=0.1) for player in (leader, solver)]
    game = Bilevel(
        leader,
        leader.follower,
        solver,
        leader_opt=opts[0],
        solver_opt=opts[1],
        schedule=Extragradient(),
    )
    with pytest.raises(kind):
        game.step(None)
    assert (leader.model.x.item(), solver.y.item()) == (1.0, 1.0)
