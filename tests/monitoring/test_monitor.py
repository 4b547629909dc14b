"""`Monitor`: what it samples, keeps and costs, on games and on a network."""

from __future__ import annotations

import cmath
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bilevel
from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    CompetitiveGradient,
    Consensus,
    Extragradient,
    Lookahead,
    Optimistic,
    Parametric,
    ProximalPoint,
    Schedule,
    Simultaneous,
    SymplecticAdjustment,
    ZeroSum,
    games,
)
from bilevel.monitoring.dynamics import MIN_ROWS
from bilevel.monitoring.monitor import ROWS, SAMPLED, Monitor
from bilevel.robustness import Linf, load_images, shuffled_batches
from tests.problems import Saddle, Scalar


def bilinear(schedule: Schedule, step: float) -> Bilevel:
    saddle = Saddle()
    leader, solver = ZeroSum(Scalar(1.0), saddle), Parametric(torch.zeros((), dtype=torch.float64))
    return Bilevel(
        leader,
        saddle,
        solver,
        leader_opt=torch.optim.SGD(leader.parameters(), lr=step),
        solver_opt=torch.optim.SGD(solver.parameters(), lr=step),
        schedule=schedule,
    )


def watched(game: Bilevel, steps: int) -> Monitor:
    monitor = Monitor(game)
    for _ in range(steps):
        game.step(None)
        monitor.observe()
    return monitor


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        (Simultaneous(), None),
        (Alternating(), None),
        (Optimistic(), "Optimistic"),
        (Lookahead(), "Lookahead"),
        (ProximalPoint(3), "ProximalPoint"),
        (Extragradient(), "Extragradient"),
        (Consensus(0.1), "Consensus"),
        (SymplecticAdjustment(), "SymplecticAdjustment"),
        (CompetitiveGradient(), "CompetitiveGradient"),
    ],
    ids=repr,
)
def test_a_schedule_that_damps_is_named(schedule: Schedule, named: str | None) -> None:
    assert watched(bilinear(schedule, 0.1), 400).verdict().damping == named


def test_a_game_is_watched() -> None:
    verdict = watched(bilinear(Simultaneous(), 0.1), 400).verdict()
    assert verdict.kind == "diverging"
    assert verdict.trend == pytest.approx(math.sqrt(1.01) ** verdict.period, rel=1e-3)
    verdict = watched(bilinear(Optimistic(), 0.6), 400).verdict()  # diverges past 1/√3
    assert verdict.damping == "Optimistic"
    verdict = watched(bilinear(Alternating(), 0.1), 400).verdict()
    assert verdict.kind == "cycling"
    assert verdict.damping is None
    assert verdict.period == pytest.approx(2 * math.pi / 0.1, rel=0.001)


class Still(nn.Module):
    """A model that is moved by hand."""

    def __init__(self, numbers: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(numbers, dtype=dtype))


def monitor_of(model: nn.Module) -> Monitor:
    saddle = Saddle()
    leader = ZeroSum(model, saddle)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1)
    return Monitor(Bilevel(leader, saddle, bilevel.pgm(0.1, 0), leader_opt=optimizer))


@pytest.mark.parametrize("period", [2.5, 7.3, 90.0, 3000.0])
def test_periods_short_and_long_are_found_whatever_the_length(period: float) -> None:
    model = Still(2)
    monitor = monitor_of(model)
    phases = 2 * math.pi * torch.arange(14_000, dtype=torch.float64) / period
    with torch.no_grad():
        for point in torch.stack([phases.cos(), phases.sin()], dim=1):
            model.x.copy_(point)
            monitor.observe()
    verdict = monitor.verdict()
    assert verdict.kind == "cycling"
    assert verdict.period == pytest.approx(period, rel=0.01)
    assert verdict.radius == pytest.approx(1, rel=0.01)


