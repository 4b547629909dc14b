"""The updater of the paper's imitation learning: a perceptron over all numbers of y at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.tree import Value, ravel
from bilevel.updates.base import State
from bilevel.updates.checks import at_least_one
from bilevel.updates.learned import VectorUpdate


class MLP(VectorUpdate):
    """The parameter updater U of L2L-GAIL: ``y' = y + network([y, ∇]) + η · ∇``.

    The network is 2m → 8m → 4m → m with PReLU, PReLU and no activation (Sec. 5.2, Alg. 5; the
    follower of eq. 9). It holds 52 m² + 13 m + 2 numbers: m = 2,561 are 341 million, 1.3 GiB in
    float32 and four times as much with gradients and Adam's two moments. For a larger y see
    :class:`~bilevel.updates.CoordinateRNN`. The paper has no term η · ∇.

    Args:
        size: m, how many numbers y has in all its tensors.
        gradient_skip: η at the start, in units of y² per unit of the objective; None for no skip.
            With it the last layer starts at zero: untrained, the update is gradient ascent.

    Raises:
        BilevelError: If an argument is out of its range; in the call, if the gradient is missing
            or y has another size.

    Example:
        >>> updater = MLP(3, gradient_skip=0.5)
        >>> y = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
        >>> gradient = {"weight": torch.tensor([[2.0, 4.0]]), "bias": torch.tensor([6.0])}
        >>> y, _ = updater(y, gradient, None, None)
        >>> {name: leaf.detach() for name, leaf in y.items()}
        {'weight': tensor([[1., 2.]]), 'bias': tensor([3.])}
    """

    def __init__(self, size: int, *, gradient_skip: float | None = None) -> None:
        super().__init__(gradient_skip)
        self.size = at_least_one("size", size)
        last = nn.Linear(4 * size, size)
        self.network = nn.Sequential(
            nn.Linear(2 * size, 8 * size),
            nn.PReLU(),
            nn.Linear(8 * size, 4 * size),
            nn.PReLU(),
            last,
        )
        self._start_at_skip(last)

    def propose(self, y: Value, gradient: Value, state: State) -> tuple[Tensor, State]:
        """The network's output; the state passes through untouched."""
        numbers = ravel(y)
        if len(numbers) != self.size:
            raise BilevelError(
                f"y has {len(numbers)} numbers: MLP(size={self.size}) moves {self.size}; "
                f"give MLP(size={len(numbers)})"
            )
        return self.network(torch.cat([numbers, ravel(gradient)])), state
