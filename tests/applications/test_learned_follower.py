"""`applications/learned_follower.py` as a user runs it, and the parts that it is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bilevel import Alternating, Optimistic, games
from tests.applications.conftest import one_line

Part = Callable[[str], ModuleType]
LR = (0.1, 0.1)


@pytest.fixture
def part(applications: Part) -> Part:
    return lambda name: applications(f"learned_follower_lib.{name}")


@pytest.fixture
def start(part: Part) -> Any:
    family = part("random_games")
    return family.forsaken(20, family.make_generator(0), strength=(0.5, 2.0))


@pytest.fixture
def run(applications: Part, tmp_path: Path, call: Callable[..., Any]) -> Callable[..., Any]:
    app = applications("learned_follower")
    return lambda *arguments: call(app, "--smoke", "--out", tmp_path / "run", *arguments)


def test_a_run_measures_every_setting_and_is_resumed_as_it_was_begun(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    assert run().status == 0
    out = tmp_path / "run"
    assert (out / "learned_follower.png").stat().st_size > 10_000
    content = json.loads((out / "results.json").read_text())
    assert list(content) == ["config", "environment", "results"]
    records = [one for one in content["results"] if one["record"] == "play"]
    assert len({one["setting"] for one in records}) == 8
    learned = [one for one in records if one["method"] == "learned"]
    assert {one["seed"] for one in learned} == {None, 0, 1}
    assert {one["games"] for one in learned} == {8, 16}  # of one seed, and of both
    pairs = [one for one in content["results"] if one["record"] == "pair"]
    assert len({(one["alpha"], one["beta"]) for one in pairs}) == 20
    [tried] = [one for one in pairs if (one["alpha"], one["beta"]) == (0.5, 10)]
    by_hand = "forsaken", "α = 1/2, β = 10"
    [known] = [one for one in records if (one["setting"], one["method"]) == by_hand]
    assert all(known[name] == tried[name] for name in known.keys() & tried.keys() - {"record"})
    assert "is a run with step = 0.1, this one has step = 0.2" in one_line(
        run("--resume", "--step", 0.2)
    )


def test_a_run_that_is_begun_anew_leaves_no_earlier_follower_to_go_on_from(
    applications: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is stopped before it has trained the one of the second seed."""

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    app = applications("learned_follower")
    args = app.Args(iterations=1, batch=2, horizon=1, seeds=2, out=tmp_path)
    app.follower(args, 1)
    monkeypatch.setattr(app, "train", stopped)
    for resume in (True, False):
        args.resume = resume
        with pytest.raises(KeyboardInterrupt):
            app.main(args)
        assert (tmp_path / "follower-1.safetensors").exists() == resume


def test_followers_that_are_there_are_taken(applications: Part, tmp_path: Path) -> None:
    app = applications("learned_follower")
    args = app.Args(iterations=1, batch=2, horizon=1, out=tmp_path)
    first = app.follower(args, 0)
    torch.nn.init.ones_(first.last.weight)
    path = tmp_path / "follower-0.safetensors"
    app.save_weights(path, first, app.read_about(path))
    args.resume = True
    assert torch.equal(app.follower(args, 0).last.weight, first.last.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", 0], "step is 0.0: it is positive and finite; give a step above 0"),
        (["--step", "nan"], "step is nan"),
        (["--horizon", 0], "horizon is 0: it must be a whole number of at least 1; give 1, 2"),
        (["--batch", 1], "batch is 1: it must be a whole number of at least 2; give 2, 3"),
        (["--seeds", 0], "seeds is 0"),
        (["--games", -1], "games is -1"),
        (["--seed", -1], "seed is -1"),
        (["--device", "gpu"], "device 'gpu' is not available"),
        (["--game", 3], "did you mean --games?"),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., Any], tmp_path: Path, arguments: list[object], message: str
) -> None:
    assert message in one_line(run(*arguments))
    assert not (tmp_path / "run").exists()


def test_untrained_it_is_gradient_descent_ascent_to_the_last_bit(part: Part, start: Any) -> None:
    playing, updates = part("evaluation"), part("updates")
    untrained = playing.update_player(updates.ScaledGRU(0.1).double())
    for lr in (LR, (0.05, 0.02)):
        assert torch.equal(untrained(start, lr, 50), playing.play(start, lr, 50))


def test_a_leader_who_sees_the_step_makes_play_alternate(part: Part) -> None:
    """`Iterative` answers with where it went: the two take turns, and an ellipse is conserved."""
    playing, updates, family = part("evaluation"), part("updates"), part("random_games")
    start = family.bilinear(5, family.make_generator(0), strength=(2.0, 2.0))
    rule = updates.GradientDifference(0.1, 1.0, 0.0)
    turns = playing.update_player(rule, lambda one: playing.Iterative(one, 1, warm_start=True))
    at_once = playing.distances(start, playing.update_player(rule)(start, LR, 300))
    assert (at_once[-1] > 100).all()
    assert (playing.distances(start, turns(start, LR, 300)) < 1.3).all()


