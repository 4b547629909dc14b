"""What objects of any kind hold: the tensors in a batch or a state, and attributes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

_T = TypeVar("_T")

PLAIN = {type(None), str, bytes, int, float, bool}
"""The types of what holds nothing else."""


def partition(tree: object) -> tuple[list[Tensor], Callable[[Iterable[Tensor]], Any]]:
    """The tensors of a pytree, and the function that puts others in their places.

    Args:
        tree: Tensors and anything else, in tuples, lists and dicts.

    Returns:
        Both; the function does not keep the tensors.

    Example:
        >>> import torch
        >>> tensors, rebuild = partition({"x": torch.ones(1), "name": "a"})
        >>> rebuild(2 * tensor for tensor in tensors)
        {'x': tensor([2.]), 'name': 'a'}
    """
    leaves, spec = tree_flatten(tree)
    constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

    def rebuild(tensors: Iterable[Tensor]) -> Any:
        given = iter(tensors)
        return tree_unflatten([next(given) if one is None else one[0] for one in constants], spec)

    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], rebuild


def tensors_in(container: object) -> list[Tensor]:
    """The tensors in an object, also in those that ``torch.utils._pytree`` does not open.

    Args:
        container: Tensors in tuples, mappings (``transformers.BatchEncoding``), dataclasses and
            other objects, but not in modules.

    Returns:
        Each tensor once.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> len(tensors_in([torch.ones(1), SimpleNamespace(x=torch.ones(1), name="a")]))
        2
    """
    return [part for part in objects_in(container) if isinstance(part, Tensor)]


def objects_in(container: object) -> list[object]:
    """An object and all that it holds, also in containers and objects, but not in modules.

    Args:
        container: Anything.

    Returns:
        Each object once, in an order that depends on the structure alone.

    Example:
        >>> objects_in({"steps": [{"taken": 3}]})
        [{'steps': [{'taken': 3}]}, [{'taken': 3}], {'taken': 3}, 3]
    """
    seen: dict[int, object] = {}
    stack = [container]
    while stack:
        part = stack.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            stack.extend(_members(part))
    return [*seen.values()]


def _members(part: object) -> Iterable[object]:
    if type(part) in PLAIN or isinstance(part, Tensor | nn.Module | type | ModuleType):
        return ()
    if isinstance(part, Mapping):
        return part.values()
    if isinstance(part, list | tuple | deque | set):  # perhaps all names of a dataset
        return [member for member in part if type(member) not in PLAIN]
    return attributes(part).values()


def attributes(part: object) -> dict[str, object]:
    """The attributes of an object, also those in slots.

    Args:
        part: Any object.

    Returns:
        The values by name, without those of its class.
    """
    slots = (name for kind in type(part).__mro__ for name in _slots(kind))
    return {**getattr(part, "__dict__", {}), **{name: getattr(part, name, None) for name in slots}}


def shallow_copy(part: _T) -> _T:
    """An object with the same attributes.

    Args:
        part: An object of a class that is written in Python. Unlike by ``copy.copy`` it is asked
            for nothing: one that looks up attributes elsewhere would look for them without end.

    Returns:
        The copy; the attributes are shared.

    Example:
        >>> class Task:
        ...     def __init__(self, number): self.number = number
        >>> task = Task(1)
        >>> kept = shallow_copy(task)
        >>> task.number = 2
        >>> kept.number
        1
    """
    copy = object.__new__(type(part))
    for name, value in attributes(part).items():
        object.__setattr__(copy, name, value)
    return copy


def _slots(kind: type) -> Iterable[str]:
    """Those of the class itself; a subclass does not repeat its parents'."""
    names: str | Iterable[str] = vars(kind).get("__slots__", ())
    return [names] if isinstance(names, str) else names
