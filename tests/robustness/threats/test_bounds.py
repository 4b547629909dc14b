"""Threat models of data with bounds of their own, or none, in place of [0, 1]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bilevel
from bilevel import BilevelError, NonFiniteError, Solver, ZeroSum, pgm
from bilevel.experiment.settings import settings_of
from bilevel.robustness import (
    APGD,
    L1,
    L2,
    Batch,
    Linf,
    Perturbation,
    RandomSampling,
    Square,
    attack,
    margin,
)
from bilevel.robustness.threats.bounds import Bounds

HOUNSFIELD = (-1000.0, 3000.0)
LOW, HIGH = torch.tensor([-3.0, 0.0, 10.0]), torch.tensor([3.0, 1e4, 11.0])


def linear(features: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 2)).double()


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def scans(count: int = 6) -> Batch:
    x = -1000 + 4000 * drawn(count, 1, 4, 4)
    x[:, :, 0] = -1000  # air, at the bound
    return Batch(x, torch.arange(count) % 2)


def rows(count: int = 50) -> Batch:
    """Rows of a table, some values at their bounds."""
    share = (1.4 * drawn(count, 3) - 0.2).clamp(0, 1)
    return Batch(LOW + share * (HIGH - LOW), torch.arange(count) % 2)


def by_hand(x: Tensor, delta: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """δ in [low − x, high − x]."""
    low, high = (torch.as_tensor(bound).to(x).expand_as(x) for bound in (low, high))
    return torch.minimum(torch.maximum(delta, low - x), high - x)


@pytest.mark.parametrize("batch", [scans(), Batch(scans().x.float(), scans().y)], ids=["64", "32"])
@pytest.mark.parametrize("bounds", [HOUNSFIELD, None])
def test_the_worst_point_of_a_ball_within_bounds(batch: Batch, bounds: Bounds | None) -> None:
    """Of a linear classifier: the corner, cut off at the bounds."""
    model = linear(16).to(batch.x.dtype)
    toward = (model[1].weight[1] - model[1].weight[0]).detach().sign()
    delta = 20 * toward.view(1, 1, 4, 4) * (1 - 2 * batch.y).view(-1, 1, 1, 1)
    expected = delta if bounds is None else by_hand(batch.x, delta, *bounds)
    for solver in (pgm(5.0, 4), APGD(steps=10)):
        found = attack(model, Linf(20.0, bounds=bounds, loss=margin), solver, batch).x
        torch.testing.assert_close(found - batch.x, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("threat", [Linf, L2])
@pytest.mark.parametrize("solver", [pgm(1.0, 3), APGD(steps=3), Square(9), RandomSampling(9)])
def test_attacks_stay_in_ball_and_bounds(threat: type[Perturbation], solver: Solver) -> None:
    """Clipped to [0, 1] they would change by as much as they are."""
    batch, ball = scans(), threat(1.0, start=1.0, loss=margin, bounds=HOUNSFIELD)
    found = attack(linear(16), ball, solver, batch).x
    assert 0 < ball.norm(found - batch.x).max() <= 1 + 1e-9
    assert found.min() >= -1000
    assert found.max() <= 3000


@pytest.mark.parametrize("kind", [Linf, L2])
def test_a_game_of_other_data(kind: type[Perturbation]) -> None:
    threat = kind(20.0, start=20.0, bounds=HOUNSFIELD)
    leader, batch, answers = ZeroSum(linear(16), threat), scans(), []
    optimizer = torch.optim.SGD(leader.parameters(), lr=1e-9)
    game = bilevel.Bilevel(leader, threat, threat.pgm(5.0, 3), leader_opt=optimizer)
    leader.model.register_forward_pre_hook(lambda _, inputs: answers.append(inputs[0]))
    game.step(batch)
    assert all(threat.norm(x.detach() - batch.x).max() <= 20 + 1e-9 for x in answers)
    bilevel.testing.check_follower(threat, leader, batch, nearest=kind is Linf)


@pytest.mark.parametrize("bounds", [(LOW, HIGH), (LOW.numpy(), HIGH.double())])
def test_each_feature_has_bounds_of_its_own(bounds: Any) -> None:
    batch, threat = rows(), Linf(0.5, bounds=bounds)
    delta = torch.randn(50, 3, dtype=torch.float64)
    expected = by_hand(batch.x, delta.clamp(-0.5, 0.5), LOW, HIGH)
    torch.testing.assert_close(threat.project(delta, batch), expected, rtol=0, atol=1e-9)
    single = Batch(batch.x.float(), batch.y)
    assert threat.project(delta.float(), single).dtype == torch.float32
    found = attack(linear(3), threat, pgm(0.2, 3), batch).x
    assert ((found >= LOW) & (found <= HIGH)).all()
    assert (found - batch.x).abs().max() == pytest.approx(0.5)


def test_another_default_device() -> None:
    with torch.device("meta"):
        assert Linf(20.0, bounds=(-1000, 3000)).bounds == HOUNSFIELD


def test_a_number_and_a_tensor() -> None:
    batch, threat = rows(), Linf(0.5, bounds=(-3, HIGH))
    expected = by_hand(batch.x, torch.full((50, 3), 0.5).double(), -3, HIGH)
    found = threat.project(torch.full((50, 3), 7.0).double(), batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_random_start_lies_within_the_bounds() -> None:
    batch, threat = rows(), Linf(0.5, start=0.5, bounds=(LOW, HIGH))
    start = batch.x + threat.init(batch)
    assert ((start >= LOW) & (start <= HIGH)).all()


@pytest.mark.parametrize(
    ("batch", "bounds", "message"),
    [
        (
            scans(),
            (-1000.0, 100.0),
            r"data lie up to 2.*e\+03 outside .* bounds that hold all data",
        ),
        (rows(), (LOW + 1, HIGH), r"data lie up to 1 outside the threat model's bounds"),
        (
            rows(),
            (LOW[:2], HIGH[:2]),
            r"a bound is of shape \(2,\) and a sample of \(3,\): .* \(F,\)",
        ),
        (rows(3), (torch.zeros(3, 3), 1e5), r"a bound is of shape \(3, 3\) and a sample of \(3,\)"),
        (
            Batch(torch.arange(6).view(2, 3), torch.arange(2)),
            None,
            r"data are torch.int64 .*give f",
        ),
        (Batch(torch.rand(2), torch.arange(2)), None, r"data are torch.float32 of shape \(2,\)"),
    ],
)
def test_data_that_are_outside(batch: Batch, bounds: Bounds | None, message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        attack(linear(3), Linf(0.1, bounds=bounds), pgm(0.1, 1), batch)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_data_that_are_not_finite(value: float) -> None:
    batch = Batch(torch.full((2, 3), value), torch.arange(2))
    with pytest.raises(NonFiniteError, match="data have values that are not finite"):
        attack(linear(3), Linf(0.1, bounds=None), pgm(0.1, 1), batch)


def test_images_have_four_dimensions_and_other_data_any() -> None:
    """A table whose values lie in [0, 1] says so by its bounds, or is an image of one row."""
    batch = Batch(torch.rand(4, 3).double(), torch.arange(4) % 2)
    with pytest.raises(BilevelError, match=r"of shape \(4, 3\): .* a table as images of one row"):
        attack(linear(3), Linf(0.1), pgm(0.1, 1), batch)
    one = attack(linear(3), Linf(0.1), pgm(0.1, 1), Batch(batch.x[:, None, None], batch.y)).x
    other = attack(linear(3), Linf(0.1, bounds=(torch.zeros(3), 1)), pgm(0.1, 1), batch).x
    torch.testing.assert_close(one[:, 0, 0], other)


@pytest.mark.parametrize(
    ("eps", "bounds", "message"),
    [
        (20.0, (0.0, 1.0), "eps is 20.0: .*8/255 rather than 8, or for other data their bounds$"),
        (20.0, (-1.0, 1), "eps is 20.0: the bounds are 2 apart, .* give ε in units of the data$"),
        (2e4, (LOW, HIGH), "eps is 20000.0: the bounds are 10000 apart"),
    ],
)
def test_a_radius_beyond_the_bounds(eps: float, bounds: Bounds, message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        Linf(eps, bounds=bounds)
    assert Linf(eps, bounds=None).eps == L2(eps, bounds=bounds).eps == eps


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (1.0, "bounds is a float: .* give .low, high."),
        ((0.0, 1.0, 2.0), "bounds is a tuple"),
        ((0.0, None), "bounds is a tuple"),
        ((torch.zeros(2), torch.ones(3)), "bounds is a tuple"),
        ((1.0, 0.0), "bounds are out of order"),
        ((0.0, torch.nan), "bounds are out of order or NaN"),
        ((LOW, LOW - 1), "bounds are out of order"),
        ((torch.zeros(2), torch.tensor([1.0, -1.0])), "bounds are out of order"),
    ],
)
@pytest.mark.parametrize("kind", [Linf, L2])
def test_what_are_no_bounds(kind: type[Perturbation], bounds: Any, message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        kind(0.1, bounds=bounds)


def test_other_bounds_are_shown() -> None:
    """And distinguish two runs."""
    assert repr(Linf(0.1, bounds=(0, 1))) == repr(Linf(0.1))
    assert "bounds=(-1.0, 1.0)" in repr(Linf(0.1, bounds=(-1, 1)))
    assert repr(Linf(0.1, bounds=(LOW, HIGH))) != repr(Linf(0.1, bounds=(LOW, HIGH + 1)))
    told = {settings_of(L2(0.1, bounds=bounds)) for bounds in ((0, 1), None, (0, 2), (LOW, HIGH))}
    assert len(told) == 4


class Forgotten(Linf):
    """A check of its own that lets all data pass, and the bounds of images."""

    def check(self, batch: Any) -> None:
        pass


class Masking(Forgotten):
    """And a projection of its own."""

    def project(self, y: Tensor, batch: Any) -> Tensor:
        return super().project(0.5 * y, batch)


class Remembered(Linf):
    def check(self, batch: Any) -> None:
        super().check(batch)
        assert len(batch.x) > 1


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("make", [float, torch.tensor])
def test_data_at_their_bounds_but_for_rounding(make: Any, *, own: bool) -> None:
    """Standardised pixels, with the bounds that mean and deviation give."""
    pixels = (torch.arange(256).float() / 255).view(4, 1, 8, 8)
    low, high = ((end - 0.1307) / 0.3081 for end in (0.0, 1.0))
    batch = Batch((pixels - 0.1307) / 0.3081, torch.arange(4) % 2)
    assert batch.x.double().max() > high
    bounds = make(low), make(high)
    threat = Forgotten(0.5, bounds=bounds) if own else Linf(0.5, bounds=bounds)
    found = attack(linear(64).float(), threat, pgm(0.25, 3), batch).x
    assert found.max() <= torch.tensor(high)
    assert found.min() >= torch.tensor(low)
    with pytest.raises(BilevelError, match=r"data lie up to .* outside"):
        attack(linear(64), threat, pgm(0.25, 3), batch._replace(x=batch.x * (1 + 1e-5)))


def test_images_at_their_bounds_but_for_rounding() -> None:
    x = torch.rand(4, 1, 4, 4).double()
    x[0, 0, 0] = 1 + 1e-7
    found = attack(linear(16), Linf(0.5), pgm(0.25, 3), Batch(x, torch.arange(4) % 2)).x
    assert found.max() <= 1


def test_bounds_that_are_changed_later() -> None:
    """They are those of the call."""
    high = HIGH.clone()
    threat = Linf(0.5, bounds=(LOW, high))
    high += 1
    assert threat.bounds is not None
    assert torch.equal(threat.bounds[1], HIGH)  # type: ignore[arg-type]


class Wide(Linf):
    bounds = (-1.0, 1.0)


@pytest.mark.parametrize("kind", [Linf, Wide])
def test_bounds_are_those_that_are_given(kind: type[Linf]) -> None:
    assert kind(0.5, bounds=(0, 1)).bounds == kind(0.5).bounds == (0.0, 1.0)
    assert kind(0.5, bounds=(-2, 2)).bounds == (-2.0, 2.0)
    assert "bounds" not in repr(kind(0.5))


@pytest.mark.parametrize("kind", [Forgotten, Masking])
def test_a_check_of_ones_own_does_not_hide_the_bounds(kind: type[Linf]) -> None:
    """The data would be clipped to [0, 1], far outside the ball."""
    with pytest.raises(
        BilevelError, match=r"images lie in \[-1000, .* give Linf, L2 or L1 their bounds="
    ):
        attack(linear(16), kind(1.0), pgm(0.5, 2), scans())
    for threat in (kind(1.0, bounds=None), Remembered(1.0, bounds=HOUNSFIELD)):
        assert (attack(linear(16), threat, pgm(0.5, 2), scans()).x - scans().x).abs().max() > 0


@pytest.mark.parametrize(
    "bounds",
    [
        (torch.tensor([0, 0]), torch.tensor([4095, 100_000])),
        (torch.tensor([0, 0]), torch.tensor([0.1, 70_000.3])),
        (0.1, torch.tensor([255, 70_001])),
        (torch.zeros(2).half(), torch.tensor([4095, 100_000])),
    ],
    ids=["integers", "integers and floats", "a number and integers", "halves and integers"],
)
def test_integers_are_bounds_as_they_are(bounds: Bounds) -> None:
    """Half precision would round 4095 and has no 100,000."""
    found = Linf(0.05, bounds=bounds).bounds
    assert found is not None
    for bound, given in zip(found, bounds, strict=True):
        assert torch.equal(bound, torch.as_tensor(given, dtype=torch.float32))


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_without_bounds_no_digit_of_delta_is_lost(kind: type[Perturbation]) -> None:
    """To large data, x + δ − x would be off by their rounding."""
    batch = Batch(torch.full((1, 4), 1e6), torch.zeros(1).long())
    delta = torch.tensor([[1e-3, -2e-3, 0.0, 3e-3]])
    assert torch.equal(kind(1.0, bounds=None).project(delta, batch), delta)
