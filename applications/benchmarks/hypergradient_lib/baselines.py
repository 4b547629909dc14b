"""The hypergradient written by hand, and with TorchOpt, higher and BOAT.

Each function takes a :class:`~hypergradient_lib.task.Task` and returns dL/dθ, ``(1000,)``. All call
the same losses; they differ in the inner steps and in the differentiation.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hypergradient_lib.task import Task, Weights

Product = Callable[[Tensor], Tensor]
ITERATIONS = 20
"""K, the number of conjugate gradient iterations."""


def descend(task: Task, y: Weights, steps: int, *, keep: bool) -> Weights:
    """Gradient descent by hand.

    Args:
        task: The task.
        y: The starting point.
        steps: Number of steps.
        keep: Whether the autograd graph is kept.
    """
    for _ in range(steps):
        loss = task.inner(y, task.theta if keep else task.theta.detach())
        gradients = torch.autograd.grad(loss, [*y.values()], create_graph=keep)
        y = {
            name: leaf - task.step * gradient
            for (name, leaf), gradient in zip(y.items(), gradients, strict=True)
        }
        if not keep:
            y = leaves(y)
    return y


def leaves(y: Weights) -> Weights:
    """Detached copies that require gradients."""
    return {name: leaf.detach().requires_grad_() for name, leaf in y.items()}


def grad(loss: Tensor, theta: Tensor) -> Tensor:
    """dL/dθ."""
    (gradient,) = torch.autograd.grad(loss, theta)
    return gradient


def by_hand(task: Task) -> Tensor:
    """Reverse mode through the unrolled loop."""
    return grad(task.outer(descend(task, task.start(), task.steps, keep=True)), task.theta)


def compiled_by_hand(task: Task) -> Tensor:
    """The same with a compiled step: ``torch.func.grad`` inside, ``autograd.grad`` outside."""
    step, y = _compiled_step(task), task.start()
    for _ in range(task.steps):
        y = step(y, task.theta)
    return grad(task.outer(y), task.theta)


@lru_cache
def _compiled_step(task: Task) -> Callable[[Weights, Tensor], Weights]:
    def step(y: Weights, theta: Tensor) -> Weights:
        gradients = torch.func.grad(task.inner)(y, theta)
        return {name: leaf - task.step * gradients[name] for name, leaf in y.items()}

    return torch.compile(step, fullgraph=True)


def recomputed_by_hand(task: Task) -> Tensor:
    """Checkpointing: √T iterates are kept, and the steps between are recomputed in backward."""
    length = round(task.steps**0.5)
    lengths = [min(length, task.steps - done) for done in range(0, task.steps, length)]
    kept = [task.start()]
    for length in lengths:
        kept.append(descend(task, kept[-1], length, keep=False))
    end = kept.pop()
    gradient = torch.autograd.grad(task.outer(end), [*end.values()])
    total = torch.zeros_like(task.theta)
    for y, length in zip(reversed(kept), reversed(lengths), strict=True):
        segment = descend(task, y, length, keep=True)
        *gradient, share = torch.autograd.grad(
            [*segment.values()], [*y.values(), task.theta], gradient
        )  # fmt: skip
        total += share
    return total


def torchopt_unrolled(task: Task) -> Tensor:
    """TorchOpt's functional optimizer."""
    import torchopt

    optimizer, y = torchopt.FuncOptimizer(torchopt.sgd(task.step)), task.start()
    for _ in range(task.steps):
        y = optimizer.step(task.inner(y, task.theta), y)
    return grad(task.outer(y), task.theta)


def higher_unrolled(task: Task) -> Tensor:
    """The differentiable SGD of higher, on a patched network."""
    import higher

    network = copy.deepcopy(task.follower.network)
    optimizer = torch.optim.SGD(network.parameters(), lr=task.step)
    with higher.innerloop_ctx(network, optimizer) as (patched, differentiable):
        for _ in range(task.steps):
            differentiable.step(task.inner(task.named([*patched.parameters()]), task.theta))
        return grad(task.outer(task.named([*patched.parameters()])), task.theta)


