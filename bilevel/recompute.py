"""Layers, and steps of a solve, whose values in between are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from bilevel.parameters import with_parameters
from bilevel.replay import Condition, Moment
from bilevel.tree import Value
from bilevel.updates.base import State

Steps = Callable[[Value, State], tuple[Value, State]]


def checkpointed(layers: nn.Module, input: Tensor) -> Tensor:
    """``layers(input)``, of which only the input is kept for the backward pass.

    There the layers are computed again, but for the last one's output; not under ``torch.func``,
    which cannot.

    Args:
        layers: The layers; batch normalisation takes its statistics in once.
        input: Their input.

    Returns:
        Their output.

    Example:
        >>> layers = nn.Sequential(nn.Tanh(), nn.Linear(2, 2))
        >>> checkpointed(layers, torch.rand(1, 2, requires_grad=True)).sum().backward()
    """
    if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        output: Tensor = layers(input)
    elif torch.compiler.is_compiling():  # traced once, in the mode that it is called in
        output = checkpoint(layers, input, use_reentrant=False)
    else:
        condition = Condition(layers)
        contexts = lambda: (nullcontext(), _AsItWas(condition))  # noqa: E731
        output = checkpoint(layers, input, use_reentrant=False, context_fn=contexts)
    return output


class _AsItWas:
    """Whatever mode the layers are in by now; they write into copies of their buffers.

    A class, since a second derivative enters it a second time.
    """

    def __init__(self, condition: Condition) -> None:
        self.condition = condition

    def __enter__(self) -> None:
        self.now = Condition(self.condition.module)
        self.condition.restore()
        self.condition.stand_in()

    def __exit__(self, *_: object) -> None:
        self.now.restore()


def recomputed(steps: Steps, modules: Sequence[nn.Module], y: Value, state: State) -> Any:
    """``steps(y, state)``, of which only where it starts is kept.

    ``torch.utils.checkpoint`` does not serve: each gradient inside the steps is a backward pass
    that makes it compute the steps again, before they have been computed once.

    Args:
        steps: Some steps of a solve.
        modules: The modules that they read.
        y: Where they start.
        state: The update's state there.

    Returns:
        The point reached and the state there.
    """
    start, spec = tree_flatten((y, state))
    form: list[Any] = []

    def run(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = iter(tensors)
        point = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in start]
        end, end_spec = tree_flatten(steps(*tree_unflatten(point, spec)))
        # Without the tensors, which lead back here.
        form[:] = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in end], end_spec
        return tuple(leaf for leaf in end if isinstance(leaf, Tensor))

    moving = [leaf for leaf in start if isinstance(leaf, Tensor)]
    held, moment = nn.ModuleList(modules), Moment(*modules)
    parameters = dict(held.named_parameters())
    names = tuple(parameters)

    def again(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # The modules' own may be others by then, where functional_call gave them these.
        given = dict(zip(names, parameters, strict=True))
        with moment.again():
            return with_parameters(held, given, lambda: run(tensors))

    reached = iter(_Recomputed.apply(run, again, len(moving), *moving, *parameters.values()))
    end = [next(reached) if constant is None else constant[0] for constant in form[0]]
    return tree_unflatten(end, form[1])


class _Recomputed(torch.autograd.Function):
    """Takes the moving tensors and, so that their gradients arrive, the modules' parameters."""

    @staticmethod
    def forward(ctx: Any, run: Any, again: Any, moving: int, *inputs: Tensor) -> Any:
        ctx.again, ctx.moving = again, moving
        ctx.save_for_backward(*inputs)
        return run(inputs[:moving])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        point = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in saved[: ctx.moving]]
        inputs = [*point, *saved[ctx.moving :]]
        with torch.enable_grad():
            outputs = ctx.again(point, saved[ctx.moving :])
        pairs = [(o, v) for o, v in zip(outputs, slopes, strict=True) if o.requires_grad]
        asked = [leaf for leaf in inputs if leaf.requires_grad]
        ends, weights = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(ends, asked, weights, allow_unused=True))
        given = (next(found) if leaf.requires_grad else None for leaf in inputs)
        return None, None, None, *given
