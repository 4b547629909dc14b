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
from bilevel.robustness.attacks.square_proposals import LinfProposals
from bilevel.robustness.threats.losses import Loss, cross_entropy, margin
from tests.digits import EPS, trained
from tests.problems import image_game
from tests.robustness.attacks.linear import LinearClassifier, greys
from tests.robustness.attacks.proposals import proposals

RADIUS = {Linf: EPS, L2: 0.7}
BOTH = pytest.mark.parametrize("threat", [Linf, L2])


def unsigned(logits: Tensor, batch: Batch) -> Tensor:
    """The margin, of which the attack does not know that its sign tells: no image leaves."""
    return margin(logits, batch)


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


@pytest.mark.parametrize(
    ("queries", "height", "width"),
    [(1000, 16, 16), (300, 16, 16), (300, 8, 20), (300, 20, 8), (300, 1, 160)],
)
def test_windows_shrink_with_the_papers_p(queries: int, height: int, width: int) -> None:
    """Squares, where one fits; else rectangles of its area, as high or as wide as the image."""
    changes = proposals(queries, (5, 2, height, width))[1:]
    for query, images in enumerate(changes, 2):
        halvings = sum(10_000 * query / queries > at for at in HALVINGS)
        area = 0.8 / 2**halvings * height * width
        side = max(1, round(math.sqrt(area)))
        short = min(height, width, side)
        long = side if short == side else round(area / short)
        size = [short, long] if height <= width else [long, short]
        for image in images:
            rows, columns = (image != 0).any(0).nonzero().unbind(1)
            assert [int(at.max() - at.min()) + 1 for at in (rows, columns)] == size
            window = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert torch.equal(window, window[:, :1, :1].expand_as(window))
            torch.testing.assert_close(window.abs(), torch.full_like(window, 0.1))


@pytest.mark.parametrize(("threat", "moved"), [(Linf, 0.6), (L2, 0.3)])
def test_a_signal_is_attacked_in_stretches(threat: type[Perturbation], moved: float) -> None:
    """Not in single samples, in which as many queries find half of what a slow wave moves."""
    wave = torch.sin(2 * math.pi * torch.arange(256) / 256).view(1, 1, -1)
    model, follower = LinearClassifier(wave), threat(0.1, loss=unsigned)
    batch = Batch(torch.full((40, 1, 1, 256), 0.5), torch.arange(40) % 2)
    leader = ZeroSum(model, follower)
    gain = Oracle(follower, leader, batch).gain(Square(200).solve(follower, leader, batch).value)
    best = 0.1 * (wave.abs().sum() if threat is Linf else wave.norm())
    assert (gain / best).mean() > moved


@BOTH
@pytest.mark.parametrize("shape", [(4, 6), (4, 7, 3), (4, 4, 1, 8, 8)])
def test_data_that_are_no_images(shape: tuple[int, ...], threat: type[Perturbation]) -> None:
    class Anything(threat):  # type: ignore[misc, valid-type]
        def check(self, batch: Batch) -> None:
            pass

    batch = Batch(torch.full(shape, 0.5), torch.zeros(4).long())
    with pytest.raises(
        BilevelError, match=r"y is of shape \(4, .* a signal as an image of one row"
    ):
        attack(nn.Flatten(), Anything(0.1, loss=margin), Square(3), batch)


def test_windows_are_anywhere() -> None:
    """The authors' code leaves out the last row and column."""
    last = proposals(2001, (1, 1, 3, 4))[-1900:, 0, 0]
    assert ((last != 0).sum((1, 2)) == 1).all()
    shares = (last != 0).double().mean(0)
    assert (shares - 1 / 12).abs().max() < 4 * (1 / 12 / 1900) ** 0.5


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
    follower = Linf(0.1, loss=unsigned)
    Square(30).solve(follower, ZeroSum(model, follower), batch, evaluate=False)
    best, *others = model.seen
    for seen in others:
        assert (seen != best).all()
        better = margin(model(seen), batch) > margin(model(best), batch)
        best = torch.where(better.view(-1, 1, 1, 1), seen, best)
    torch.testing.assert_close(best, batch.x + 0.1 * model.worst(batch))


@pytest.mark.parametrize("loss", [unsigned, cross_entropy])
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
def test_the_accuracy_that_torchattacks_leaves(threat: type[Perturbation]) -> None:
    """With windows up to the last row and column, which its own leave out.

    Of colour images: of grey ones half of its smallest windows change nothing. All images of a call
    have the same windows there, hence several calls.
    """
    torchattacks = pytest.importorskip("torchattacks")
    queries = 200

    class Theirs(torchattacks.Square):  # type: ignore[misc]
        def random_int(self, low: int, high: int) -> Tensor:
            return super().random_int(low, high + 1)

    grey, _, test = trained()
    model, batch = Colour(grey).eval(), next(batches(test, 359))
    batch = Batch(batch.x.expand(-1, 3, -1, -1), batch.y)
    torch.manual_seed(0)
    eps = RADIUS[threat] * (3**0.5 if threat is L2 else 1)  # of three channels
    ours = attack(model, threat(eps, loss=margin), Square(queries), batch).x
    parts = enumerate(zip(*(part.split(60) for part in batch), strict=True))
    calls = {"norm": threat.__name__, "eps": eps, "n_queries": queries}
    theirs = torch.cat([Theirs(model, **calls, seed=seed)(*part) for seed, part in parts])
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


def test_signs_are_drawn_for_each_channel() -> None:
    clean, own = torch.zeros(8, 3, 6, 6), LinfProposals(0.1)
    batch = Batch(torch.full_like(clean, 0.5), torch.zeros(8, dtype=torch.long))
    threat = Linf(0.1)
    oracle = Oracle(threat, ZeroSum(nn.Identity(), threat), batch)
    for proposed in (own.first(clean), own.windowed(oracle, clean, 0.5)):
        assert (proposed[:, 0] != proposed[:, 1]).any()