def test_a_verdict_does_not_depend_on_the_default_device() -> None:
    """As after ``torch.set_default_device("cuda")``."""
    game = bilinear(Simultaneous(), 0.1)
    with torch.device("meta"):
        monitor = Monitor(game)
    for _ in range(300):
        game.step(None)
        monitor.observe()
    with torch.device("meta"):
        verdict = monitor.verdict()
    assert verdict == watched(bilinear(Simultaneous(), 0.1), 300).verdict()
    assert verdict.kind != "undecided"


def test_a_transient_does_not_decide() -> None:
    model = Still(3)
    monitor = monitor_of(model)
    with torch.no_grad():
        for t in range(1200):
            phase = torch.tensor(t / 8)
            rest = 1e4 * math.exp(-t / 30)
            model.x.copy_(torch.stack([phase.cos(), phase.sin(), torch.tensor(rest)]))
            monitor.observe()
    assert monitor.verdict().period == pytest.approx(2 * math.pi * 8, rel=0.01)


def test_the_radius_of_all_parameters_is_estimated_from_a_sample() -> None:
    model = Still(40_000)
    monitor = monitor_of(model)
    axes, _ = torch.linalg.qr(torch.randn(40_000, 2, dtype=torch.float64))
    with torch.no_grad():
        for t in torch.arange(400.0, dtype=torch.float64) / 5:
            model.x.copy_(3 * axes @ torch.stack([t.cos(), t.sin()]))
            monitor.observe()
    verdict = monitor.verdict()
    assert verdict.kind == "cycling"
    assert verdict.radius == pytest.approx(3, rel=0.2)  # 128 of 40,000


def test_each_player_is_sampled_the_small_one_wholly() -> None:
    saddle = Saddle()
    leader, solver = ZeroSum(nn.Linear(1000, 1000), saddle), Parametric(torch.zeros(7))
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (leader, solver)]
    monitor = Monitor(
        Bilevel(leader, saddle, solver, leader_opt=optimizers[0], solver_opt=optimizers[1])
    )
    monitor.observe()
    assert monitor.state_dict()["records"].shape == (1, ROWS, SAMPLED + 7)