def test_its_moves_grow_with_the_distance_to_the_equilibrium(part: Part) -> None:
    update = trained(part)
    gradients = torch.randn(9, 4, dtype=torch.float64)
    near, far = (moves(update, scale * gradients) for scale in (1e-8, 1e3))
    torch.testing.assert_close(near * 1e11, far)


def test_each_coordinate_is_moved_by_itself(part: Part) -> None:
    update = trained(part)
    gradients = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(moves(update, gradients)[:, :2], moves(update, gradients[:, :2]))


@pytest.mark.parametrize("numbers", [(1.0, 0.0), (1.0, 1.0), (0.6, 10.0), (0.2, 3.0, 0.7)])
def test_the_predicted_factor_is_measured(part: Part, numbers: tuple[float, ...]) -> None:
    playing, updates, family = part("evaluation"), part("updates"), part("random_games")
    start = family.bilinear(3, family.make_generator(0), strength=(1.0, 1.0))
    rule = updates.GradientDifference(0.1, *numbers)
    path = playing.update_player(rule)(start, LR, 200)
    apart = path - torch.cat(start.game.equilibrium, -1)
    # A linear recurrence of order 3 is known from 6 of its terms.
    terms = apart[20:, 0, 0] / apart[20, 0, 0]
    rows = torch.stack([terms[i : i + 3] for i in range(100)])
    weights = torch.linalg.lstsq(rows, terms[3:103].unsqueeze(1), driver="gelsd").solution
    roots = torch.linalg.eigvals(companion(weights.flatten()))
    assert float(roots.abs().max()) == pytest.approx(rule.contraction(1.0), rel=1e-6)


def test_twice_the_difference_makes_one_player_as_fast_as_two_optimists(part: Part) -> None:
    one, two = (part("updates").GradientDifference(0.1, 1.0, beta) for beta in (1.0, 2.0))
    optimists = games.bilinear().factor(Optimistic(), 0.1)
    assert two.contraction(1.0) == pytest.approx(optimists, abs=1e-4)
    assert one.contraction(1.0) > 1 > optimists
    assert games.bilinear().factor(Alternating(), 0.1) == pytest.approx(1)


def test_training_bends_the_circles_inward(part: Part) -> None:
    """A second of training halves what gradient descent–ascent grows to."""
    training, playing, family = part("training"), part("evaluation"), part("random_games")
    update = part("updates").ScaledGRU(0.2).double()
    config = training.TrainingConfig(step=0.2, iterations=30, games=16, horizon=10)
    done: list[int] = []
    training.train(update, config, 0, lambda iteration, metrics: done.append(iteration))
    assert done == list(range(1, 31))
    start = family.bilinear(30, family.make_generator(7), strength=(0.5, 2.0))
    ends = [
        playing.distances(start, played(start, (0.2, 0.2), 60))[-1].median()
        for played in (playing.update_player(update), playing.schedule_player("gda"))
    ]
    assert ends[0] < 0.7 * ends[1]


def test_the_unrolled_play_is_the_played_one(part: Part, start: Any) -> None:
    update, playing = trained(part, 0.03), part("evaluation")
    unrolled = torch.stack(list(part("training").unroll(update, start, 20, 0.1)))
    played = playing.distances(start, playing.update_player(update)(start, LR, 20))[1:]
    assert (played < 30).all()
    torch.testing.assert_close(unrolled.detach(), played)


def test_a_rule_is_read_off(part: Part) -> None:
    """An update whose network does nothing is found to be gradient ascent, exactly."""
    family = part("random_games")
    start = family.bilinear(10, family.make_generator(0), strength=(0.5, 2.0), size=3)
    rule, explained = part("linear_rule").fit_rule(
        part("updates").ScaledGRU(0.1).double(), start, 20
    )
    assert explained == pytest.approx(1)
    assert rule.contraction(1.0) > 1  # of g and the last move, which are alike, any mixture


def test_factors_stop_where_digits_end_or_a_game_escapes(part: Part) -> None:
    steps = torch.arange(101, dtype=torch.float64)
    ratio = torch.stack([0.5**steps, 2.0**steps, 0.99**steps], 1).clamp(1e-15, 1e6)
    expected = torch.tensor([0.5, 2.0, 0.99], dtype=torch.float64)
    torch.testing.assert_close(part("evaluation").factors(ratio), expected)


