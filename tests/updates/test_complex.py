"""Updates of complex numbers: the steps of their real and imaginary parts, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bilevel import BilevelError, FollowerProblem, Iterative, Solution, ZeroSum, fgsm, pgm
from bilevel.tree import as_real
from bilevel.updates import (
    CNN,
    MLP,
    ConvRNN,
    CoordinateMLP,
    CoordinateRNN,
    Gradient,
    Momentum,
    NormalizedGradient,
    Optimizer,
    SignGradient,
    Update,
)

TARGET = torch.tensor([[3 + 4j, -1j], [0, 2]], dtype=torch.complex128)


class Reach(FollowerProblem):
    """min over y of |y − target|² for each sample; pairs of real numbers if the target is real."""

    sense = "min"

    def init(self, batch: Tensor) -> Tensor:
        return torch.zeros_like(batch)

    def objective(self, leader: ZeroSum, y: Tensor, batch: Tensor) -> Tensor:
        return (y - batch).abs().square().flatten(1).sum(1)


def solve(solver: Iterative, target: Tensor) -> Solution:
    follower = Reach()
    return solver.solve(follower, ZeroSum(nn.Identity(), follower), target)


@pytest.mark.parametrize(
    "update",
    [
        Gradient(0.1),
        NormalizedGradient(0.1),
        Momentum(NormalizedGradient(0.1), 0.5),
        Optimizer(torch.optim.Adam, lr=0.1),
        MLP(8, gradient_skip=0.1).double(),
    ],
    ids=lambda update: type(update).__name__,
)
def test_steps_are_those_of_the_real_pairs(update: Update) -> None:
    value = solve(Iterative(update, 3), TARGET).value
    if isinstance(update, MLP):  # it has one y for the whole batch
        pairs = solve(Iterative(update, 3), as_real(TARGET).reshape(1, -1)).value.view(2, 2, 2)
    else:
        pairs = solve(Iterative(update, 3), as_real(TARGET)).value
    torch.testing.assert_close(as_real(value), pairs)


def test_norms_are_of_absolute_values() -> None:
    y = torch.zeros_like(TARGET)
    step, _ = NormalizedGradient(1.0)(y, TARGET, None, None)
    torch.testing.assert_close(step, TARGET / torch.tensor([[26.0], [4.0]]).sqrt())
    _, (momentum, _) = Momentum(Gradient(1.0), 0.5, normalize=True)(y, TARGET, None, None)
    torch.testing.assert_close(momentum, TARGET / torch.tensor([[6.0], [2.0]]))


@pytest.mark.parametrize(
    "solver",
    [pgm(0.1, 2), fgsm(0.1), Iterative(Momentum(SignGradient(0.1), 1.0), 2)],
    ids=["pgm", "fgsm", "momentum"],
)
def test_complex_numbers_have_no_sign(solver: Iterative) -> None:
    with pytest.raises(BilevelError, match=r"y is complex: .* no sign.*give .*NormalizedGradient"):
        solve(solver, TARGET)


@pytest.mark.parametrize("kind", [CNN, ConvRNN])
def test_images_are_real(kind: type[Update]) -> None:
    with pytest.raises(BilevelError, match=r"y is complex: .* real images; use CoordinateRNN"):
        solve(Iterative(kind(1, 0.1), 1), TARGET.view(1, 1, 2, 2))


@pytest.mark.parametrize(
    "update",
    [CoordinateRNN(0.1), CoordinateMLP(), MLP(8)],
    ids=lambda update: type(update).__name__,
)
def test_the_type_to_give_the_weights_is_real(update: Update) -> None:
    with pytest.raises(BilevelError, match=r"y is of type torch\.complex128: .*torch\.float64"):
        solve(Iterative(update, 1), TARGET)
    assert solve(Iterative(update.to(torch.float64), 1), TARGET).value.dtype == torch.complex128
