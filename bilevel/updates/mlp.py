"""The updater of the paper's imitation learning, and two that take a fraction of its memory.

MLP(m)                 a perceptron over all m elements of y           52 m² weights
MLP(m, blocks=k)       a separate one for each of k blocks of y        52 m² / k
CoordinateMLP()        one for each element of y, with shared weights  707
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel.arguments import count, positive
from bilevel.errors import BilevelError
from bilevel.tree import Value, ravel
from bilevel.updates.base import State
from bilevel.updates.learned import VectorUpdate
from bilevel.updates.normalize import unit_rms


class MLP(VectorUpdate):
    """The parameter updater U of L2L-GAIL: ``y' = y + network([y, ∇]) + η · ∇``.

    The network is 2m → 8m → 4m → m with PReLU, PReLU and no activation (Sec. 5.2, Alg. 5; the
    follower of eq. 9). It has 52 m² + 13 m + 2 parameters: 341 million for m = 2,561, 1.3 GiB in
    float32 and four times as much with gradients and Adam's two moments; ``Adam(fused=True)`` is
    then five times as fast as plain Adam. With blocks it is block-diagonal: each block of y has a
    network of its own, which does not see the others. The paper has neither blocks nor η · ∇.

    A dense network needs a small learning rate, ∝ 1/m: for m = 2,561 and Adam 1e-6 to 1e-5.

    Args:
        size: m, the number of elements of y in all its tensors.
        blocks: k, the number of blocks of equal size, the last padded with zeros.
        gradient_skip: The initial η, in units of y² per unit of the objective; None for no skip.
            With it the last layer is initialised to zero: untrained, the update is gradient ascent.

    Raises:
        BilevelError: If an argument is out of range; in the call, if the gradient is missing or y
            has another size, as where each sample has a y of its own.

    Example:
        >>> updater = MLP(3, gradient_skip=0.5)
        >>> y = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
        >>> gradient = {"weight": torch.tensor([[2.0, 4.0]]), "bias": torch.tensor([6.0])}
        >>> y, _ = updater(y, gradient, None, None)
        >>> {name: leaf.detach() for name, leaf in y.items()}
        {'weight': tensor([[1., 2.]]), 'bias': tensor([3.])}
    """

    def __init__(self, size: int, *, blocks: int = 1, gradient_skip: float | None = None) -> None:
        super().__init__(gradient_skip)
        self.size = count("size", size)
        self.blocks = count("blocks", blocks)
        m = -(-size // blocks) * blocks
        # A convolution of length 1 is a linear layer; its groups are the blocks.
        last = nn.Conv1d(4 * m, m, 1, groups=blocks)
        self.network = nn.Sequential(
            nn.Conv1d(2 * m, 8 * m, 1, groups=blocks),
            nn.PReLU(),
            nn.Conv1d(8 * m, 4 * m, 1, groups=blocks),
            nn.PReLU(),
            last,
        )
        self._zero_if_skip(last)

    def propose(self, y: Value, gradient: Value, state: State) -> tuple[Tensor, State]:
        """The network's output, and the state unchanged."""
        vector = ravel(y)
        if isinstance(y, Tensor) and y.dim() > 1 and y[:1].numel() == self.size != len(vector):
            raise BilevelError(
                f"y has shape {tuple(y.shape)}: MLP(size={self.size}) moves one y for the whole "
                "batch; where each row is a sample's, give CoordinateMLP or CoordinateRNN"
            )
        if len(vector) != self.size:
            raise BilevelError(
                f"y has {len(vector)} elements: MLP(size={self.size}) moves {self.size}; "
                f"give MLP(size={len(vector)})"
            )
        # The inputs of a block are its elements and their gradients.
        features = torch.cat([self._split(vector), self._split(ravel(gradient))], 1)
        return self.network(features.reshape(1, -1, 1)).flatten()[: self.size], state

    def _split(self, vector: Tensor) -> Tensor:
        return F.pad(vector, (0, -len(vector) % self.blocks)).view(self.blocks, -1)


class CoordinateMLP(VectorUpdate):
    """A small perceptron for each coordinate: ``y' = y + scale · network(features) + η · ∇``.

    The coordinates share its 707 parameters, so that it works for a y of any size. The inputs for a
    coordinate are its value, its gradient divided by the root mean square over its sample (over all
    tensors of a dict), the gradient's sign, and the logarithm of its absolute value. The layers are
    4 → 32 → 16 → 1 with PReLU, the last initialised to zero. It has no state, unlike
    :class:`~bilevel.updates.CoordinateRNN`. A y shared by the batch must be a dict: the rows of a
    tensor are samples.

    Args:
        scale: The factor of the network's output, in units of y.
        gradient_skip: The initial η, in units of y² per unit of the objective; None for no skip.

    Raises:
        BilevelError: If an argument is out of range; in the call, if the gradient is missing.

    Example:
        >>> updater = CoordinateMLP(gradient_skip=0.5)
        >>> updater(torch.zeros(2), torch.tensor([2.0, 4.0]), None, None)[0].detach()
        tensor([1., 2.])
        >>> sum(weight.numel() for weight in CoordinateMLP().parameters())
        707
    """

    def __init__(self, *, scale: float = 1.0, gradient_skip: float | None = None) -> None:
        super().__init__(gradient_skip)
        self.scale = positive("scale", scale)
        last = nn.Linear(16, 1)
        self.network = nn.Sequential(
            nn.Linear(4, 32), nn.PReLU(), nn.Linear(32, 16), nn.PReLU(), last
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def _settings(self) -> dict[str, object]:
        return {"scale": self.scale}

    def propose(self, y: Value, gradient: Value, state: State) -> tuple[Tensor, State]:
        """The network's output for each coordinate, and the state unchanged."""
        relative = ravel(unit_rms(gradient))
        smallest = max(1e-8, torch.finfo(relative.dtype).tiny)
        magnitude = relative.abs().clamp(min=smallest).log()
        features = torch.stack([ravel(y), relative, relative.sign(), magnitude], -1)
        return self.scale * self.network(features).squeeze(-1), state
