"""The Square Attack: its windows, where the best point is known, and torchattacks' code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bilevel import BilevelError, Oracle, ZeroSum, testing
from bilevel.robustness import L2, Batch, Linf, Perturbation, Square, attack, batches
from bilevel.robustness.attacks.square import _share
from bilevel.robustness.attacks.square_proposals import L2Proposals, _bump
from bilevel.robustness.threats.losses import Loss, cross_entropy, margin
from tests.digits import EPS, trained
from tests.problems import image_game
from tests.robustness.attacks.linear import LinearClassifier, greys


class Unmoved(nn.Module):
    """The same logits for all images, which it notes: no proposal raises the gain."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(x)
        return x.new_zeros(len(x), 3)


RADIUS = {Linf: EPS, L2: 0.7}
BOTH = pytest.mark.parametrize("threat", [Linf, L2])


def proposals(
    queries: int, shape: tuple[int, ...], threat: type[Perturbation] = Linf, eps: float = 0.1
) -> Tensor:
    """The changes that are proposed to an even grey, ``(queries − 1, B, C, H, W)``."""
    model, batch = Unmoved(), Batch(torch.full(shape, 0.5), torch.zeros(shape[0]).long())
    follower = threat(eps, loss=margin)
    leader = ZeroSum(model, follower)
    solution = Square(queries).solve(follower, leader, batch, evaluate=False)
    assert solution.evaluations == len(model.seen) == queries
    start, *changed = (seen - batch.x for seen in model.seen)
    assert not start.any()
    assert not solution.value.any()
    return torch.stack(changed)


def test_stripes_come_first() -> None:
    stripes = proposals(2, (500, 3, 6, 8))[0]
    torch.testing.assert_close(stripes.abs(), torch.full_like(stripes, 0.1))
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    assert (stripes[:, :, 0].mean(0).abs() < 0.1 * 4 / 500**0.5).all()  # either sign as often


HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Sec. 3: p is halved at these iterations of 10,000, otherwise rescaled."""


@pytest.mark.parametrize(("halved", "query"), list(enumerate(HALVINGS)))
def test_of_10000_queries_p_is_halved_after_the_papers(halved: int, query: int) -> None:
    found = [_share(number / 10_000) for number in (query, query + 1)]
    assert found == [0.8 / 2 ** (halved + after) for after in (0, 1)]


@pytest.mark.parametrize("queries", [300, 1000])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 20)])
def test_windows_are_squares_that_shrink_with_the_papers_p(
    queries: int, height: int, width: int
) -> None:
    changes = proposals(queries, (5, 2, height, width))[1:]
    for query, images in enumerate(changes, 2):
        halvings = sum(10_000 * query / queries > at for at in HALVINGS)
        expected = round(math.sqrt(0.8 / 2**halvings * height * width))
        side = max(1, min(expected, height, width))
        for image in images:
            rows, columns = (image != 0).any(0).nonzero().unbind(1)
            first, last = (f(rows) for f in (torch.min, torch.max))
            assert last - first + 1 == columns.max() - columns.min() + 1 == side
            window = image[:, first : last + 1, columns.min() : columns.max() + 1]
            assert torch.equal(window, window[:, :1, :1].expand_as(window))
            torch.testing.assert_close(window.abs(), torch.full_like(window, 0.1))


def test_windows_are_anywhere() -> None:
    """The authors' code leaves out the last row and column."""
    last = proposals(2001, (1, 1, 3, 4))[-1900:, 0, 0]
    assert ((last != 0).sum((1, 2)) == 1).all()
    shares = (last != 0).double().mean(0)
    assert (shares - 1 / 12).abs().max() < 4 * (1 / 12 / 1900) ** 0.5


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 12])
def test_the_bump_of_l2_is_that_of_torchattacks(side: int) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    if side == 1:  # where theirs divides zero by zero
        assert _bump(1, torch.zeros(1)).tolist() == [[-1.0]]
        return
    theirs = torchattacks.Square(nn.Flatten(), norm="L2").eta(side)
    ours = _bump(side, torch.zeros(1))
    assert any(torch.allclose(bump, theirs, atol=1e-6) for bump in (ours, ours.T))


