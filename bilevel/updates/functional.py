"""Optimizers of ``torch.optim`` as differentiable functions.

Each is one descent step ``(y, grad, state, settings) -> (y', state')`` without in-place operations,
equal to that of ``torch.optim`` up to rounding, and differentiable where a gradient is 0.

``y`` has any shape, and ``grad``, the gradient of what is minimised, has the same. The state is the
optimizer's state of one tensor, empty at the first step; the settings are the optimizer's
``defaults``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
Settings = dict[str, Any]
Step = Callable[[Tensor, Tensor, State, Settings], tuple[Tensor, State]]


def sgd(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.SGD`."""
    grad = _with_decay(y, grad, settings)
    momentum = settings["momentum"]
    if momentum:
        buffer = grad
        if state:
            decayed = momentum * state["momentum_buffer"]
            buffer = decayed + (1 - settings["dampening"]) * grad
        state = {"momentum_buffer": buffer}
        grad = grad + momentum * buffer if settings["nesterov"] else buffer
    return y - settings["lr"] * grad, state


def adam(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.Adam`, or ``AdamW``."""
    lr, (beta1, beta2) = settings["lr"], settings["betas"]
    if settings["decoupled_weight_decay"]:
        y = y * (1 - lr * settings["weight_decay"])
    else:
        grad = _with_decay(y, grad, settings)
    step = state.get("step", 0) + 1
    exp_avg = _average(beta1, state.get("exp_avg"), grad)
    square = _average(beta2, state.get("exp_avg_sq"), grad.square())
    new_state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": square}
    if settings["amsgrad"]:
        if state:
            square = torch.maximum(state["max_exp_avg_sq"], square)
        new_state["max_exp_avg_sq"] = square
    denominator = _root(square) / (1 - beta2**step) ** 0.5 + settings["eps"]
    return y - lr / (1 - beta1**step) * exp_avg / denominator, new_state


def adamax(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.Adamax`."""
    grad, (beta1, beta2) = _with_decay(y, grad, settings), settings["betas"]
    step = state.get("step", 0) + 1
    exp_avg = _average(beta1, state.get("exp_avg"), grad)
    exp_inf = grad.abs() + settings["eps"]
    if state:
        exp_inf = torch.maximum(beta2 * state["exp_inf"], exp_inf)
    new_state = {"step": step, "exp_avg": exp_avg, "exp_inf": exp_inf}
    return y - settings["lr"] / (1 - beta1**step) * exp_avg / exp_inf, new_state


def rmsprop(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.RMSprop`."""
    grad, alpha = _with_decay(y, grad, settings), settings["alpha"]
    square = _average(alpha, state.get("square_avg"), grad.square())
    new_state, variance = {"square_avg": square}, square
    if settings["centered"]:
        mean = _average(alpha, state.get("grad_avg"), grad)
        new_state["grad_avg"], variance = mean, square - mean.square()
    move = grad / (_root(variance) + settings["eps"])
    if settings["momentum"]:
        move = settings["momentum"] * state.get("momentum_buffer", 0.0) + move
        new_state["momentum_buffer"] = move
    return y - settings["lr"] * move, new_state


def adagrad(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.Adagrad`."""
    grad, initial = _with_decay(y, grad, settings), float(settings["initial_accumulator_value"])
    step = state.get("step", 0) + 1
    total = state.get("sum", initial) + grad.square()
    lr = settings["lr"] / (1 + (step - 1) * settings["lr_decay"])
    return y - lr * grad / (_root(total) + settings["eps"]), {"step": step, "sum": total}


def adadelta(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.Adadelta`."""
    grad = _with_decay(y, grad, settings)
    rho, eps, moved = settings["rho"], settings["eps"], state.get("acc_delta")
    square = _average(rho, state.get("square_avg"), grad.square())
    move = (((0.0 if moved is None else moved) + eps) / (square + eps)).sqrt() * grad
    new_state = {"square_avg": square, "acc_delta": _average(rho, moved, move.square())}
    return y - settings["lr"] * move, new_state


def asgd(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.ASGD`; the state's ``ax`` is the average of the iterates."""
    grad, lambd = _with_decay(y, grad, settings), settings["lambd"]
    step = state.get("step", 0) + 1
    eta = settings["lr"] / (1 + lambd * settings["lr"] * (step - 1)) ** settings["alpha"]
    y = y * (1 - lambd * eta) - eta * grad
    average = state.get("ax", 0.0)
    average = average + (y - average) / max(1, step - 1 - settings["t0"])
    return y, {"step": step, "ax": average}


def _with_decay(y: Tensor, grad: Tensor, settings: Settings) -> Tensor:
    """The gradient with that of the weight decay."""
    return grad + settings["weight_decay"] * y if settings["weight_decay"] else grad


def _average(decay: float, average: Tensor | None, value: Tensor) -> Tensor:
    """The exponential moving average with a new value; it begins at 0."""
    return (1 - decay) * value if average is None else average.lerp(value, 1 - decay)


def _root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0, where it has none."""
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
