"""The games: equilibria, projections, many at once, and what becomes of whom."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from bilevel import (
    Alternating,
    BilevelError,
    Extragradient,
    Iterative,
    Lookahead,
    Optimistic,
    ProximalPoint,
    Schedule,
    Simultaneous,
    SymplecticAdjustment,
    games,
    testing,
)
from bilevel.games import bilinear, stack
from bilevel.updates import Gradient

SCHEDULES = [
    Simultaneous(),
    Alternating(),
    Extragradient(),
    Optimistic(),
    ProximalPoint(3),
    Lookahead(steps=3),
]
ROCK_PAPER_SCISSORS = torch.tensor([[0, 1, -1], [-1, 0, 1], [1, -1, 0]], dtype=torch.float64)


def random_game(kind: str, generator: np.random.Generator) -> games.Game:
    def uniform(*shape: int) -> Tensor:
        return torch.as_tensor(generator.uniform(-1, 1, shape))

    match kind:
        case "bilinear":
            return games.bilinear(generator.uniform(0.5, 2))
        case "quadratic":
            return games.Quadratic(uniform(3, 2), generator.uniform(), (uniform(3), uniform(2)))
        case "forsaken":
            return games.Forsaken()
        case "dirac-gan":
            return games.DiracGAN()
    return games.MatrixGame(uniform(3, 2))


KINDS = ("bilinear", "quadratic", "forsaken", "dirac-gan", "simplex")


@pytest.mark.parametrize("kind", KINDS)
def test_an_equilibrium_is_one(kind: str) -> None:
    """Where it stands, no player gains by another choice nearby, and a solver may rely on it."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        game = random_game(kind, generator)
        x, y = game.equilibrium
        step = 1e-3
        slopes = game.field(x, y)
        for here, slope in zip((x, y), slopes, strict=True):
            torch.testing.assert_close(game.onto(here - step * slope), here, atol=1e-9, rtol=0)
    testing.check_follower(game, games.begin(game, x, y, lr=0.1).leader, None)


