"""Random sampling, where the adversarial share of the ball is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilevel import BilevelError, FollowerProblem, ZeroSum, testing
from bilevel.robustness import Batch, Linf, RandomSampling, attack
from bilevel.robustness.threats.losses import margin
from tests.problems import image_game
from tests.robustness.attacks.linear import LinearClassifier

EPS = 0.2


def one_pixel() -> LinearClassifier:
    """Only the first pixel decides."""
    w = torch.zeros(1, 4, 4)
    w[0, 0, 0] = 2.0
    return LinearClassifier(w)


@pytest.mark.parametrize("distance", [0.02, 0.1, 0.18])
@pytest.mark.parametrize("points", [1, 5])
def test_as_many_images_break_as_the_share_of_the_ball_says(distance: float, points: int) -> None:
    """A uniform point breaks an image with probability (ε − distance) / 2ε, of n one does."""
    count, model = 4000, one_pixel()
    batch = Batch(torch.full((count, 1, 4, 4), 0.5 + distance), torch.ones(count).long())
    follower = Linf(EPS, start=EPS, loss=margin)
    images = attack(model, follower, RandomSampling(points), batch).x
    broken = (model(images).argmax(1) != batch.y).double().mean()
    expected = 1 - (1 - (EPS - distance) / (2 * EPS)) ** points
    deviation = (expected * (1 - expected) / count) ** 0.5
    assert abs(broken - expected) < 4 * deviation


def test_the_best_of_its_points() -> None:
    """The maximum of n uniform numbers has mean ε(n − 1)/(n + 1)."""
    batch = Batch(torch.full((4000, 1, 4, 4), 0.5), torch.zeros(4000).long())
    follower = Linf(EPS, start=EPS, loss=margin)
    answer = RandomSampling(9).solve(follower, ZeroSum(one_pixel(), follower), batch).value
    assert answer[:, 0, 0, 0].mean().item() == pytest.approx(0.8 * EPS, rel=0.01)
    assert abs(answer[:, 0, 1:].mean().item()) < 0.01 * EPS


def test_it_takes_one_forward_pass_a_point_and_no_gradient() -> None:
    class Counting(LinearClassifier):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            assert not torch.is_grad_enabled()
            return super().forward(x)

    batch = Batch(torch.rand(3, 1, 4, 4), torch.zeros(3).long())
    follower = Linf(EPS, start=EPS)
    leader = ZeroSum(Counting(torch.randn(1, 4, 4)), follower)
    solution = RandomSampling(7).solve(follower, leader, batch, evaluate=False)
    assert solution.evaluations == Counting.calls == 7


def test_it_keeps_what_a_game_relies_on() -> None:
    leader, _, batch = image_game()
    testing.check_solver(RandomSampling(5), Linf(0.1, start=0.1), leader, batch)


def test_a_follower_that_does_not_start_at_random() -> None:
    leader, follower, batch = image_game()
    with pytest.raises(BilevelError, match=r"same point each time: .* Linf\(eps, start=eps\)"):
        RandomSampling(2).solve(follower, leader, batch)


@pytest.mark.parametrize("points", [2, 11, 100_000])
def test_it_complains_before_it_has_drawn_all(points: int) -> None:
    class Counted(Linf):
        draws = 0

        def init(self, batch: Batch) -> Tensor:
            self.draws += 1
            return super().init(batch)

    leader, _, batch = image_game()
    follower = Counted(0.1)
    with pytest.raises(BilevelError, match="same point each time"):
        RandomSampling(points).solve(follower, leader, batch)
    assert follower.draws == min(points, 11)


def test_starts_that_repeat_by_chance() -> None:
    """One of two corners: the first draws are equal more often than not."""

    class Corner(Linf):
        def init(self, batch: Batch) -> Tensor:
            return next(draws).expand_as(batch.x)

    model, batch = one_pixel(), Batch(torch.full((3, 1, 4, 4), 0.5), torch.zeros(3).long())
    threat, draws = Corner(EPS, loss=margin), iter(EPS * torch.tensor([-1.0, -1, -1, 1, -1]))
    answer = attack(model, threat, RandomSampling(5), batch).x - batch.x
    torch.testing.assert_close(answer, torch.full_like(answer, EPS))
    draws = iter(-EPS * torch.ones(5))
    with pytest.raises(BilevelError, match="same point each time"):
        attack(model, threat, RandomSampling(5), batch)


def test_a_batch_without_images() -> None:
    leader, _, _ = image_game()
    nothing = Batch(torch.zeros(0, 1, 4, 4), torch.zeros(0).long())
    assert len(attack(leader.model, Linf(EPS, start=EPS), RandomSampling(3), nothing).x) == 0


@pytest.mark.parametrize("points", [0, -1, 1.5])
def test_bad_arguments(points: float) -> None:
    with pytest.raises(BilevelError, match=f"points is {points}: .* give 1, 2"):
        RandomSampling(points)


def test_the_objective_before_is_that_of_the_first_point() -> None:
    class Counted(FollowerProblem):
        sense = "max"
        drawn = 0

        def init(self, batch: None) -> Tensor:
            Counted.drawn += 1
            return torch.full((2,), float(Counted.drawn))

        def objective(self, leader: ZeroSum, y: Tensor, batch: None) -> Tensor:
            return y.clone()

    follower = Counted()
    leader = ZeroSum(torch.nn.Identity(), follower)
    stats = RandomSampling(5).solve(follower, leader, None).stats
    assert (stats["objective_before"], stats["objective_after"]) == (1, 5)
