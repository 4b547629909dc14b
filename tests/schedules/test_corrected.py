"""Consensus, SymplecticAdjustment, CompetitiveGradient: against dense Jacobians, in any game."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev

from bilevel import (
    Bilevel,
    CompetitiveGradient,
    Consensus,
    Iterative,
    NonFiniteError,
    Schedule,
    Simultaneous,
    SymplecticAdjustment,
    games,
)
from bilevel.games import Game
from bilevel.updates import CNN
from tests.problems import image_game
from tests.schedules.critics import critic_game, state
from tests.schedules.general import CORRECTIONS, F64, general_game, loss, objective


def by_hand(schedule: Schedule, f: Tensor, j: Tensor, led: int, lr: float) -> Tensor:
    """G by a dense Jacobian."""
    if isinstance(schedule, Consensus):
        return f + schedule.gamma * j.T @ f
    if isinstance(schedule, SymplecticAdjustment):
        adjustment, slope = (j.T - j) @ f / 2, j.T @ f
        sign = torch.sign((f @ slope) * (adjustment @ slope) / len(f) + 0.1)
        return f + schedule.strength * sign * adjustment
    leads = torch.arange(len(f)) < led
    across = j * (leads[:, None] != leads)
    return torch.linalg.solve(torch.eye(len(f), dtype=f.dtype) + lr * across, f)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_game_that_is_not_zero_sum(name: str) -> None:
    game = general_game(CORRECTIONS[name]())
    for seed in range(5):
        batch = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)).double()
        w = torch.cat([game.leader.x, game.solver.y]).detach()

        def field(w: Tensor, batch: Tensor = batch) -> Tensor:
            x, y = w[:3], w[3:]
            return torch.cat([grad(loss)(x, y, batch), grad(objective, argnums=1)(x, y, batch)])

        g = by_hand(game.schedule, field(w), jacrev(field)(w), 3, 0.1)
        metrics = game.step(batch)
        decay = 0.5 * torch.cat([w[:3], torch.zeros(2)])
        found = torch.cat([game.leader.x, game.solver.y]).detach()
        torch.testing.assert_close(found, w - 0.1 * (g + decay), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(metrics["loss"], loss(w[:3], w[3:], batch))
        torch.testing.assert_close(metrics["objective_after"], objective(w[:3], w[3:], batch))
    assert torch.equal(game.leader.aside, torch.ones(2))  # not moved by weight decay either


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 0.05, "betas": (0.5, 0.9)}),
    ],
    ids=["momentum", "Adam"],
)
def test_networks_in_a_zero_sum_game(name: str, optimizer, options) -> None:
    """A twin's optimizers are given the corrected gradients by hand."""
    game = critic_game(CORRECTIONS[name](), optimizer, **options)
    twin = critic_game(Simultaneous(), optimizer, **options)
    players = [*twin.leader.parameters(), *twin.solver.parameters()]
    led = sum(p.numel() for p in twin.leader.parameters())
    for seed in range(4):
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))

        def field(w: Tensor, batch: Tensor = batch) -> Tensor:
            names = [*twin.trained_parameters()]
            pieces = w.split([p.numel() for p in players])
            parts = {
                n: piece.view_as(p) for n, piece, p in zip(names, pieces, players, strict=True)
            }

            def value(parts: dict[str, Tensor]) -> Tensor:
                weight, bias = parts["leader.model.weight"], parts["leader.model.bias"]
                scores = torch.tanh(batch @ weight.T + bias) @ parts["solver.y.weight"].T
                scores = scores + parts["solver.y.bias"]
                decay = parts["solver.y.weight"].square().sum() / 4
                return (scores.sin().sum(1) - decay).mean()

            slopes = grad(value)(parts)
            signs = [1 if n.startswith("leader") else -1 for n in names]
            return torch.cat([s * slopes[n].flatten() for s, n in zip(signs, names, strict=True)])

        w = torch.cat([p.detach().flatten() for p in players])
        g = by_hand(game.schedule, field(w), jacrev(field)(w), led, options["lr"])
        for p, piece in zip(players, g.split([p.numel() for p in players]), strict=True):
            p.grad = piece.view_as(p)
        twin.leader_opt.step()
        twin.solver_opt.step()
        game.step(batch)
        torch.testing.assert_close(state(game), state(twin), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_learned_attacker(name: str) -> None:
    """Its second derivatives exist, and the leader's statistics move once."""
    torch.manual_seed(0)
    leader, follower, batch = image_game()
    solver = Iterative(CNN(1, 0.1, width=4), 2)
    game = Bilevel(
        leader,
        follower,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=0.01),
        solver_opt=torch.optim.Adam(solver.parameters()),
        schedule=CORRECTIONS[name](),
    )
    before = state(game)
    first = game.step(batch)["loss"]
    assert first.isfinite()
    counts = [value for name, value in leader.named_buffers() if name.endswith("batches_tracked")]
    assert counts == [1] * len(counts) != []
    for _ in range(5):
        game.step(batch)
    assert all(p.isfinite().all() for p in state(game))
    assert not all(map(torch.equal, before, state(game)))


class Pulled(Game):
    """A quadratic of both players: ½ xᵀ S x − ½ yᵀ T y + xᵀ A y, by its coefficients."""

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        s, t, a = coefficients
        return s * x @ x / 2 - t * y @ y / 2 + a * x @ y