@pytest.mark.parametrize("shape", [(300, 3, 19, 23), (300, 1, 8, 8), (300, 2, 3, 4)])
def test_a_grid_of_bumps_comes_first_in_l2(shape: tuple[int, ...]) -> None:
    """Of equal norms, ε together, and of independent signs, in the middle of the image."""
    grids = proposals(2, shape, L2)[0]
    side = max(min(shape[2:]) // 5, 1)
    rows, columns = (size // side for size in shape[2:])
    top, left = (size % side // 2 for size in shape[2:])
    middle = grids[:, :, top : top + rows * side, left : left + columns * side]
    cells = middle.unfold(2, side, side).unfold(3, side, side)
    bump = 0.1 * _bump(side, cells) / math.sqrt(shape[1] * rows * columns)
    signs = (cells * bump).sum((4, 5)).sign()
    torch.testing.assert_close(cells, signs[..., None, None] * bump)
    each = signs.flatten(1)
    alike = each.T @ each / 300 - torch.eye(each.shape[1])
    assert alike.abs().max() < 5 / 300**0.5
    assert (each.mean(0).abs() < 5 / 300**0.5).all()  # either sign as often


def test_the_grid_fills_a_large_ball() -> None:
    """Whose radius is more than the norm of the bumps; the projection does not lengthen."""
    grid = L2Proposals(40.0).first(torch.zeros(2, 1, 10, 10))
    torch.testing.assert_close(grid.flatten(1).norm(dim=1), torch.full((2,), 40.0))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 20), (3, 3), (1, 5)])
