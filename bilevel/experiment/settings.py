"""Settings as text that is the same in another process, so that runs can be compared."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bilevel.containers import attributes
from bilevel.fingerprint import fingerprint

_LONGEST = 500
"""The number of letters of an object's attributes, beyond which they are shown by a checksum."""


def settings_of(part: object, around: tuple[int, ...] = ()) -> str:
    """What an object computes with, apart from weights.

    Args:
        part: A module, whose submodules count, too, or any other object.
        around: See :func:`shown`.

    Returns:
        The types, and the values of all public attributes, also of those of the classes.

    Example:
        >>> class Rotation:
        ...     limit = 0.1
        ...     def __init__(self, steps): self.steps = steps
        >>> settings_of(Rotation(5))
        'Rotation(limit=0.1, steps=5)'
    """
    parts = part.modules() if isinstance(part, nn.Module) else [part]
    show = partial(shown, around=around)
    # Batch normalisation is another class in a job of several processes.
    return "; ".join(_attributes(one, show) for one in parts if not isinstance(one, _BatchNorm))


def shown(value: object, around: tuple[int, ...] = ()) -> str:
    """A setting in one line.

    Args:
        value: Anything. Tensors, and functions without a name of their own, are shown by a
            checksum; addresses are left out.
        around: The ids of what it is a part of, perhaps of itself.

    Returns:
        The line.

    Example:
        >>> shown(0.1), shown(fingerprint), shown(Tensor([0.0]))
        ('0.1', 'fingerprint', 'tensor (1,) 2144df1c')
        >>> shown(lambda x: 2 * x) == shown(lambda x: 3 * x)
        False
    """
    if id(value) in around:
        return "…"
    around = *around, id(value)
    inner = partial(shown, around=around)
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {fingerprint(value)}"
    if isinstance(value, np.ndarray):  # whose repr leaves out most of it
        data = inner(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
        return f"array {value.dtype} {value.shape} {zlib.crc32(data):08x}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(inner, value))})"
    if isinstance(value, set | frozenset):  # in an order that each process has of its own
        return f"({', '.join(sorted(map(inner, value)))})"
    if isinstance(value, dict):
        return f"({', '.join(f'{name}: {inner(part)}' for name, part in value.items())})"
    if isinstance(value, partial):
        return f"partial {', '.join(map(inner, (value.func, value.args, value.keywords)))}"
    if isinstance(value, FunctionType) and "<" in value.__qualname__:
        return f"{value.__name__} {_code(value, inner)}"
    if isinstance(value, CodeType):  # of a function within a function
        return inner((value.co_code, value.co_names, value.co_consts))
    if isinstance(value, MethodType):
        return f"{inner(value.__self__)}.{value.__name__}"
    if isinstance(value, nn.Module):  # whose repr leaves out what it computes with
        return f"({settings_of(value, around)})"
    # The repr of a dataclass rounds tensors.
    if type(value).__repr__ is object.__repr__ or is_dataclass(type(value)):
        held = _listed(_public(value), inner)
        if len(held) > _LONGEST:  # it may hold a set of data
            held = f"{zlib.crc32(held.encode()):08x}"
        return f"{type(value).__name__}({held})"
    text = str(getattr(value, "__name__", None) or " ".join(repr(value).split()))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _code(function: FunctionType, inner: Callable[[object], str]) -> str:
    """The checksum of what a function computes, with its defaults and what it encloses."""
    code = function.__code__
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    values = (*code.co_consts, *(function.__defaults__ or ()), *closure)
    parts = code.co_code, code.co_names, inner(function.__kwdefaults__), *map(inner, values)
    return f"{zlib.crc32(repr(parts).encode()):08x}"


def _attributes(part: object, show: Callable[[object], str]) -> str:
    """The settings of an object itself, without those of its submodules."""
    private = part.extra_repr() if isinstance(part, nn.Module) else ""
    given = _listed(_public(part), show)
    return f"{type(part).__name__}({', '.join(filter(None, [private, given]))})"


def _public(part: object) -> dict[str, object]:
    """The public attributes of an object, also of its class."""
    kinds = [kind for kind in reversed(type(part).__mro__) if kind not in (object, nn.Module)]
    values = {
        name: value
        for kind in kinds
        for name, value in vars(kind).items()
        if isinstance(value, int | float | str | tuple | Tensor)
    } | (part._asdict() if hasattr(part, "_asdict") else attributes(part))
    return {n: v for n, v in values.items() if not n.startswith("_") and n != "training"}


def _listed(values: dict[str, object], show: Callable[[object], str]) -> str:
    return ", ".join(f"{name}={show(value)}" for name, value in values.items())