def boat(task: Task, operation: str) -> Tensor:
    """BOAT: naive gradient descent, then RAD (reverse mode) or CG (conjugate gradients)."""
    import boat_torch

    network = copy.deepcopy(task.follower.network).requires_grad_()
    settings = {
        "fo_op": None,
        "gm_op": ["NGD"],
        "na_op": [operation],
        "lower_level_model": network,
        "upper_level_model": task.leader,
        "lower_level_var": [*network.parameters()],
        "upper_level_var": [task.theta],
        "lower_level_opt": torch.optim.SGD(network.parameters(), lr=task.step),
        "upper_level_opt": torch.optim.SGD([task.theta], lr=0.0),
        "lower_iters": task.steps,
        "accumulate_grad": False,
        "return_grad": True,
        "copy_last_param": False,
        "device": "cpu",
        "loss_log_path": os.devnull,
        "GDA": {"alpha_init": 0.0, "alpha_decay": 0.0},
        "RGT": {"truncate_iter": 0},
        "CG": {"tolerance": 0.0, "k": ITERATIONS},
    }
    losses = {
        f"{level}_level_loss": {"function": f"{__name__}.boat_{level}", "params": {}}
        for level in ("lower", "upper")
    }
    problem = boat_torch.Problem(settings, losses)
    problem.build_ll_solver().build_ul_solver()
    feed = {"task": task}
    [gradient], _ = problem.run_iter(feed, feed, current_iter=0)
    task.theta.grad = None
    return gradient


def boat_lower(feed: Any, upper: Any, lower: Any, params: Any = None) -> Tensor:
    """The inner loss as BOAT calls it."""
    task: Task = feed["task"]
    return task.inner(task.named([*(params or lower.parameters())]), task.theta)


def boat_upper(feed: Any, upper: Any, lower: Any, params: Any = None) -> Tensor:
    """The outer loss as BOAT calls it."""
    task: Task = feed["task"]
    return task.outer(task.named([*(params or lower.parameters())]))


def implicit_by_hand(task: Task) -> Tensor:
    """Conjugate gradients on the Hessian at the last iterate."""
    return _implicit(task, lambda product, v: conjugate_gradients(product, v, ITERATIONS))


def implicit_exact(task: Task) -> Tensor:
    """The same, solved to rounding error (in float64)."""
    return _implicit(task, lambda product, v: conjugate_gradients(product, v, 5000, 1e-13))


def _implicit(task: Task, solve: Callable[[Product, Tensor], Tensor]) -> Tensor:
    y = descend(task, task.start(), task.steps, keep=False)
    points = [*y.values()]
    gradients = torch.autograd.grad(task.inner(y, task.theta), points, create_graph=True)
    gradient = _flat(gradients)

    def product(v: Tensor) -> Tensor:
        return _flat(torch.autograd.grad(gradient, points, v, retain_graph=True))

    v = _flat(torch.autograd.grad(task.outer(y), points))
    (pulled,) = torch.autograd.grad(gradient, task.theta, solve(product, v))
    return -pulled


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def conjugate_gradients(
    product: Product, v: Tensor, max_steps: int, tolerance: float = 0.0
) -> Tensor:
    """Solves H w = v by hand.

    Args:
        product: The map of w to H w.
        v: The right-hand side.
        max_steps: Maximum number of iterations.
        tolerance: On the residual norm, relative to that of v.
    """
    w, residual = torch.zeros_like(v), v.clone()
    direction, square = residual.clone(), residual @ residual
    least = tolerance**2 * square
    for _ in range(max_steps):
        if square <= least:
            break
        image = product(direction)
        size = square / (direction @ image)
        w += size * direction
        residual -= size * image
        last, square = square, residual @ residual
        direction = residual + square / last * direction
    return w


def torchopt_implicit(task: Task) -> Tensor:
    """TorchOpt's ``custom_root`` with its conjugate gradients."""
    import torchopt

    def optimality(y: tuple[Tensor, ...], theta: Tensor) -> tuple[Tensor, ...]:
        gradients = torch.func.grad(lambda y: task.inner(task.named(y), theta))(y)
        return tuple(gradients)

    cg = torchopt.linear_solve.solve_cg(maxiter=ITERATIONS, rtol=0.0)

    @torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=cg)
    def solve(y: tuple[Tensor, ...], theta: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            end = descend(task, leaves(task.named(y)), task.steps, keep=False)
        return tuple(leaf.detach() for leaf in end.values())

    y = solve(tuple(task.start().values()), task.theta)
    return grad(task.outer(task.named(y)), task.theta)