def test_in_l2_an_unchanged_image_gets_one_bump_in_a_window(height: int, width: int) -> None:
    """Upright or on its side, with a sign for each channel, each of which has the same norm."""
    upright, turned, alike = 0, 0, []
    for query, images in enumerate(proposals(60, (20, 2, height, width), L2)[1:], 2):
        side = round(math.sqrt(_share(query / 60) * height * width))
        side = min(max(side, 3) // 2 * 2 + 1, height, width)
        bump = _bump(side, images)
        for image in images:
            rows, columns = (image != 0).any(0).nonzero().unbind(1)
            spans = [int(places.max() - places.min()) + 1 for places in (rows, columns)]
            assert spans == [side, side]
            window = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            signs = window.sign() * bump.sign()
            upright += (turns := torch.equal(signs, signs[:, :1, :1].expand_as(signs)))
            turned += not turns
            pattern = bump if turns else bump.T
            signs = (window.sign() * pattern.sign())[:, :1, :1]
            torch.testing.assert_close(window, 0.1 / 2**0.5 * signs * pattern)
            alike.append(float(signs.prod()))
    if side > 1:
        assert abs(upright - turned) < 4 * (upright + turned) ** 0.5
    assert abs(sum(alike)) < 4 * len(alike) ** 0.5


@pytest.mark.parametrize("radius", [0.1, 0.06])
def test_in_l2_the_second_windows_norm_moves_to_the_first(radius: float) -> None:
    """With what the ball still allows; outside of both windows δ keeps its shape."""
    best = torch.randn(50, 3, 12, 12)
    best = radius * best / best.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    batch = Batch(torch.full_like(best, 0.5), torch.zeros(50).long())
    leader = ZeroSum(Unmoved(), L2(0.1))
    with torch.no_grad():
        point = L2Proposals(0.1).windowed(Oracle(L2(0.1), leader, batch), best, 0.1)
    torch.testing.assert_close(point.flatten(1).norm(dim=1), torch.full((50,), 0.1))
    side = 5  # of √(0.1 · 144) = 3.8, rounded to the next odd number
    for old, new in zip(best, point, strict=True):
        emptied, same = (new == 0).all(0), torch.isclose(new, old, 1e-4, 1e-7).all(0)
        added = ~(emptied | same)
        assert added.sum() == side**2
        assert emptied.sum() <= side**2
        touched, gained = added | emptied, new[:, added].square().sum(1)
        expected = old[:, touched].square().sum(1) + (0.1**2 - radius**2) / 3
        torch.testing.assert_close(gained, expected, rtol=1e-4, atol=0)


def test_in_l2_a_window_keeps_a_part_of_what_it_held() -> None:
    """The new bump is added to the old change, each of norm 1 in each channel."""
    best = torch.zeros(40, 1, 5, 5)
    best[:, 0, 2, 2] = 0.1
    leader = ZeroSum(Unmoved(), L2(0.1))
    oracle = Oracle(L2(0.1), leader, Batch(torch.full_like(best, 0.5), torch.zeros(40).long()))
    with torch.no_grad():
        point = L2Proposals(0.1).windowed(oracle, best, 1.0)  # the window is the image
    bump = _bump(5, best)
    peaks = [sign * b + best[0, 0] / 0.1 for sign in (1, -1) for b in (bump, bump.T)]
    expected = torch.stack([0.1 * peak / peak.norm() for peak in peaks])
    distances = (point - expected).abs().flatten(2).amax(2)
    assert (distances.min(1).values < 1e-6).all()
    assert set(distances.argmin(1).tolist()) == {0, 1, 2, 3}


class Noting(LinearClassifier):
    """It notes the images, as they come."""

    def __init__(self, w: Tensor) -> None:
        super().__init__(w)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return super().forward(x)


def test_no_query_is_spent_on_the_best_point_itself() -> None:
    """A single pixel at its best has one other proposal, which is worse."""
    model = Noting(torch.ones(1, 1, 1))
    batch = Batch(torch.full((100, 1, 1, 1), 0.5), torch.arange(100) % 2)
    follower = Linf(0.1, loss=margin)
    Square(30).solve(follower, ZeroSum(model, follower), batch, evaluate=False)
    best, *others = model.seen
    for seen in others:
        assert (seen != best).all()
        better = margin(model(seen), batch) > margin(model(best), batch)
        best = torch.where(better.view(-1, 1, 1, 1), seen, best)
    torch.testing.assert_close(best, batch.x + 0.1 * model.worst(batch))


@pytest.mark.parametrize("loss", [margin, cross_entropy])
def test_the_corner_of_a_linear_classifier(loss: Loss) -> None:
    model, batch = LinearClassifier(torch.randn(1, 4, 4).sign()), greys(20)
    follower = Linf(0.1, loss=loss)
    answer = Square(600).solve(follower, ZeroSum(model, follower), batch).value
    torch.testing.assert_close(answer, 0.1 * model.worst(batch))


@settings(deadline=None, max_examples=40)
@given(
    threat=st.sampled_from([Linf, L2]),
    eps=st.floats(0.0, 1.0),
    start=st.booleans(),
    queries=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_the_answer_lies_in_ball_and_box_and_is_no_worse_than_the_start(
    threat: type[Perturbation], eps: float, start: bool, queries: int, seed: int
) -> None:
    torch.manual_seed(seed)
    leader, _, batch = image_game()
    leader.eval()
    follower = threat(eps, start=eps * start, loss=margin)
    torch.manual_seed(seed)
    first = follower.init(batch)
    torch.manual_seed(seed)
    answer = Square(queries).solve(follower, leader, batch).value
    assert follower.norm(answer).max() <= eps + 1e-6
    assert ((batch.x + answer - 0.5).abs() <= 0.5 + 1e-6).all()
    oracle = Oracle(follower, leader, batch)
    assert (oracle.gain(answer) >= oracle.gain(first) - 1e-6).all()


@BOTH
def test_more_queries_break_more(threat: type[Perturbation]) -> None:
    model, _, test = trained()
    batch, follower = next(batches(test, 150)), threat(RADIUS[threat], loss=margin)
    left = []
    for queries in (1, 10, 100, 400):
        torch.manual_seed(0)
        images = attack(model, follower, Square(queries), batch).x
        left.append(int((model(images).argmax(1) == batch.y).sum()))
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == 4


class Colour(nn.Module):
    """A classifier of grey images, given colour images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.mean(1, keepdim=True))


@BOTH
@pytest.mark.parametrize("queries", [100, 500])
def test_the_accuracy_that_torchattacks_leaves(queries: int, threat: type[Perturbation]) -> None:
    """With windows up to the last row and column, which its own leave out.

    Of colour images: of grey ones half of its smallest windows change nothing. All images have the
    same windows there, so that the accuracy varies more than with as many independent ones.
    """
    torchattacks = pytest.importorskip("torchattacks")

    class Theirs(torchattacks.Square):  # type: ignore[misc]
        def random_int(self, low: int, high: int) -> Tensor:
            return super().random_int(low, high + 1)

    grey, _, test = trained()
    model, batch = Colour(grey).eval(), next(batches(test, 359))
    batch = Batch(batch.x.expand(-1, 3, -1, -1), batch.y)
    torch.manual_seed(0)
    eps = RADIUS[threat] * (3**0.5 if threat is L2 else 1)  # of three channels
    ours = attack(model, threat(eps, loss=margin), Square(queries), batch).x
    theirs = Theirs(model, threat.__name__, eps=eps, n_queries=queries)(*batch)
    left, expected, clean = (
        float((model(x).argmax(1) == batch.y).float().mean()) for x in (ours, theirs, batch.x)
    )
    assert abs(left - expected) <= 0.06
    assert left < clean - 0.1


@BOTH
def test_it_keeps_what_a_game_relies_on(threat: type[Perturbation]) -> None:
    leader, _, batch = image_game()
    testing.check_solver(Square(12), threat(0.1, loss=margin), leader, batch)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_of_another_type(dtype: torch.dtype, threat: type[Perturbation]) -> None:
    model, batch = LinearClassifier(torch.ones(1, 4, 4, dtype=dtype)), greys(20)
    batch = Batch(batch.x.to(dtype), batch.y)
    follower = threat(0.1, loss=margin)
    answer = Square(5).solve(follower, ZeroSum(model, follower), batch).value
    assert answer.dtype == dtype


@BOTH
def test_a_batch_without_images(threat: type[Perturbation]) -> None:
    leader, _, _ = image_game()
    nothing = Batch(torch.zeros(0, 1, 4, 4), torch.zeros(0).long())
    assert len(attack(leader.model, threat(EPS, loss=margin), Square(3), nothing).x) == 0


@pytest.mark.parametrize("queries", [0, -1, 1.5])
def test_bad_arguments(queries: float) -> None:
    with pytest.raises(BilevelError, match=f"queries is {queries}: .* give 1, 2"):
        Square(queries)  # type: ignore[arg-type]
