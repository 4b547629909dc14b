"""Optimizers of ``torch.optim`` as differentiable functions.

Each is one descent step ``(y, grad, state, settings) -> (y', state')`` without in-place operations,
equal to that of ``torch.optim`` up to rounding:

    sgd           momentum, dampening, Nesterov's momentum, weight decay
    adam          amsgrad, weight decay, coupled or decoupled
    adamw         the same, decoupled
    from_higher   Adadelta, Adamax and ASGD, by ``higher``

The state is the optimizer's state of one tensor, empty at the first step; the settings are the
optimizer's ``defaults``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Step = Callable[[Tensor, Tensor, State, dict[str, Any]], tuple[Tensor, State]]


def sgd(y: Tensor, grad: Tensor, state: State, settings: dict[str, Any]) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.SGD`.

    Args:
        y: Any shape.
        grad: The gradient of what is minimised, in the shape of ``y``.
        state: ``momentum_buffer``, with momentum.
        settings: Those of SGD.

    Returns:
        The new tensor and its state.
    """
    if settings["weight_decay"]:
        grad = grad + settings["weight_decay"] * y
    momentum = settings["momentum"]
    if momentum:
        buffer = grad
        if state:
            decayed = momentum * state["momentum_buffer"]
            buffer = decayed + (1 - settings["dampening"]) * grad
        state = {"momentum_buffer": buffer}
        grad = grad + momentum * buffer if settings["nesterov"] else buffer
    return y - settings["lr"] * grad, state


def adam(y: Tensor, grad: Tensor, state: State, settings: dict[str, Any]) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.Adam`.

    Args:
        y: Any shape.
        grad: The gradient of what is minimised, in the shape of ``y``.
        state: ``step``, ``exp_avg``, ``exp_avg_sq`` and with amsgrad ``max_exp_avg_sq``.
        settings: Those of Adam.

    Returns:
        The new tensor and its state.
    """
    lr, (beta1, beta2) = settings["lr"], settings["betas"]
    if settings.get("decoupled_weight_decay"):  # since torch 2.7
        y = y * (1 - lr * settings["weight_decay"])
    elif settings["weight_decay"]:
        grad = grad + settings["weight_decay"] * y
    if not state:
        zero = torch.zeros_like(y)
        state = {"step": 0, "exp_avg": zero, "exp_avg_sq": zero, "max_exp_avg_sq": zero}
    step = state["step"] + 1
    exp_avg = beta1 * state["exp_avg"] + (1 - beta1) * grad
    square = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad.square()
    new_state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": square}
    if settings["amsgrad"]:
        square = torch.maximum(state["max_exp_avg_sq"], square)
        new_state["max_exp_avg_sq"] = square
    # The square root has no derivative at 0: the denominator is eps alone there.
    positive = square > 0
    root = torch.where(positive, square, 1).sqrt() / (1 - beta2**step) ** 0.5
    denominator = torch.where(positive, root, 0) + settings["eps"]
    return y - lr / (1 - beta1**step) * exp_avg / denominator, new_state


def adamw(y: Tensor, grad: Tensor, state: State, settings: dict[str, Any]) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.AdamW`.

    Args:
        y: Any shape.
        grad: The gradient of what is minimised, in the shape of ``y``.
        state: That of :func:`adam`.
        settings: Those of AdamW.

    Returns:
        The new tensor and its state.
    """
    return adam(y, grad, state, {**settings, "decoupled_weight_decay": True})


def from_higher(kind: type[torch.optim.Optimizer]) -> Step:
    """The step of an optimizer's differentiable version in ``higher`` (Grefenstette et al., 2019).

    Args:
        kind: An optimizer that ``higher`` supports.

    Returns:
        Its step.
    """

    def step(
        y: Tensor, grad: Tensor, state: State, settings: dict[str, Any]
    ) -> tuple[Tensor, State]:
        import higher

        dummy = torch.empty(0)
        # A new one for each step, since it keeps a reference to the graph of its past steps.
        optimizer = higher.optim.get_diff_optim(kind([dummy], **settings), [dummy])
        optimizer.state = [defaultdict(dict, {0: dict(state)})]
        # The loss is a dummy: the callback replaces its gradient.
        loss = torch.zeros((), requires_grad=True)
        (new_y,) = optimizer.step(loss, params=[y], grad_callback=lambda _: [grad])
        return new_y, optimizer.state[0][0]

    return step
