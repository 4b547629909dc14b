"""Optimizers of ``torch.optim`` as differentiable functions.

Each is one descent step ``(y, grad, state, settings) -> (y', state')``, equal to that of
``torch.optim`` up to rounding, and differentiable where a gradient is 0. It writes into none of its
arguments; what a step of large tensors costs is its temporaries, so operations are fused where
torch can.

``y`` has any shape, and ``grad``, the gradient of what is minimised, has the same. The state is the
optimizer's state of one tensor, empty at the first step; the settings are the optimizer's
``defaults``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    if _is_set(momentum):
        buffer = grad
        if "momentum_buffer" in state:  # it may be switched on later
            dampening = settings["dampening"]
            damped = (1 - dampening) * grad if _is_set(dampening) else grad
            buffer = _plus(damped, momentum, state["momentum_buffer"])
        state = {"momentum_buffer": buffer}
        grad = _plus(grad, momentum, buffer) if settings["nesterov"] else buffer
    return _plus(y, -settings["lr"], grad), state


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
        if "max_exp_avg_sq" in state:
            square = torch.maximum(state["max_exp_avg_sq"], square)
        new_state["max_exp_avg_sq"] = square
    unbias = (1 - beta2**step) ** 0.5  # on both sides of the fraction, it scales numbers alone
    size, denominator = lr * unbias / (1 - beta1**step), _root(square) + settings["eps"] * unbias
    return _plus_ratio(y, -size, exp_avg, denominator), new_state


def adamax(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.Adamax`."""
    grad, (beta1, beta2) = _with_decay(y, grad, settings), settings["betas"]
    step = state.get("step", 0) + 1
    exp_avg = _average(beta1, state.get("exp_avg"), grad)
    exp_inf = grad.abs() + settings["eps"]
    if state:
        exp_inf = torch.maximum(beta2 * state["exp_inf"], exp_inf)
    new_state = {"step": step, "exp_avg": exp_avg, "exp_inf": exp_inf}
    return _plus_ratio(y, -settings["lr"] / (1 - beta1**step), exp_avg, exp_inf), new_state


def rmsprop(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.RMSprop`."""
    grad, alpha = _with_decay(y, grad, settings), settings["alpha"]
    square = _average(alpha, state.get("square_avg"), grad.square())
    new_state, variance = {"square_avg": square}, square
    if settings["centered"]:
        mean = _average(alpha, state.get("grad_avg"), grad)
        new_state["grad_avg"], variance = mean, square.addcmul(mean, mean, value=-1)
    move = grad / (_root(variance) + settings["eps"])
    if _is_set(settings["momentum"]):
        if "momentum_buffer" in state:
            move = _plus(move, settings["momentum"], state["momentum_buffer"])
        new_state["momentum_buffer"] = move
    return _plus(y, -settings["lr"], move), new_state


def adagrad(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.Adagrad`."""
    grad, initial = _with_decay(y, grad, settings), float(settings["initial_accumulator_value"])
    step = state.get("step", 0) + 1
    total = state.get("sum", initial) + grad.square()
    lr = settings["lr"] / (1 + (step - 1) * settings["lr_decay"])
    y = _plus_ratio(y, -lr, grad, _root(total) + settings["eps"])
    return y, {"step": step, "sum": total}


def adadelta(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.Adadelta`."""
    grad = _with_decay(y, grad, settings)
    rho, eps, moved = settings["rho"], settings["eps"], state.get("acc_delta")
    square = _average(rho, state.get("square_avg"), grad.square())
    move = (((0.0 if moved is None else moved) + eps) / (square + eps)).sqrt() * grad
    new_state = {"square_avg": square, "acc_delta": _average(rho, moved, move.square())}
    return _plus(y, -settings["lr"], move), new_state


def asgd(y: Tensor, grad: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """A step of :class:`torch.optim.ASGD`; the state's ``ax`` is the average of the iterates."""
    grad, lambd = _with_decay(y, grad, settings), settings["lambd"]
    step = state.get("step", 0) + 1
    eta = settings["lr"] / (1 + lambd * settings["lr"] * (step - 1)) ** settings["alpha"]
    y = _plus(y * (1 - lambd * eta), -eta, grad)
    average = state.get("ax", 0.0)
    average = average + (y - average) / max(1, step - 1 - settings["t0"])
    return y, {"step": step, "ax": average}


def decays(settings: Mapping[str, Any]) -> bool:
    """Whether the steps end at the optimum of the objective and a weight decay.

    One that is decoupled (``AdamW``) does not move it: where the steps have one size whatever the
    gradient's, it is met by a gradient near 0.

    Args:
        settings: Those of the optimizer, or of a group of its parameters.

    Returns:
        True if so.
    """
    return _is_set(settings.get("weight_decay", 0)) and not settings.get("decoupled_weight_decay")


def _with_decay(y: Tensor, grad: Tensor, settings: Settings) -> Tensor:
    """The gradient with that of the weight decay."""
    decay = settings["weight_decay"]
    return _plus(grad, decay, y) if _is_set(decay) else grad


def _is_set(setting: float | Tensor) -> bool:
    """Whether a setting is in use; one that is learned is also where it is 0."""
    return isinstance(setting, Tensor) or setting != 0


def _average(decay: float, average: Tensor | None, value: Tensor) -> Tensor:
    """The exponential moving average with a new value; it begins at 0."""
    return (1 - decay) * value if average is None else average.lerp(value, 1 - decay)


def _root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0, where it has none."""
    kind = torch.finfo(square.dtype)
    # Second moments in float16 are mostly smaller than its smallest normal number.
    least = kind.tiny * kind.eps if square.dtype == torch.float16 else kind.tiny
    return square.clamp(min=least).sqrt_()  # into what clamp returned


def _plus(y: Tensor, factor: float | Tensor, direction: Tensor) -> Tensor:
    """``y + factor · direction``; in one pass if the factor, which may be learned, is a number."""
    if isinstance(factor, Tensor):
        return y + factor * direction
    return torch.add(y, direction, alpha=factor)


def _plus_ratio(
    y: Tensor, factor: float | Tensor, direction: Tensor, denominator: Tensor
) -> Tensor:
    """``y + factor · direction / denominator``, likewise."""
    if isinstance(factor, Tensor):
        return y + factor * direction / denominator
    return torch.addcdiv(y, direction, denominator, value=factor)
