"""What the graph of autograd leads to, and vector-Jacobian products along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.errors import BilevelError

# A node that Python has seen is freed together with all that it leads to, one call within the
# other: after a walk through 70,000 of them the stack overflows, and the process is killed.
_WALKED = 10_000


def vjp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    retain_graph: bool = False,
) -> Sequence[Tensor | None]:
    """The gradient of ⟨outputs, v⟩ in the inputs; constant outputs are left out.

    Args:
        outputs: Tensors, with their graph.
        inputs: Tensors that require a gradient.
        v: One in the shape of each output.
        retain_graph: Whether another product follows.

    Returns:
        A tensor for each input; None where it is not used.
    """
    moving = [pair for pair in zip(outputs, v, strict=True) if pair[0].requires_grad]
    if not (moving and inputs):
        return [None for _ in inputs]
    values, weights = zip(*moving, strict=True)
    return torch.autograd.grad(
        values, inputs, weights, retain_graph=retain_graph, allow_unused=True
    )


def reached(values: Sequence[Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The names of those leaf tensors that the graph of some values leads to.

    Args:
        values: Any tensors.
        wanted: The leaf tensors, by name.

    Returns:
        The names, in the order of ``wanted``.

    Raises:
        BilevelError: If the graph has layers that hide what they lead to, or a gradient that has no
            derivative.

    Example:
        >>> import torch
        >>> a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
        >>> reached([a.exp().sin()], {"a": a, "b": b})
        ['a']
    """
    leafs = {name: t for name, t in wanted.items() if t.is_leaf and t.requires_grad}
    nodes = nodes_of(values)
    if len(nodes) > _WALKED:
        return _differentiated(values, leafs)
    found = {*map(id, values), *(id(getattr(node, "variable", None)) for node in nodes)}
    return [name for name, tensor in leafs.items() if id(tensor) in found]


def passes(values: Sequence[Tensor], through: Set[Any]) -> bool:
    """Whether the graph of some values has one of some nodes in it.

    Args:
        values: Any tensors.
        through: The nodes, such as the ``grad_fn`` of other tensors.

    Returns:
        True if so, and for a graph that is too large to be searched.

    Raises:
        BilevelError: As :func:`reached`.
    """
    nodes = nodes_of(values)
    return len(nodes) > _WALKED or not nodes.isdisjoint(through)


def check_no_dead_ends(values: Sequence[Tensor]) -> None:
    """Checks that nothing hides what the graph of some values leads to.

    Args:
        values: Any tensors, such as gradients that are differentiated again.

    Raises:
        BilevelError: As :func:`reached`.
    """
    nodes_of(values)


def check_second_derivatives(value: Tensor, inputs: Sequence[Tensor]) -> None:
    """Checks that torch gets the second derivatives of a value in its inputs right.

    Those of its fused weight normalisation lack what depends on how the norm moves.

    Args:
        value: The value, with its graph.
        inputs: The tensors in which its gradient is differentiated.

    Raises:
        BilevelError: If the graph leads to one of them through a function of which it does not.
    """
    wrong = [n for n in _below([value.grad_fn]) if n.name() == "WeightNormInterfaceBackward0"]
    if not wrong:
        return
    # The objects, not their ids: the Python object of a node that nobody holds is freed, and the
    # next node may get its id.
    ends = {end for tensor in inputs for end in (tensor, tensor.grad_fn)} - {None}
    if any(node in ends or getattr(node, "variable", None) in ends for node in _below(wrong)):
        raise BilevelError(
            "a gradient is differentiated in weights that weight_norm normalises, of which torch "
            "has a wrong second derivative, as if their norm were constant: write the weights as "
            "v * (g / v.norm(dim=1, keepdim=True)) in a parametrization of your own, or take an "
            "adjoint (Penalty) or schedule (Extragradient) with first derivatives only"
        )


_DEAD_ENDS = {
    "CheckpointFunctionBackward": "layers are checkpointed with use_reentrant=True, which hides "
    "their parameters from autograd's graph: their gradients would be missing; give checkpoint(…, "
    "use_reentrant=False, context_fn=bilevel.recompute.kept(layers))",
    "torch::autograd::Error": "a gradient is differentiated that has passed through a function "
    "marked @once_differentiable: torch would leave that part out; write its backward by "
    "operations of torch, without the mark, or, where it is the true derivative, take Penalty(…)",
}


def nodes_of(values: Sequence[Tensor], *, until: str = "") -> set[Any]:
    """The nodes of the graph of some values, or somewhat more than the limit of them.

    Args:
        values: Any tensors.
        until: The name of nodes beyond which not to look.

    Returns:
        The nodes.

    Raises:
        BilevelError: As :func:`reached`.
    """
    return _below([value.grad_fn for value in values], dead_ends=_DEAD_ENDS, until=until)


def _below(
    starts: Sequence[Any], *, dead_ends: Mapping[str, str] | None = None, until: str = ""
) -> set[Any]:
    """The nodes that some lead to, and themselves; an error at a dead end."""
    stack = [node for node in starts if node is not None]
    seen: set[Any] = {*stack}
    while stack and len(seen) <= _WALKED:
        node = stack.pop()
        if dead_ends and node.name() in dead_ends:
            raise BilevelError(dead_ends[node.name()])
        if node.name() == until:
            continue
        fresh = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= fresh
        stack.extend(fresh)
    return seen


def _differentiated(values: Sequence[Tensor], leafs: Mapping[str, Tensor]) -> list[str]:
    """What :func:`reached` returns, by a backward pass of zeros."""
    roots = [value for value in values if value.requires_grad]
    grads = vjp(roots, [*leafs.values()], [*map(torch.zeros_like, roots)], retain_graph=True)
    return [name for name, grad in zip(leafs, grads, strict=True) if grad is not None]


def check_not_held(adjoint: str, values: Sequence[Tensor], theta: Mapping[str, Tensor]) -> None:
    """Checks that a solve to which other tensors were lent in the place of θ has not read θ.

    Args:
        adjoint: What has put others in its place.
        values: What was computed.
        theta: θ, by name.

    Raises:
        BilevelError: If their graph leads to θ, which a part of the game must hold then.
    """
    if held := reached(values, theta):
        raise BilevelError(
            f"{adjoint} computes with other tensors in the place of the leader's parameters, but "
            f"{held[0]} itself is read: an update or the follower holds it, as in "
            "Optimizer(SGD, lr=leader.lr), or the leader keeps it a second time (in a list, or by "
            "the old nn.utils.weight_norm), and its gradient would be wrong; hold the leader and "
            "read leader.lr in each step (recipe: a step size that the leader learns), or take "
            "Unrolled()"
        )


def check_not_lost(adjoint: str, values: Sequence[Tensor], holders: Sequence[object]) -> None:
    """Checks that no other tensor than the leader's parameters requires a gradient through y*.

    Args:
        adjoint: What gives a gradient to the leader's parameters only.
        values: What was computed.
        holders: The leader and the follower, which may hold a tensor as attribute or buffer.

    Raises:
        BilevelError: If their graph leads to one.
    """
    aside = {
        f"{type(part).__name__}.{name}": value
        for holder in holders
        for part in (holder.modules() if isinstance(holder, nn.Module) else (holder,))
        for name, value in {**vars(part), **vars(part).get("_buffers", {})}.items()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    }
    if lost := reached(values, aside):
        raise BilevelError(
            f"{lost[0]} requires a gradient and {adjoint} would not give it that through y*, but "
            "only to the leader's parameters: make it an nn.Parameter of the leader, detach it, or "
            "take Unrolled()"
        )