def test_forsaken_has_the_equilibrium_of_its_paper() -> None:
    x, y = games.Forsaken().equilibrium
    assert x.item() == pytest.approx(0.0780, abs=5e-5)
    assert y.item() == pytest.approx(0.4119, abs=5e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_forsaken_circles_from_afar_and_arrives_from_nearby(schedule: Schedule) -> None:
    game = games.Forsaken()
    star = torch.cat(game.equilibrium)
    starts = torch.tensor([[[1.0], [0.1]], [[1.0], [0.4]]])
    play = games.begin(games.stack([game, game]), *starts, lr=0.1, schedule=schedule)
    far, near = games.trajectory(play, 800).unbind(1)
    turn = (far[-300:] - star).norm(dim=1)
    assert 0.8 < turn.min() < 1.0 < 1.8 < turn.max() < 2.0
    assert (near[-1] - star).norm() < 0.03


def test_the_dirac_gan_has_the_value_of_its_paper() -> None:
    """L = f(xy) + f(0) with f(t) = −log(1 + exp(−t)): at the equilibrium −2 log 2."""
    gan, (x, y) = games.DiracGAN(), torch.randn(2, 1, dtype=torch.float64)
    logistic = torch.nn.functional.logsigmoid
    torch.testing.assert_close(gan.value(x, y), (logistic(x * y) + logistic(0 * y))[0])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_dirac_gan_arrives_where_it_is_predicted(schedule: Schedule) -> None:
    """It moves in a plane like the bilinear game with coefficient ½, once it is near."""
    game = games.DiracGAN()
    torch.testing.assert_close(
        game.jacobian(), torch.tensor([[0, 0.5], [-0.5, 0]], dtype=torch.float64)
    )
    path = games.trajectory(games.begin(game, 0.5, 0.5, lr=0.5, schedule=schedule), 600)
    if game.factor(schedule, 0.5) < 1 - 1e-9:
        assert path[-1].norm() < 1e-2
    else:
        assert path[-1].norm() > 0.5


def test_rock_paper_scissors_needs_the_look_ahead() -> None:
    game = games.MatrixGame(ROCK_PAPER_SCISSORS)
    torch.testing.assert_close(game.equilibrium[0], torch.full((3,), 1 / 3).double())
    starts = ([0.6, 0.3, 0.1], [0.2, 0.7, 0.1])
    for schedule in SCHEDULES:
        play = games.begin(game, *starts, lr=0.3, schedule=schedule)
        path = games.trajectory(play, 500)
        assert path.min() >= 0
        torch.testing.assert_close(path[:, :3].sum(1), torch.ones(501).double())
        away = (path[-50:] - 1 / 3).norm(dim=1).min()
        assert (away > 0.3) == (type(schedule) in (Simultaneous, Alternating)), schedule
        assert away > 0.3 or away < 1e-5


class Boxed(games.Game):
    """Of ours: x = 1 is as near to 2 as it may come."""

    def __init__(self) -> None:
        super().__init__((torch.ones(1), torch.full((1,), 0.5)))

    def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
        return ((x - 2) ** 2 + x * y - y**2).sum()

    def onto(self, z: Tensor) -> Tensor:
        return z.clamp(-1, 1)


class Multiplier(Boxed):
    """Of which y alone is constrained."""

    onto = games.Game.onto

    def project(self, y: Tensor, batch: Any) -> Tensor:
        return y.clamp(min=0)


@pytest.mark.parametrize("game", [Boxed(), Multiplier(), games.MatrixGame(ROCK_PAPER_SCISSORS)])
def test_the_linear_theory_claims_nothing_of_constrained_games(game: games.Game) -> None:
    assert game.factor(Simultaneous(), 0.1) is None
    assert game.best_step(Extragradient()) is None


@pytest.mark.parametrize("seed", range(5))
def test_steps_on_simplices_are_projected_where_they_are_by_definition(seed: int) -> None:
    """Each player is projected before anybody looks at it; large steps, so that it matters."""
    generator = np.random.default_rng(seed)
    game, step = random_game("simplex", generator), 1.5
    (matrix,) = game.coefficients
    starts = [game.onto(torch.as_tensor(generator.uniform(0, 1, n))) for n in matrix.shape]
    paths = {
        schedule: games.trajectory(games.begin(game, *starts, lr=step, schedule=schedule), 6)
        for schedule in (Simultaneous(), Alternating(), Extragradient())
    }

    def descend(base: list[Tensor], at: list[Tensor]) -> list[Tensor]:
        x, y = at
        return [game.onto(base[0] - step * matrix @ y), game.onto(base[1] + step * x @ matrix)]

    for schedule, path in paths.items():
        w = starts
        for row in path[1:]:
            if isinstance(schedule, Extragradient):
                w = descend(w, descend(w, w))
            elif isinstance(schedule, Alternating):
                w = [descend(w, w)[0], w[1]]
                w = [w[0], descend(w, w)[1]]
            else:
                w = descend(w, w)
            torch.testing.assert_close(row, torch.cat(w))


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_the_projection_onto_the_simplex_is_the_nearest_point(numbers: list[float]) -> None:
    z = torch.tensor(numbers, dtype=torch.float64)
    game = games.MatrixGame(torch.zeros(2, 2).double())
    point = game.onto(z)
    assert point.min() >= 0
    assert point.sum().item() == pytest.approx(1)
    found = minimize(
        lambda w: ((w - z.numpy()) ** 2).sum(),
        np.full(len(z), 1 / len(z)),
        bounds=[(0, None)] * len(z),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )
    assert ((point - z) ** 2).sum() <= found.fun + 1e-6
    torch.testing.assert_close(game.onto(torch.stack([z, z])), torch.stack([point, point]))


def test_an_equilibrium_of_whole_numbers() -> None:
    game = games.Quadratic(torch.eye(2).double(), 0.5, (torch.tensor([1, 2]), torch.tensor([0, 0])))
    assert games.begin(game, 0.0, 0.0, lr=0.5).step(None)["loss"] == 0.5 / 2 * 5


def test_the_projection_of_nan_is_nan() -> None:
    game = games.MatrixGame(torch.eye(3))
    assert game.onto(torch.tensor([math.nan, 1.0, 0.0])).isnan().any()


def test_a_point_far_from_the_simplex_is_projected_too() -> None:
    game = games.MatrixGame(torch.eye(3))
    assert game.onto(torch.tensor([3e8, 1.0, 2.0])).tolist() == [1, 0, 0]
    assert game.onto(torch.tensor([1e9, 1e9, 0.0])).tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_many_games_at_once_are_the_games_one_by_one(kind: str, schedule: Schedule) -> None:
    generator = np.random.default_rng(1)
    single = [random_game(kind, generator) for _ in range(5)]
    starts = [
        [game.onto(torch.as_tensor(generator.uniform(0, 1, len(z)))) for z in game.equilibrium]
        for game in single
    ]
    paths = [
        games.trajectory(games.begin(game, x, y, lr=(0.05, 0.1), schedule=schedule), 20)
        for game, (x, y) in zip(single, starts, strict=True)
    ]
    x, y = (torch.stack(part) for part in zip(*starts, strict=True))
    play = games.begin(games.stack(single), x, y, lr=(0.05, 0.1), schedule=schedule)
    torch.testing.assert_close(
        games.trajectory(play, 20), torch.stack(paths, 1), atol=1e-13, rtol=1e-13
    )


@pytest.mark.parametrize(
    "wrap", [lambda schedule: schedule, Lookahead, lambda schedule: Lookahead(Lookahead(schedule))]
)
def test_games_at_once_have_no_common_sign(wrap: Callable[[Schedule], Schedule]) -> None:
    stacked = games.stack([games.bilinear(), games.bilinear(2.0)])
    with pytest.raises(BilevelError, match="one sign for all stacked games"):
        games.begin(stacked, 1.0, 1.0, lr=0.1, schedule=wrap(SymplecticAdjustment()))
    games.begin(stacked, 1.0, 1.0, lr=0.1, schedule=wrap(SymplecticAdjustment(align=False)))
    games.begin(games.bilinear(), 1.0, 1.0, lr=0.1, schedule=wrap(SymplecticAdjustment()))


def test_a_thousand_games_at_once() -> None:
    generator = np.random.default_rng(2)
    single = [random_game("quadratic", generator) for _ in range(1000)]
    play = games.begin(games.stack(single), 1.0, 0.5, lr=0.1, schedule=Extragradient())
    ends = games.trajectory(play, 10)[-1]
    for at in range(0, 1000, 111):
        alone = games.begin(single[at], 1.0, 0.5, lr=0.1, schedule=Extragradient())
        torch.testing.assert_close(games.trajectory(alone, 10)[-1], ends[at])


def test_a_solver_answers_from_the_start_of_its_own_game() -> None:
    """After two steps of ½ from y₀ the answer is y₀ + x, and x moves by −η times that."""
    saddle = games.bilinear()
    begun = [
        games.begin(saddle, 1.0, y, lr=0.1, solver=Iterative(Gradient(0.5), 2)) for y in (0.0, 2.0)
    ]
    for game, moved in zip(begun, (0.9, 0.7), strict=True):
        assert game.step(None)["loss"].item() == pytest.approx(10 * (1 - moved))
        assert game.leader.model.x.item() == pytest.approx(moved)


def test_a_start_outside_is_brought_inside() -> None:
    play = games.begin(games.MatrixGame(ROCK_PAPER_SCISSORS), 1.0, [3.0, 0.0, 0.0], lr=0.1)
    torch.testing.assert_close(
        games.position(play), torch.tensor([1 / 3] * 3 + [1, 0, 0], dtype=torch.float64)
    )


def test_what_is_no_game() -> None:
    for game in (games.Bilinear, games.Quadratic, games.MatrixGame):
        for shape in ((0, 3), (3,)):
            with pytest.raises(BilevelError, match="both from 1 on"):
                game(torch.zeros(shape))
        with pytest.raises(BilevelError, match="give a matrix of finite numbers"):
            game(torch.tensor([[1.0, float("nan")]]))
        with pytest.raises(BilevelError, match="matrix is a list: it takes"):
            game([[1.0]])
    with pytest.raises(BilevelError, match="cannot be stacked"):
        games.stack([games.bilinear(), games.DiracGAN()])
    one, other = games.bilinear(), games.bilinear()
    one.mask = torch.ones(1)
    with pytest.raises(BilevelError, match=r"differ in mask cannot be stacked: .* as coeff"):
        games.stack([one, other])
    with pytest.raises(BilevelError, match="differ in mask"):
        games.stack([other, one])
    other.mask = torch.ones(1)
    mask = torch.ones(2)
    for same, another in ((mask, 0 * mask), (np.ones(2), np.eye(2)), ([mask], [0 * mask])):
        one.mask, other.mask = same, copy.deepcopy(same)
        stacked = games.stack([one, other])
        other.mask = another
        with pytest.raises(BilevelError, match="differ in mask"):
            games.stack([one, other])
    with pytest.raises(BilevelError, match="a stack of 2 games cannot be stacked"):
        games.stack([stacked, stacked])
    with pytest.raises(BilevelError, match="cannot be stacked"):
        games.stack([])
    with pytest.raises(BilevelError, match=r"the start has shape \(3,\)"):
        games.begin(games.bilinear(), [1.0, 2.0, 3.0], 0.0, lr=0.1)


def test_a_game_is_played_for_one_number() -> None:
    class Vector(games.Game):
        def value(self, x: Tensor, y: Tensor, *coefficients: Tensor) -> Tensor:
            return x * y

    game = Vector((torch.zeros(2), torch.zeros(2)))
    for one in (game, games.stack([game, game])):
        with pytest.raises(BilevelError, match="gradients need one number"):
            games.begin(one, 1.0, 1.0, lr=0.1).step(None)
    with pytest.raises(BilevelError, match="gradients need one number"):
        game.factor(Simultaneous(), 0.1)


def test_stacked_games_have_no_common_jacobian() -> None:
    stacked = stack([bilinear(1.0), bilinear(2.0)])
    for ask in (
        stacked.jacobian,
        lambda: stacked.factor(Simultaneous(), 0.1),
        lambda: stacked.best_step(Simultaneous()),
    ):
        with pytest.raises(BilevelError, match="2 stacked games have different Jacobians"):
            ask()


@pytest.mark.parametrize(("size", "offset"), [(1e-10, 0.0), (1e20, 0.0), (1.0, 1e6)])
def test_an_equilibrium_does_not_depend_on_what_payoffs_are_measured_in(
    size: float, offset: float
) -> None:
    matrix = torch.tensor([[3.0, -1.0], [-2.0, 1.0]], dtype=torch.float64)
    x, y = games.MatrixGame(size * matrix + offset).equilibrium
    torch.testing.assert_close(x, torch.tensor([3 / 7, 4 / 7]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(y, torch.tensor([2 / 7, 5 / 7]).double(), rtol=0, atol=1e-6)


def test_a_matrix_without_an_equilibrium() -> None:
    with pytest.raises(BilevelError, match="give a matrix of finite numbers"):
        games.MatrixGame(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]))
