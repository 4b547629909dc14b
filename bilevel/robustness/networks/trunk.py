"""Blocks whose activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from torch import Tensor, nn

from bilevel.errors import BilevelError
from bilevel.recompute import checkpointed


class Trunk(nn.Sequential):
    """A sequence of blocks whose inner activations may be computed again in the backward pass.

    The memory of a training step is then that of the blocks' outputs and of one block, at the price
    of one more forward pass where there is a backward one (Chen et al., 2016).

    See :func:`recompute_activations`; by default they are kept.

    Example:
        >>> trunk = Trunk(nn.Linear(2, 2), nn.Tanh())
        >>> recompute_activations(trunk)
        >>> trunk(torch.rand(1, 2, requires_grad=True)).sum().backward()
    """

    _recompute = False  # private: results do not depend on it

    def forward(self, input: Tensor) -> Tensor:
        """The blocks, one after the other.

        Args:
            input: The first block's input.

        Returns:
            The last block's output.
        """
        for block in self:
            input = checkpointed(block, input) if self._recompute else block(input)
        return input


def recompute_activations(model: nn.Module) -> None:
    """Lets a classifier compute its activations again instead of keeping them.

    Args:
        model: The classifier.

    Raises:
        BilevelError: If it has no :class:`Trunk`.
    """
    trunks = [module for module in model.modules() if isinstance(module, Trunk)]
    if not trunks:
        raise BilevelError(
            f"{type(model).__name__} has no Trunk: its blocks are not known; build its layers as "
            "bilevel.robustness.Trunk(*blocks)"
        )
    for trunk in trunks:
        trunk._recompute = True