class Largest(TorchDispatchMode):
    """The largest tensor that an operation made, and the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.operations = 0, set[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.add(func.name())
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_an_observation_copies_a_sample_and_waits_for_nothing() -> None:
    monitor = monitor_of(nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 500)))
    with Largest() as seen:
        for _ in range(5):
            monitor.observe()
    assert seen.numbers <= SAMPLED
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_to_copy", "aten::equal"}
    assert seen.operations
    assert not seen.operations & waits


def test_each_record_holds_the_iterates_at_its_stride() -> None:
    monitor, steps = monitor_of(model := Still(1)), 4 * ROWS + 1003
    with torch.no_grad():
        for step in range(steps):
            model.x.fill_(step)
            monitor.observe()
    for level, record in enumerate(monitor.state_dict()["records"]):
        stride = 4**level
        rows = torch.arange(steps)[::stride]
        newest = rows[-ROWS:]
        assert torch.equal(record[newest // stride % ROWS, 0], newest.double())
        judged = newest[newest >= steps / 4]  # the first quarter of the run is left out
        assert torch.equal(monitor._window(level)[:, 0], judged.double())
    assert level == 2


def test_what_is_said_to_be_needed_is_needed() -> None:
    monitor = monitor_of(Still(2))
    needed = monitor.verdict().needed
    assert needed is not None
    for _ in range(needed - 1):
        monitor.observe()
    assert monitor.verdict().kind == "undecided"
    monitor.observe()
    assert monitor.verdict().kind == "converging"


def test_the_records_stay_small_however_long_the_run() -> None:
    monitor = monitor_of(Still(2))
    for _ in range(4 * ROWS + 1):
        monitor.observe()
    assert monitor.state_dict()["records"].shape == (3, ROWS, 2)


def test_watching_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    model = Still(1000)
    monitor = monitor_of(model)
    for _ in range(MIN_ROWS * 2):
        monitor.observe()
    monitor.verdict()
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


@pytest.mark.parametrize("cut", [100, ROWS, ROWS + 301])
def test_a_resumed_run_goes_on(cut: int) -> None:
    game = bilinear(Alternating(), 0.1)
    monitor = watched(game, cut)
    file = io.BytesIO()
    torch.save(monitor.state_dict(), file)
    file.seek(0)
    resumed = Monitor(game)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(300):
        game.step(None)
        monitor.observe()
        resumed.observe()
    state, expected = resumed.state_dict(), monitor.state_dict()
    assert state["steps"] == expected["steps"] == cut + 300
    assert torch.equal(state["records"], expected["records"])
    assert resumed.verdict() == monitor.verdict()


def test_a_kept_state_does_not_go_on() -> None:
    monitor = monitor_of(model := Still(2))
    state = monitor.state_dict()
    other = monitor_of(model)
    other.load_state_dict(state)
    nn.init.ones_(model.x)
    other.observe()
    assert not state["records"].any()


@pytest.mark.parametrize(("size", "other"), [(2, 3), (300, 500)])  # as many are watched of both
def test_a_state_of_other_players_is_refused(size: int, other: int) -> None:
    with pytest.raises(BilevelError, match="written for other players"):
        monitor_of(Still(other)).load_state_dict(monitor_of(Still(size)).state_dict())


def test_a_game_that_nobody_plays_is_refused() -> None:
    game = bilinear(Simultaneous(), 0.1)
    game.leader.requires_grad_(False)
    game.solver.requires_grad_(False)
    with pytest.raises(BilevelError, match="leave the monitor out"):
        Monitor(game)


def test_parameters_of_several_kinds_are_watched() -> None:
    model = nn.ModuleList(
        [
            nn.Linear(3, 2, dtype=torch.bfloat16),
            nn.Conv2d(2, 8, 3).to(memory_format=torch.channels_last),
        ]
    )
    monitor = monitor_of(model)
    monitor.observe()
    row = monitor.state_dict()["records"][0, 0]
    assert row.dtype == torch.float32
    every = torch.cat([p.detach().float().flatten() for p in model.parameters()])
    assert torch.isin(row, every).all()


def test_a_complex_number_moves_in_a_plane() -> None:
    model = nn.ParameterList([torch.zeros(1, dtype=torch.complex64), torch.ones(1)])
    monitor = monitor_of(model)
    for step in range(400):
        model[0].data.fill_(2 * cmath.exp(0.1j * step))
        monitor.observe()
    verdict = monitor.verdict()
    assert (verdict.kind, verdict.period) == ("cycling", pytest.approx(20 * math.pi, rel=1e-4))
    assert verdict.radius == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_a_network_in_training_raises_no_alarm(seed: int, momentum: float) -> None:
    torch.manual_seed(seed)
    data = load_images("digits", ".", seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    follower = Linf(0.1)
    leader = ZeroSum(model, follower)
    optimizer = torch.optim.SGD(leader.parameters(), lr=0.1, momentum=momentum)
    game = Bilevel(leader, follower, bilevel.pgm(0.1, 0), leader_opt=optimizer)
    monitor = Monitor(game)
    kinds = []
    for epoch in range(12):
        for batch in shuffled_batches(data.train, 32, seed=seed, epoch=epoch):
            game.step(batch)
            monitor.observe()
        kinds.append(monitor.verdict().kind)
    assert set(kinds[4:]) == {"converging"}
    assert "undecided" in kinds[:4]


def test_a_game_of_the_suite_is_played_before_it_is_watched() -> None:
    with pytest.raises(BilevelError, match=r"game is a Bilinear: .* give the Bilevel"):
        Monitor(bilevel.games.bilinear())


def test_the_coordinates_that_move_may_come_late() -> None:
    """Of 400 each player the first 200 rest, which are more than are observed."""
    matrix = torch.diag((torch.arange(400) >= 200).double())
    game = games.begin(games.Bilinear(matrix), 1.0, 0.0, lr=0.1, schedule=Alternating())
    verdict = watched(game, 400).verdict()
    assert verdict.kind == "cycling"
    assert verdict.period == pytest.approx(2 * math.pi / 0.1, rel=0.001)