def test_a_summary_is_of_the_horizon_the_end_and_each_step(part: Part) -> None:
    playing = part("evaluation")
    ratio = torch.tensor(
        [5 * [1.0], 5 * [7.0], [0.1, 0.2, 0.3, 0.4, 0.5], [1e-4, 1e-2, 1.0, 10.0, 1e4]]
    )
    told = playing.summary(ratio, 2)
    names = [f"{when}{part}" for when in ("horizon", "end") for part in ("_q25", "", "_q75")]
    quartiles = [told[f"distance_at_{name}"] for name in names]
    assert quartiles == pytest.approx([0.2, 0.3, 0.4, 0.01, 1, 10])
    assert told["factor"] == pytest.approx(float(playing.factors(ratio).median()))
    assert (told["converged"], told["escaped"]) == (0.2, 0.2)


def test_the_first_step_size_of_a_setting_is_the_leaders(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    playing, seen = part("evaluation"), set[tuple[float, float]]()

    def play(start: Any, lr: tuple[float, float], steps: int, *_: Any, **__: Any) -> torch.Tensor:
        seen.add(lr)
        return torch.ones(steps + 1, *start.x.shape[:1], 2)

    halved = playing.SETTINGS["bilinear, leader's step halved"]
    monkeypatch.setattr(playing, "SETTINGS", {"halved": halved})
    monkeypatch.setattr(playing, "play", play)
    rules = {0: part("updates").GradientDifference(0.2, 1.0, 1.0)}
    assert list(playing.measure(rules, rules, step=0.2, horizon=1, count=2))
    assert seen == {(0.1, 0.2)}


def test_a_rule_that_is_there_is_read_off(part: Part) -> None:
    updates, family = part("updates"), part("random_games")

    class Told(updates.GradientDifference):
        def forward(self, y: Any, gradient: Any, context: Any, state: Any) -> Any:
            y, (g, move) = super().forward(y, gradient, context, state[:2] if state else None)
            return y, (g, move, torch.ones_like(g), g)

    start = family.bilinear(10, family.make_generator(0), strength=(0.5, 2.0))
    rule, explained = part("linear_rule").fit_rule(Told(0.1, 0.5, 3.0, 0.2), start, 20)
    assert (rule.alpha, rule.beta, rule.gamma) == pytest.approx((0.5, 3.0, 0.2))
    assert explained == pytest.approx(1)


def test_a_scaled_forsaken_game_turns_by_its_strength_alone(part: Part) -> None:
    numbers = torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    game = part("random_games").Forsaken(*numbers, place=numbers - 1)
    torch.testing.assert_close(game.jacobian(), 2 * games.Forsaken().jacobian())
    residual = torch.cat(game.field(*game.equilibrium))
    torch.testing.assert_close(residual, torch.zeros_like(residual), atol=1e-14, rtol=0)


def test_the_planes_of_a_matrix_game_turn_at_speeds_of_their_own(part: Part) -> None:
    family = part("random_games")
    start = family.bilinear(20, family.make_generator(0), strength=(0.5, 2.0), size=3)
    speeds = torch.linalg.svdvals(start.game.coefficients[0])
    assert 0.5 <= speeds.min() < 0.6
    assert 1.8 < speeds.max() <= 2
    assert (speeds[:, 0] > 1.05 * speeds[:, 2]).all()


def test_play_in_training_grows_until_its_half(part: Part) -> None:
    config = part("training").TrainingConfig(step=0.1, iterations=100, games=2, horizon=50)
    assert [config.steps(iteration) for iteration in (0, 25, 50, 99)] == [10, 30, 50, 50]


def test_a_factor_is_of_the_last_step_before_rounding(part: Part) -> None:
    """The distance falls to a tenth twice; what comes then is noise, of which some is large."""
    falling = torch.tensor([1.0, 0.1, 0.01, 1e-15, 1e-11], dtype=torch.float64)
    ratio = torch.stack([falling, falling.sqrt()], 1)
    assert part("evaluation").factors(ratio).tolist() == pytest.approx([0.1, 1e-11**0.125])


def trained(part: Part, size: float = 0.5) -> Any:
    """A follower whose network says something."""
    update = part("updates").ScaledGRU(0.1).double()
    torch.nn.init.normal_(update.last.weight, std=size)
    return update


def moves(update: Any, gradients: torch.Tensor) -> torch.Tensor:
    """From zero, after each of the gradients."""
    y, state, path = torch.zeros_like(gradients[0]), None, []
    for gradient in gradients:
        y, state = update(y, gradient, None, state)
        path.append(y.detach())
    return torch.stack(path)


def companion(numbers: torch.Tensor) -> torch.Tensor:
    """The matrix of z_{n+3} = numbers · (z_n, z_{n+1}, z_{n+2})."""
    shift = torch.eye(3, dtype=numbers.dtype)[1:]
    return torch.cat([shift, numbers.unsqueeze(0)])
