"""Updates as optimizers of ``torch.optim``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bilevel.arguments import instance_of
from bilevel.updates.base import Update, explain_types


class LearnedOptimizer(torch.optim.Optimizer):
    r"""An update, learned or hand-designed, as an optimizer of the parameters of a network.

    The inverse of :class:`~bilevel.updates.Optimizer`. The parameters of a group are one y, a dict,
    and the update climbs, so it is given the negative gradient:

    .. math:: p \leftarrow p + \mathrm{lr} \cdot (\mathrm{update}(p, -∇) - p)

    With ``lr=1`` these are the steps of a warm-started ``Iterative(update, steps=1)`` whose
    follower minimises the loss. The update gets no context. A parameter without a gradient stays
    where it is, as in torch; to the update it is one with a gradient of zero. The update's weights
    are not trained by this, nor part of the state dict, which holds the update's state.

    Args:
        params: Parameters or parameter groups, as optimizers of torch take them.
        update: The update, on the parameters' device.
        lr: The part of each step that is taken, for learning-rate schedules.

    Raises:
        BilevelError: If ``update`` is none; in a step, if it cannot move these parameters or
            reads a context.

    Example:
        >>> from bilevel.updates import Gradient, Momentum
        >>> weight = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = LearnedOptimizer([weight], Momentum(Gradient(0.5), 0.9))
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> weight.data                                # 3 - 0.5 · 6 = 0, then 0 - 0.5 · 0.9 · 6
        tensor([-2.7000])
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], update: Update, lr: float = 1.0
    ) -> None:
        super().__init__(params, {"lr": lr})
        remedy = "updates.CoordinateRNN(0.01), a trained one or your own"
        self.update = instance_of("update", update, Update, remedy)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves the parameters along the update's step.

        Args:
            closure: Computes the loss, fills ``.grad`` and returns the loss; optional.

        Returns:
            What the closure returned.

        Raises:
            BilevelError: If the update cannot move these parameters.
            RuntimeError: If the update fails otherwise.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["params"]:
                continue
            own = {str(number): p for number, p in enumerate(group["params"])}
            uphill = {n: torch.zeros_like(p) if p.grad is None else -p.grad for n, p in own.items()}
            y = {name: p.clone() for name, p in own.items()}  # an update may work in place
            kept = self.state[group["params"][0]]  # so that torch saves and moves it
            try:
                moved, kept["update"] = self.update(y, uphill, None, kept.get("update"))
            except RuntimeError as error:
                explain_types(self.update, y, error)
                raise
            for name, parameter in own.items():
                if parameter.grad is not None:
                    parameter.lerp_(moved[name], group["lr"])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state, each tensor in its own type.

        Args:
            state_dict: What ``state_dict`` returned.
        """
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            if not group["params"]:
                continue
            first, own = group["params"][0], state_dict["state"].get(saved["params"][0])
            if own is not None:  # torch has cast all of the group's state to the type of its first
                on_device = partial(Tensor.to, device=first.device, copy=True)
                self.state[first] = tree_map_only(Tensor, on_device, own)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "update": self.update}  # torch's leaves it out