def pulled(s: float, t: float, a: float) -> Game:
    origin = torch.zeros(1, dtype=F64)
    return Pulled((origin, origin), *(torch.tensor(c, dtype=F64) for c in (s, t, a)))


def test_alignment_repels_from_unstable_points() -> None:
    """At s = t = −1 both players leave the origin, to which λ > 0 would draw them."""
    ends = {}
    for align in (True, False):
        schedule = SymplecticAdjustment(1.0, align=align)
        play = games.begin(pulled(-1.0, -1.0, 10.0), 1.0, 1.0, lr=0.005, schedule=schedule)
        ends[align] = games.trajectory(play, 40)[-1].norm()
    assert ends[False] < 0.1
    assert ends[True] > 10


def test_games_without_rotation_and_without_a_bond() -> None:
    """Nothing is adjusted where J is symmetric, nor answered where nobody feels the other."""
    paths = {}
    for schedule in (Simultaneous(), SymplecticAdjustment(), CompetitiveGradient()):
        play = games.begin(pulled(1.0, 0.5, 0.0), 1.0, 1.0, lr=0.1, schedule=schedule)
        paths[repr(schedule)] = games.trajectory(play, 10)
    plain, *others = paths.values()
    for other in others:
        torch.testing.assert_close(other, plain)


def test_losses_without_second_derivatives_are_not_corrected() -> None:
    """Of a bilinear loss that is cut off from the other player, F is a constant."""

    class Steep(Game):
        def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
            return x.sum() - 2 * y.sum()

    origin = torch.zeros(1, dtype=F64)
    for make in CORRECTIONS.values():
        play = games.begin(Steep((origin, origin)), 0.0, 0.0, lr=0.1, schedule=make())
        torch.testing.assert_close(games.trajectory(play, 1)[-1].tolist(), [-0.1, -0.2])


def test_the_residual_tells_an_unfinished_solve() -> None:
    """For x one iteration of two: ‖b − c M b‖, with M = I + η² A Aᵀ and b = η A Aᵀ x."""
    game = games.Bilinear(torch.diag(torch.tensor([1.0, 2.0], dtype=F64)))
    residuals = []
    for steps in (1, 2):
        schedule = CompetitiveGradient(steps, tolerance=1e-14)
        play = games.begin(game, 1.0, 0.0, lr=3.0, schedule=schedule)
        residuals.append(play.step(None)["residual"].item())
    b = torch.tensor([3.0, 12.0], dtype=F64)
    image = torch.tensor([10.0, 37.0], dtype=F64) * b
    left = b - (b @ image) / (image @ image) * image
    assert residuals[0] == pytest.approx(left.norm().item() / 5**0.5)
    assert residuals[1] < 1e-14


@pytest.mark.parametrize("lr", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_the_residual_is_as_small_as_the_tolerance_at_any_rate(lr: float, tolerance: float) -> None:
    torch.manual_seed(0)
    game = games.Bilinear(torch.randn(20, 20, dtype=F64))
    start, schedule = torch.randn(2, 20, dtype=F64), CompetitiveGradient(40, tolerance=tolerance)
    play = games.begin(game, *start, lr=lr, schedule=schedule)
    assert play.step(None)["residual"].item() <= tolerance


def test_what_is_not_finite_shows_in_the_next_step() -> None:
    class Root(Game):
        def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
            return (x.square().sum().sqrt() * y).sum()

    origin = torch.zeros(1, dtype=F64)
    for make in CORRECTIONS.values():
        play = games.begin(Root((origin, origin)), 0.0, 0.3, lr=0.1, schedule=make())
        play.step(None)
        with pytest.raises(NonFiniteError, match="parameters are NaN"):
            play.step(None)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_autocast_and_half_precision(name: str) -> None:
    """Autocast does not touch the vectors of a step, in which nothing else is rounded by it."""
    torch.manual_seed(0)
    game = games.Bilinear(torch.diag(torch.linspace(0.1, 3, 50)))
    start, ends = torch.randn(2, 50), []
    for enabled in (False, True):
        play = games.begin(game, *start, lr=0.5, schedule=CORRECTIONS[name]())
        play.follower.value = lambda x, y, a: (a.diag() * x * y).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            play.step(None)
        ends.append(games.position(play))
    torch.testing.assert_close(*ends)
    half = games.Bilinear(torch.eye(3, dtype=torch.bfloat16))
    assert (
        games.trajectory(games.begin(half, 1.0, 0.5, lr=0.1, schedule=CORRECTIONS[name]()), 2)
        .isfinite()
        .all()
    )


def test_metrics_of_a_step() -> None:
    play = games.begin(
        pulled(-1.0, -1.0, 10.0), 1.0, 1.0, lr=0.005, schedule=SymplecticAdjustment()
    )
    metrics = play.step(None)
    assert metrics["sign"] == -1
    assert metrics["field_norm"].item() == pytest.approx((9**2 + 11**2) ** 0.5)


def test_rates_are_read_in_each_step() -> None:
    play = games.begin(games.bilinear(), 1.0, 0.0, lr=0.1, schedule=CompetitiveGradient())
    for optimizer in (play.leader_opt, play.solver_opt):
        optimizer.param_groups[0]["lr"] = 1.0
    assert games.trajectory(play, 1)[-1].norm().item() == pytest.approx(0.5**0.5)
