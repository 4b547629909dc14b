"""The backward passes in which a game fills the gradients of its players."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from bilevel.adjoints import Detached
from bilevel.checks.losses import Loss, check_finite, check_loss
from bilevel.errors import raise_missing_derivative

if TYPE_CHECKING:
    from bilevel.game import Bilevel


def backward(
    game: Bilevel, which: Loss, loss: Tensor, moved: list[Tensor], *, retain_graph: bool = False
) -> Tensor:
    """Fills the gradients of these parameters only, summed over the processes.

    Args:
        game: The game.
        which: Which loss it is, for messages.
        loss: The loss, a scalar with its graph.
        moved: The parameters that move along its gradient.
        retain_graph: Whether another pass follows.

    Returns:
        The loss without its graph, likewise summed.

    Raises:
        BilevelError: If the loss is no scalar with a gradient, or the adjoint needs a second
            derivative that torch lacks.
        NonFiniteError: On the CPU, if the loss is NaN or infinite.
        RuntimeError: If the pass fails otherwise.
    """
    check_loss(which, loss, moved)
    if game.pool is None:
        check_finite(which, loss, game.steps, moved)
    else:
        loss = loss * game.pool.share
    if moved:
        try:
            loss.backward(inputs=moved, retain_graph=retain_graph)
        except RuntimeError as error:
            if not isinstance(game.adjoint, Detached):
                raise_missing_derivative(error, game.adjoint)
            raise
    loss = loss.detach()
    if game.pool is not None:
        game.pool.all_reduce_gradients(loss, moved)
        check_finite(which, loss, game.steps, moved)  # now all processes raise, or none
    return loss
