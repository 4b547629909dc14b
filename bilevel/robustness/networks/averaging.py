"""The exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel

from bilevel.errors import BilevelError


class EMA(AveragedModel):
    r"""A network whose weights are the moving average of another's (Polyak & Juditsky, 1992).

    .. math:: \bar\theta_t = d_t \bar\theta_{t-1} + (1 - d_t)\,\theta_t, \quad
              d_t = \min\Bigl(d, \frac{1 + t}{10 + t}\Bigr)

    The decay grows with t, so that the initial weights are soon forgotten, also in a short run.
    In adversarial training the average is evaluated (Gowal et al., 2020, "Uncovering the limits of
    adversarial training against norm-bounded adversarial examples", Sec. 4.4): it overfits later
    and less.

    The running statistics of batch normalisation are averaged with the same decay: to first order,
    the statistics at the average of some weights are the average of their statistics. Copied
    statistics would belong to weights 1/(1 − d) steps later, and recomputed ones would cost a pass
    over the training images at each validation. Other buffers are copied.

    Args:
        network: The network to average; it is copied.
        decay: d in (0, 1); 0.995 spans 200 steps.

    Attributes:
        module: The averaged network.

    Raises:
        BilevelError: If the decay is out of its range.

    Example:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> averaged = EMA(network, decay=0.9)
        >>> for weight in (0.0, 11.0):
        ...     weight = nn.init.constant_(network.weight, weight)
        ...     averaged.update_parameters(network)
        >>> round(averaged.module.weight.item(), 4)      # d₁ = 2/11
        9.0
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        if not 0 < decay < 1:
            raise BilevelError(
                f"decay is {decay}: it is the weight of the average in each update; give a number "
                "between 0 and 1, such as 0.995"
            )
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Updates the average after a step.

        Args:
            model: The network that is trained.
        """
        # The inherited method sends the count to the device at each step, and waits for it.
        count = int(self.n_averaged)
        weight = max(1 - self.decay, 9 / (10 + count)) if count else 1.0
        weights, others = _tensors(self.module)
        new_weights, new_others = _tensors(model)
        torch._foreach_lerp_(weights, new_weights, weight)
        if others:
            torch._foreach_copy_(others, new_others)
        self.n_averaged += 1


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and running statistics, which are averaged, and the other buffers."""
    averaged: list[Tensor] = [*network.parameters()]
    others: list[Tensor] = []  # counts, and constants: the infinite numbers of a mask have no mean
    for module in network.modules():
        for buffer in module.buffers(recurse=False):
            running = isinstance(module, _NormBase) and buffer.is_floating_point()
            (averaged if running else others).append(buffer)
    return averaged, others
