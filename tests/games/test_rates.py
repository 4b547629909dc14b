"""Played games against closed forms, and the linear theory against both."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel import (
    Alternating,
    BilevelError,
    CompetitiveGradient,
    Consensus,
    Extragradient,
    Lookahead,
    Optimistic,
    ProximalPoint,
    Schedule,
    Simultaneous,
    SymplecticAdjustment,
    games,
)
from bilevel.games import rates

SCHEDULES = [
    Simultaneous(),
    Alternating(),
    Alternating(follower_steps=3),
    Extragradient(),
    Optimistic(),
    ProximalPoint(6),
    Lookahead(steps=4, alpha=0.6),
    Lookahead(Optimistic(), steps=3),
    Lookahead(Alternating(), steps=2, alpha=1.0),
    Consensus(0.4),
    SymplecticAdjustment(0.7, align=False),
    CompetitiveGradient(tolerance=1e-14),
    Lookahead(Consensus(0.2), steps=2),
]
BILINEAR = {
    "simultaneous": (Simultaneous(), lambda s: math.sqrt(1 + s**2), (0.01, 0.1, 0.5)),
    "extragradient": (Extragradient(), lambda s: math.sqrt(1 - s**2 + s**4), (0.05, 0.5, 0.9)),
    "proximal point": (ProximalPoint(14), lambda s: 1 / math.sqrt(1 + s**2), (0.05, 0.2)),
    "optimistic": (
        Optimistic(),
        lambda s: math.sqrt((1 + math.sqrt(1 - 4 * s**2)) / 2),
        (0.05, 0.2, 0.4),
    ),
    "consensus": (Consensus(0.4), lambda s: math.hypot(1 - 0.4 * s, s), (0.05, 0.2, 0.4)),
    "symplectic": (
        SymplecticAdjustment(0.4, align=False),
        lambda s: math.hypot(1 - 0.4 * s, s),
        (0.05, 0.2),
    ),
    "competitive": (CompetitiveGradient(), lambda s: 1 / math.sqrt(1 + s**2), (0.05, 0.2, 3.0)),
}
"""√(1 + η²), √(1 − η² + η⁴), 1/√(1 + η²), √((1 + √(1 − 4η²))/2), √((1 − ηγ)² + η²)."""


def radii(
    game: games.Game,
    schedule: Schedule,
    lr: rates.Rate,
    steps: int,
    away: torch.Tensor | float = 0.5,
) -> torch.Tensor:
    """Distance to the equilibrium after each step, from 1 away in x and so far away in y."""
    x, y = game.equilibrium
    play = games.begin(game, x + 1, y + away, lr=lr, schedule=schedule)
    return (games.trajectory(play, steps) - torch.cat([x, y], -1)).norm(dim=-1)


@pytest.mark.parametrize("name", BILINEAR)
@pytest.mark.parametrize("at", range(2))
def test_the_bilinear_game_over_hundreds_of_steps(name: str, at: int) -> None:
    schedule, rate, steps = BILINEAR[name]
    radius = radii(games.bilinear(), schedule, steps[at], 500)
    skipped = 200  # the second root of the optimistic step has died by then
    measured = (radius[-1] / radius[skipped]) ** (1 / (500 - skipped))
    assert measured.item() == pytest.approx(rate(steps[at]), rel=1e-6)


@pytest.mark.parametrize("name", BILINEAR)
def test_the_theory_gives_the_closed_forms(name: str) -> None:
    schedule, rate, steps = BILINEAR[name]
    for step in steps:
        assert games.bilinear().factor(schedule, step) == pytest.approx(rate(step), rel=1e-9)


def test_alternating_conserves_its_ellipse() -> None:
    step = 0.3
    path = games.trajectory(
        games.begin(games.bilinear(), 1.0, 0.0, lr=step, schedule=Alternating()), 1000
    )
    x, y = path.T
    conserved = x**2 + y**2 - step * x * y
    assert (conserved - 1).abs().max() < 1e-12
    assert games.bilinear().factor(Alternating(), step) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("mu", [0.2, 1.0])
@pytest.mark.parametrize("step", [0.1, 0.4])
def test_the_strongly_monotone_game(mu: float, step: float) -> None:
    """ρ² = (1 − ημ)² + η², least at η = μ/(1 + μ²)."""
    game = games.strongly_monotone(mu)
    radius = radii(game, Simultaneous(), step, 1000)
    rho = math.sqrt((1 - step * mu) ** 2 + step**2)
    assert (radius[1] / radius[0]).item() == pytest.approx(rho, rel=1e-12)
    assert game.factor(Simultaneous(), step) == pytest.approx(rho, rel=1e-12)
    assert game.best_step(Simultaneous()) == pytest.approx(mu / (1 + mu**2), rel=1e-6)


def test_best_steps_and_where_the_optimistic_step_diverges() -> None:
    game = games.bilinear()
    assert game.best_step(Optimistic()) == pytest.approx(0.5, rel=1e-6)
    assert game.factor(Optimistic(), 0.5) == pytest.approx(math.sqrt(0.5), rel=1e-7)
    assert game.best_step(Extragradient()) == pytest.approx(math.sqrt(0.5), rel=1e-6)
    assert game.best_step(Simultaneous()) is None
    assert game.best_step(Alternating()) is None
    assert game.best_step(CompetitiveGradient()) == math.inf  # the factor is 1/√(1 + η²)
    edge = 1 / math.sqrt(3)
    assert radii(game, Optimistic(), edge - 0.03, 600)[-1] < 1e-6
    assert radii(game, Optimistic(), edge + 0.03, 600)[-1] > 1e6


def test_the_best_step_of_a_steep_game_and_of_a_flat_one() -> None:
    assert games.bilinear(1e10).best_step(Optimistic()) == pytest.approx(0.5e-10, rel=1e-6)
    assert games.bilinear(0.0).best_step(Optimistic()) is None
    assert games.bilinear(0.0).factor(Optimistic(), 0.1) == 1
    mu = 5e-4
    best = games.strongly_monotone(mu).best_step(Simultaneous())
    assert best == pytest.approx(mu / (1 + mu**2), rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_players_rest_in_directions_that_nobody_feels(schedule: Schedule) -> None:
    """Of 2 + 3 coordinates one is in no product x A y: the other four are a game of their own."""
    square = torch.tensor([[1.0, 0.3], [-0.2, 0.8]], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    wide = games.Bilinear(torch.cat([square, torch.zeros(2, 1).double()], 1) @ turn)
    alone = games.Bilinear(square)
    assert wide.factor(schedule, 0.3) == pytest.approx(alone.factor(schedule, 0.3), rel=1e-9)
    best, wanted = wide.best_step(schedule), alone.best_step(schedule)
    assert best == (wanted and pytest.approx(wanted, rel=1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_best_extragradient_step_of_many_planes(dtype: torch.dtype) -> None:
    """1 − s² + s⁴ is the same at both ends of the spectrum where η² (σ₁² + σ₂²) = 1."""
    game = games.Bilinear(torch.diag(torch.tensor([0.5, 2.0], dtype=dtype)))
    assert game.best_step(Extragradient()) == pytest.approx(1 / math.sqrt(4.25), rel=1e-6)
    turned = games.Bilinear(torch.tensor([[1.54, -0.29], [-2.18, 0.57]], dtype=dtype))
    assert turned.best_step(Alternating()) is None


matrices = st.integers(0, 10_000).map(
    lambda seed: torch.as_tensor(np.random.default_rng(seed).uniform(-1, 1, (3, 2)))
)


@given(matrices, st.floats(0, 1), st.floats(0.02, 0.4), st.floats(0.02, 0.4))
@settings(max_examples=25)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_any_quadratic_game_goes_as_its_matrix_says(
    schedule: Schedule, matrix: torch.Tensor, mu: float, step: float, other: float
) -> None:
    """The same play in plain matrices, with a step size for each player and any equilibrium."""
    star = (torch.linspace(-1, 1, 3).double(), torch.linspace(0.5, 2, 2).double())
    game = games.Quadratic(matrix, mu, star)
    jacobian = np.block([[mu * np.eye(3), matrix.numpy()], [-matrix.numpy().T, mu * np.eye(2)]])
    np.testing.assert_allclose(game.jacobian(), jacobian, atol=1e-12)
    start = torch.cat(star) + 1
    play = games.begin(game, start[:3], start[3:], lr=(step, other), schedule=schedule)
    path = games.trajectory(play, 12).numpy() - torch.cat(star).numpy()
    sizes = np.array([step] * 3 + [other] * 2)
    for expected, seen in zip(by_hand(schedule, jacobian, sizes, path[0]), path, strict=True):
        np.testing.assert_allclose(seen, expected, atol=1e-10)


def by_hand(schedule: Schedule, jacobian: np.ndarray, sizes: np.ndarray, start: np.ndarray) -> list:
    """The positions in 12 steps, one formula a schedule."""
    move = -np.diag(sizes) @ jacobian
    path, last, anchor = [start], move @ start, start
    inner = schedule.inner if isinstance(schedule, Lookahead) else schedule
    for count in range(1, 13):
        w = path[-1]
        match inner:
            case Optimistic():
                w, last = w + 2 * move @ w - last, move @ w
            case Extragradient():
                w = w + move @ (w + move @ w)
            case ProximalPoint():
                ahead = w
                for _ in range(inner.iterations):
                    ahead = w + move @ ahead
                w = ahead
            case Alternating():
                w = w + np.r_[np.ones(3), np.zeros(2)] * (move @ w)
                for _ in range(inner.follower_steps):
                    w = w + np.r_[np.zeros(3), np.ones(2)] * (move @ w)
            case Consensus():
                w = w + move @ w - sizes * (inner.gamma * jacobian.T @ jacobian @ w)
            case SymplecticAdjustment():
                w = (
                    w
                    + move @ w
                    - sizes * (inner.strength * (jacobian.T - jacobian) / 2 @ jacobian @ w)
                )
            case CompetitiveGradient():
                f, b, c = jacobian @ w, jacobian[:3, 3:], jacobian[3:, :3]
                (s,), (t,) = {*sizes[:3]}, {*sizes[3:]}
                x = np.linalg.solve(np.eye(3) - t * s * b @ c, f[:3] - t * b @ f[3:])
                y = np.linalg.solve(np.eye(2) - t * s * c @ b, f[3:] - s * c @ f[:3])
                w = w - sizes * np.r_[x, y]
            case _:
                w = w + move @ w
        if isinstance(schedule, Lookahead) and count % schedule.steps == 0:
            w = anchor = anchor + schedule.alpha * (w - anchor)
        path.append(w)
    return path


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_factor_is_what_is_measured_in_the_end(schedule: Schedule) -> None:
    """A path grows as the spectral radius in the end, up to a constant and a power of the time."""
    generator = np.random.default_rng(0)
    uniform = lambda *shape: torch.as_tensor(generator.uniform(-1, 1, shape))  # noqa: E731
    drawn = [games.Quadratic(uniform(3, 2), generator.uniform(0.05, 1)) for _ in range(12)]
    steps, lr = 300, (0.2, 0.05)
    # A start may have next to nothing of the slowest direction; two hardly ever do.
    away = torch.tensor([[0.5, 0.5], [1.0, -0.5]]).double().repeat(len(drawn), 1)
    twice = [game for game in drawn for _ in range(2)]
    radius = radii(games.stack(twice), schedule, lr, steps, away)[-1].view(-1, 2).amax(1)
    for game, last in zip(drawn, radius, strict=True):
        factor = game.factor(schedule, lr)
        assert last.log() / steps == pytest.approx(math.log(factor), abs=6 / steps)


MEMORYLESS = [schedule for schedule in SCHEDULES if "Optimistic" not in repr(schedule)]


@pytest.mark.parametrize("schedule", MEMORYLESS, ids=repr)
def test_the_factor_is_the_spectral_radius_of_what_a_step_does_to_unit_vectors(
    schedule: Schedule,
) -> None:
    matrix, lr = torch.tensor([[0.9, -0.4], [0.2, 0.7], [-0.6, 0.3]]).double(), (0.5, 0.2)
    game, units = games.Quadratic(matrix, mu=0.3), torch.eye(5).double()
    many = games.stack([game] * 5)
    play = games.begin(many, units[:, :3], units[:, 3:], lr=lr, schedule=schedule)
    steps = schedule.steps if isinstance(schedule, Lookahead) else 1
    radius = torch.linalg.eigvals(games.trajectory(play, steps)[-1]).abs().max().item()
    assert game.factor(schedule, lr) == pytest.approx(radius ** (1 / steps), rel=1e-9)


def test_no_step_beside_the_best_one_has_a_smaller_factor() -> None:
    schedule, matrix = Alternating(follower_steps=3), torch.ones(3, 2).double()
    game = games.Quadratic(matrix, mu=0.3)
    best = game.best_step(schedule)
    beside = [game.factor(schedule, best * share) for share in (0.99, 1.01)]
    assert game.factor(schedule, best) < min(beside)


def test_flat_directions_are_those_of_a_step_up_to_rounding() -> None:
    steep = games.Quadratic(torch.zeros(1, 1).double(), mu=1e-9)
    steep.jacobian = lambda: torch.diag(torch.tensor([1e9, 1e-9], dtype=torch.float64))
    assert steep.factor(Simultaneous(), (1e-10, 1e8)) == pytest.approx(0.9, rel=1e-9)
    x = torch.tensor([[1.0, 0.3], [0.2, 0.9], [0.7, 0.1]])
    steep.jacobian = lambda: x @ x.T / 3  # in float32, of rank 2
    values = torch.linalg.eigvalsh(x.T @ x / 3)
    assert steep.factor(Simultaneous(), 1.0) == pytest.approx(1 - values.min().item(), rel=1e-4)


@pytest.mark.parametrize(("steps", "alpha"), [(3, 0.5), (2, 0.7), (5, 0.3)])
def test_a_look_ahead_leaves_the_last_displacement_as_it_is(steps: int, alpha: float) -> None:
    game, schedule = games.strongly_monotone(0.3), Lookahead(Optimistic(), steps=steps, alpha=alpha)
    play = games.begin(game, 1.0, 0.5, lr=0.4, schedule=schedule)
    path = games.trajectory(play, 60 * steps).norm(dim=1)
    measured = (path[-1] / path[20 * steps]).item() ** (1 / (40 * steps))
    assert measured == pytest.approx(game.factor(schedule, 0.4), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_step_of_the_follower_contracts(count: int) -> None:
    """Where the players spiral inwards, by the root of the determinant (1 − ημ)^(k + 1)."""
    factor = games.strongly_monotone(0.5).factor(Alternating(follower_steps=count), 0.2)
    assert factor == pytest.approx(0.9 ** ((count + 1) / 2), rel=1e-12)


def test_each_player_has_a_step_size_of_its_own() -> None:
    """On xy with steps η₁ and η₂ the factor is √(1 + η₁η₂); with curvature they are told apart."""
    factor = games.bilinear().factor(Simultaneous(), (0.2, 0.8))
    assert factor == pytest.approx(math.sqrt(1.16), rel=1e-12)
    still = games.Quadratic(torch.zeros(1, 1).double(), mu=1.0)
    assert still.factor(Simultaneous(), (0.9, 0.3)) == pytest.approx(0.7, rel=1e-12)
    assert still.factor(Simultaneous(), (0.3, 0.8)) == pytest.approx(0.7, rel=1e-12)


def test_nothing_is_claimed_of_an_unknown_schedule() -> None:
    for known in SCHEDULES:
        mine = copy.copy(known)
        mine.__class__ = type("Mine", (type(known),), {"step": Simultaneous.step})
        for schedule in (mine, Lookahead(mine)):
            with pytest.raises(BilevelError, match=r"rate of .* is not known"):
                games.bilinear().factor(schedule, 0.1)
    with pytest.raises(BilevelError, match=r"chooses a sign in each step; give align=False"):
        games.bilinear().factor(SymplecticAdjustment(1.0), 0.1)
    with pytest.raises(BilevelError, match=r"is not known: .* no linear theory"):
        games.bilinear().factor(Lookahead(Lookahead()), 0.1)


@pytest.mark.parametrize("pair", [[0.2, 0.8], np.array([0.2, 0.8]), torch.tensor([0.2, 0.8])])
def test_step_sizes_are_any_sequence_of_two(pair: rates.Rate) -> None:
    game = games.bilinear()
    assert game.factor(Simultaneous(), pair) == pytest.approx(math.sqrt(1.16), rel=1e-6)
    moved = games.trajectory(games.begin(game, 1.0, 1.0, lr=pair), 1)[1]
    torch.testing.assert_close(moved, torch.tensor([0.8, 1.8]).double())
    with pytest.raises(BilevelError, match=r"there are two players; give .* a pair"):
        games.begin(game, 1.0, 1.0, lr=[0.1, 0.2, 0.3])


@pytest.mark.parametrize("step", [0.0, -0.1, math.inf, math.nan])
def test_a_step_size_must_be_one(step: float) -> None:
    with pytest.raises(BilevelError, match="give a positive number"):
        games.bilinear().factor(Simultaneous(), step)
    with pytest.raises(BilevelError, match="give a positive number"):
        games.begin(games.bilinear(), 1.0, 0.0, lr=(0.1, step))


def test_steps_too_large_to_compute_with_diverge() -> None:
    """LAPACK would crash on a matrix that is not finite, or not return, and fail on others."""
    game = games.bilinear()
    assert game.factor(Optimistic(), lr=1e256) == math.inf
    assert game.factor(ProximalPoint(10), lr=1e100) == math.inf
    assert game.factor(Extragradient(), lr=1e300) == math.inf
