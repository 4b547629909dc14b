"""The proposals of the Square Attack in L2: bumps, and windows that give their norm to others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bilevel import Oracle, ZeroSum
from bilevel.robustness import L2, Batch
from bilevel.robustness.attacks.square import _share
from bilevel.robustness.attacks.square_proposals import L2Proposals, _bump
from tests.robustness.attacks.proposals import Unmoved, proposals


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 12])
def test_the_bump_of_l2_is_that_of_torchattacks(side: int) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    if side == 1:  # where theirs divides zero by zero
        assert _bump(1, 1, torch.zeros(1)).tolist() == [[-1.0]]
        return
    theirs = torchattacks.Square(nn.Flatten(), norm="L2").eta(side)
    ours = _bump(side, side, torch.zeros(1))
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
    bump = 0.1 * _bump(side, side, cells) / math.sqrt(shape[1] * rows * columns)
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


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 20), (40, 8), (3, 3), (1, 5), (1, 90)])
def test_in_l2_an_unchanged_image_gets_one_bump_in_a_window(height: int, width: int) -> None:
    """Upright or on its side, with a sign for each channel, each of which has the same norm."""
    upright, turned, alike = 0, 0, []
    for query, images in enumerate(proposals(60, (20, 2, height, width), L2)[1:], 2):
        area = _share(query / 60) * height * width
        side, short = round(math.sqrt(area)), min(height, width)
        long = side if side <= short else area / short
        size = [side, long] if height <= width else [long, side]
        odd = (max(round(part), 3) // 2 * 2 + 1 for part in size)
        size = [*map(min, odd, (height, width))]
        patterns = _bump(*size, images), _bump(*size[::-1], images).T
        for image in images:
            rows, columns = (image != 0).any(0).nonzero().unbind(1)
            spans = [int(places.max() - places.min()) + 1 for places in (rows, columns)]
            assert spans == size
            window = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            drawn = [window.sign() * pattern.sign() for pattern in patterns]
            alike_in = [torch.equal(one, one[:, :1, :1].expand_as(one)) for one in drawn]
            assert any(alike_in)
            way = alike_in.index(True)
            upright, turned = upright + (way == 0), turned + (way == 1)
            signs = drawn[way][:, :1, :1]
            torch.testing.assert_close(window, 0.1 / 2**0.5 * signs * patterns[way])
            alike.append(float(signs.prod()))
    if side > 1 or width > 5:
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
    bump = _bump(5, 5, best)
    peaks = [sign * b + best[0, 0] / 0.1 for sign in (1, -1) for b in (bump, bump.T)]
    expected = torch.stack([0.1 * peak / peak.norm() for peak in peaks])
    distances = (point - expected).abs().flatten(2).amax(2)
    assert (distances.min(1).values < 1e-6).all()
    assert set(distances.argmin(1).tolist()) == {0, 1, 2, 3}
