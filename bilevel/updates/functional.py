"""Optimizers of ``torch.optim`` as functions of a tensor, which autograd goes through.

Each is one step ``(y, slope, memory, settings) -> (y', memory')`` down a slope, written out of
place and equal to that of ``torch.optim`` up to rounding:

    sgd         momentum, dampening, Nesterov's momentum, weight decay
    adam        amsgrad, weight decay of either kind
    adamw       the same, with the decoupled kind
    by_higher   Adadelta, Adamax and ASGD, with the arithmetic of ``higher``

The memory is what the optimizer keeps of a tensor, empty at the first step; the settings are the
optimizer's ``defaults``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Memory = dict[str, Any]
Step = Callable[[Tensor, Tensor, Memory, dict[str, Any]], tuple[Tensor, Memory]]


def sgd(
    y: Tensor, slope: Tensor, memory: Memory, settings: dict[str, Any]
) -> tuple[Tensor, Memory]:
    """A step of :class:`torch.optim.SGD`.

    Args:
        y: Any shape.
        slope: The gradient of what is minimised, in the shape of ``y``.
        memory: ``momentum_buffer``, where there is momentum.
        settings: Those of SGD.

    Returns:
        The moved tensor and its memory.
    """
    if settings["weight_decay"]:
        slope = slope + settings["weight_decay"] * y
    momentum = settings["momentum"]
    if momentum:
        moment = slope
        if memory:
            kept = momentum * memory["momentum_buffer"]
            moment = kept + (1 - settings["dampening"]) * slope
        memory = {"momentum_buffer": moment}
        slope = slope + momentum * moment if settings["nesterov"] else moment
    return y - settings["lr"] * slope, memory


def adam(
    y: Tensor, slope: Tensor, memory: Memory, settings: dict[str, Any]
) -> tuple[Tensor, Memory]:
    """A step of :class:`torch.optim.Adam`.

    Args:
        y: Any shape.
        slope: The gradient of what is minimised, in the shape of ``y``.
        memory: ``step``, ``exp_avg``, ``exp_avg_sq`` and with amsgrad ``max_exp_avg_sq``.
        settings: Those of Adam.

    Returns:
        The moved tensor and its memory.
    """
    rate, (beta1, beta2) = settings["lr"], settings["betas"]
    if settings.get("decoupled_weight_decay"):  # there from torch 2.7 on
        y = y * (1 - rate * settings["weight_decay"])
    elif settings["weight_decay"]:
        slope = slope + settings["weight_decay"] * y
    if not memory:
        zero = torch.zeros_like(y)
        memory = {"step": 0, "exp_avg": zero, "exp_avg_sq": zero, "max_exp_avg_sq": zero}
    count = memory["step"] + 1
    mean = beta1 * memory["exp_avg"] + (1 - beta1) * slope
    square = beta2 * memory["exp_avg_sq"] + (1 - beta2) * slope.square()
    moved = {"step": count, "exp_avg": mean, "exp_avg_sq": square}
    if settings["amsgrad"]:
        square = torch.maximum(memory["max_exp_avg_sq"], square)
        moved["max_exp_avg_sq"] = square
    # The root has no derivative at 0, where no slope was met: eps alone divides there.
    met = square > 0
    root = torch.where(met, square, 1).sqrt() / (1 - beta2**count) ** 0.5
    length = torch.where(met, root, 0) + settings["eps"]
    return y - rate / (1 - beta1**count) * mean / length, moved


def adamw(
    y: Tensor, slope: Tensor, memory: Memory, settings: dict[str, Any]
) -> tuple[Tensor, Memory]:
    """A step of :class:`torch.optim.AdamW`.

    Args:
        y: Any shape.
        slope: The gradient of what is minimised, in the shape of ``y``.
        memory: That of :func:`adam`.
        settings: Those of AdamW.

    Returns:
        The moved tensor and its memory.
    """
    return adam(y, slope, memory, {**settings, "decoupled_weight_decay": True})


def by_higher(kind: type[torch.optim.Optimizer]) -> Step:
    """The step of an optimizer as ``higher`` differentiates it (Grefenstette et al., 2019).

    Args:
        kind: One that ``higher`` knows.

    Returns:
        Its step.
    """

    def step(
        y: Tensor, slope: Tensor, memory: Memory, settings: dict[str, Any]
    ) -> tuple[Tensor, Memory]:
        import higher

        stand_in = torch.empty(0)
        # Made anew, since it keeps hold of the history that it has stepped through.
        optimizer = higher.optim.get_diff_optim(kind([stand_in], **settings), [stand_in])
        optimizer.state = [defaultdict(dict, {0: dict(memory)})]
        # The slope is known: what would be differentiated for it is a stand-in.
        loss = torch.zeros((), requires_grad=True)
        (moved,) = optimizer.step(loss, params=[y], grad_callback=lambda _: [slope])
        return moved, optimizer.state[0][0]

    return step
