"""Lends a module other parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils import parametrize

from bilevel.snapshot import with_certainty

Parameters = dict[str, Tensor]
"""A module's parameters, by name."""


@contextmanager
def lent(module: nn.Module, given: Parameters) -> Iterator[None]:
    """Within the block ``module`` has other parameters, as in ``torch.func.functional_call``.

    Args:
        module: The module.
        given: The parameters, by name; those that are missing are the module's own, and other names
            are passed over.

    Yields:
        Nothing.
    """
    own = dict(module.named_parameters())
    # A tied one has several places.
    others = {own[name]: tensor for name, tensor in given.items() if name in own}
    held = [(part._parameters, dict(part._parameters)) for part in module.modules()]
    places = [(now, name, p) for now, kept in held for name, p in kept.items() if p in others]

    def take_back() -> None:
        for now, name, parameter in places:
            now[name] = parameter
        parametrize._cache.clear()

    try:
        for now, name, parameter in places:
            now[name] = others[parameter]  # type: ignore[assignment]
        parametrize._cache.clear()  # of parametrize.cached(): weights made of the module's own
        yield
    finally:
        with_certainty(take_back)
